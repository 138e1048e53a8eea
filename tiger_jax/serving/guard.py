"""What every request passes through before it reaches a route.

Hosts, the token, the size of the body and the time it takes to arrive are looked at
here; a request that gets further is whole, and its answer has a deadline. Work for a
client that has gone is given up. A fault of ours is logged, answered and counted once.
"""

import asyncio
import contextlib
import dataclasses
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiger_jax.serving.errors import ApiError, internal_error
from tiger_jax.serving.logs import REQUEST_ID
from tiger_jax.serving.metrics import Metrics
from tiger_jax.serving.settings import Limits
from tiger_jax.serving.tokens import Tokens
from tiger_jax.serving.traces import Traces

OPEN_PATHS = ("/", "/docs", "/healthz", "/readyz", "/openapi.json")
"""What anyone may read who reaches the server, token or not."""

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Operations:
    """The address that is the operators' alone, if there is one.

    Attributes:
        hosts: Names under which it may be addressed; empty: any.
    """

    port: int | None = None
    hosts: frozenset[str] = frozenset()

    def is_asked(self, scope: Scope) -> bool:
        """Whether a request came by it."""
        _, port = scope.get("server") or (None, None)
        return self.port is not None and port == self.port

    def has_alone(self, scope: Scope, path: str) -> bool:
        """Whether a request is for what no other address has beside it."""
        is_change = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        is_theirs = path.rstrip("/") in ("/metrics", "/models")
        is_theirs |= path.startswith("/catalogue") and is_change
        return self.port is not None and is_theirs


_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """The outermost ASGI layer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        tokens: Tokens,
        traces: Traces,
        hosts: Collection[str],
        operations: Operations = Operations(),
    ) -> None:
        """Takes what to guard.

        Args:
            tokens: One of which requests must bear, to read and to change.
            hosts: Names under which the server may be addressed, so that a web page
                can't reach it under a name of its own; empty: any.
        """
        self._app, self._limits, self._metrics = app, limits, metrics
        self._tokens, self._hosts = tokens, frozenset(hosts)
        self._traces, self._operations = traces, operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), "gone"
        request_id = _request_id(Headers(scope=scope))
        REQUEST_ID.set(request_id)
        own = [*_SECURITY, (b"x-request-id", request_id.encode())]

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        if scope["method"] == "HEAD":  # the protocol leaves the body out
            scope = {**scope, "method": "GET"}
        try:
            with self._traces.span(scope["method"], scope, request_id=request_id):
                body = await self._admit(scope, receive)
                await _while_connected(
                    self._app(scope, _replay(body, receive), send_and_note), receive
                )
        except ApiError as error:
            await error.response()(scope, receive, send_and_note)
        except Exception:
            _LOG.exception("%s %s failed", scope["method"], scope["path"][:200])
            if status == "gone":
                await internal_error().response()(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """Checks what can be checked before a route is known; reads the body."""
        headers = Headers(scope=scope)
        if {"content-length", "transfer-encoding"} <= {*headers}:  # RFC 9112, 6.1
            message = "a body has one length: Content-Length or chunks"
            raise ApiError(400, "two_lengths", message, close=True)
        refusal = self._refusal(scope, headers)
        if refusal is not None and "expect" in headers:
            raise refusal  # the client waits for leave to send its body
        body = await self._read(receive, refusal)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            message = "send JSON, with Content-Type: application/json"
            raise ApiError(415, "not_json", message)
        return body

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_operators = self._operations.is_asked(scope)
        if self._operations.has_alone(scope, path) and not is_operators:
            return ApiError(404, "not_found", f"there is nothing at {path[:120]}")
        hosts = self._operations.hosts if is_operators else self._hosts
        if hosts and _host_name(headers.get("host", "")) not in hosts:
            message = "this server isn't addressed by that name: start it with "
            message += "--gin.serve.hosts='(\"NAME\",)'"
            return ApiError(421, "unknown_host", message)
        refusal = self._tokens.refusal(scope, headers.get("authorization", ""))
        if refusal is not None and path not in OPEN_PATHS:
            return refusal
        announced = headers.get("content-length", "0")
        return self._too_large() if int(announced) > self._limits.body_bytes else None

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        return ApiError(413, "too_large", f"a body has at most {most:,} bytes")

    async def _read(self, receive: Receive, refusal: ApiError | None) -> bytes:
        """Reads a body to its end, so that the client can take the answer.

        Of one that is refused, nothing is kept.
        """
        body = bytearray()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "incomplete", "the body ended early")
                    if refusal is None:
                        body += message.get("body", b"")
                        if len(body) > self._limits.body_bytes:
                            body.clear()
                            refusal = self._too_large()
                    if not message.get("more_body", False):
                        if refusal is not None:
                            raise refusal
                        return bytes(body)
        late = f"no whole request in {self._limits.read_seconds:g} seconds"
        raise ApiError(408, "too_slow", late, close=True)


async def _while_connected(answer: Awaitable[None], receive: Receive) -> None:
    """Answers, unless the client goes before."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_wait_for_end(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering
    finally:
        answering.cancel()
        leaving.cancel()


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _request_id(headers: Headers) -> str:
    """The client's own name for its request, where it is one, or a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.-]{1,64}", given, re.A) else secrets.token_hex(8)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that has been read already, and then what comes after it."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
