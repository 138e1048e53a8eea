"""Runs the app until it is told to stop."""

import asyncio
import dataclasses
import ipaddress
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.serving.app import create_app
from tiger_jax.serving.guard import Operations
from tiger_jax.serving.protocol import with_limits
from tiger_jax.serving.service import NotReadyError, Service
from tiger_jax.serving.tokens import Tokens
from tiger_jax.serving.workers import is_orphan
from tiger_jax.workdir.reading import path_of

UNIX = "unix:"


@dataclasses.dataclass(frozen=True)
class Proxy:
    """How the server is reached through others; the fields of uvicorn's options.

    Attributes:
        root_path: The path under which a proxy shows it, such as "/shop".
        trusted: Addresses whose X-Forwarded-For and -Proto are believed.
        certificate, key: PEM files, to speak TLS.
    """

    root_path: str = ""
    trusted: tuple[str, ...] = ()
    certificate: str | None = None
    key: str | None = None

    def options(self) -> dict[str, Any]:
        """As uvicorn takes them; InputError if a file isn't there."""
        for name, file in (("certificate", self.certificate), ("key", self.key)):
            if file is not None and not path_of(file).is_file():
                raise InputError(f"serve.{name}={file} is not a file")
        if (self.certificate is None) != (self.key is None):
            raise InputError("serve.certificate and serve.key go together: give both")
        return {
            "root_path": self.root_path.rstrip("/"),
            "proxy_headers": bool(self.trusted),
            "forwarded_allow_ips": list(self.trusted),
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key,
        }


def listen_for_operators(address: str, port: int) -> tuple[str, socket.socket]:
    """Opens "ADDRESS:PORT"; the other address has another port.

    Raises:
        InputError: It is no such address, or see `listen`.
    """
    host, _, number = address.rpartition(":")
    if not host or not number.isdecimal() or int(number) == port > 0:
        raise InputError(
            f"serve.operations is {address!r}: it must be ADDRESS:PORT, such as "
            "127.0.0.1:9000, with another port than serve.port"
        )
    host = host.strip("[]")
    return host, listen(host, int(number), "operations")


def listen(host: str, port: int, option: str = "port") -> socket.socket:
    """Opens the port, or the socket file of "unix:PATH".

    Raises:
        InputError: It is taken, or the address isn't this machine's.
    """
    try:
        if host.startswith(UNIX):
            return _listen_unix(path_of(host.removeprefix(UNIX)))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"can't listen on {host} port {port} ({error}): choose another with "
            f"--gin.serve.{option}={option.upper()}"
        ) from error


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        if listener.connect_ex(str(path)) == 0:
            raise OSError("another server listens there")
        path.unlink()  # a dead one's
        listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1024)
    return listener


def default_hosts(host: str, more: Collection[str]) -> tuple[str, ...]:
    """Names the server goes by: on loopback only its own, elsewhere those given."""
    if is_loopback(host) and not host.startswith(UNIX):
        return ("localhost", "127.0.0.1", "::1", host.lower(), *more)
    return tuple(name.lower() for name in more)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        is_named = host == "localhost" or host.startswith(UNIX)
        return is_named or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def say_where(
    host: str, listener: socket.socket, tokens: Tokens, proxy: Proxy, what: str = ""
) -> None:
    """Says where to ask, and what may be wrong with that."""
    scheme = "http" if proxy.certificate is None else "https"
    if host.startswith(UNIX):
        say(f"serve: {host}")
    else:
        name = f"[{host}]" if ":" in host else host
        say(f"serve: {what}{scheme}://{name}:{listener.getsockname()[1]}")
    has_token = tokens.reader is not None or tokens.admin is not None
    if is_loopback(host):
        return
    if tokens.reader is None:
        say("note: no token is set, so whoever reaches this address may ask")
    if has_token and proxy.certificate is None:
        say(
            "note: tokens travel in the clear to this address: give serve.certificate "
            "and serve.key, or put a proxy with TLS before it"
        )


class _Server(uvicorn.Server):
    """Says on /readyz that it will stop before its listener closes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._closes_at = service, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.status == "compiling":  # nobody waits for anything
            say("serve: stopped")
            os._exit(0)
        is_first = self._service.status == "ok"
        if is_first and self._service.limits.drain_seconds and sig != signal.SIGUSR1:
            self._service.status = "draining"
            self._closes_at = time.monotonic() + self._service.limits.drain_seconds
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        self.should_exit |= time.monotonic() >= self._closes_at or is_orphan()
        return await super().on_tick(counter)


def make_server(
    service: Service,
    *,
    page: str,
    hosts: Collection[str] = (),
    proxy: Proxy = Proxy(),
    operations: socket.socket | None = None,
) -> uvicorn.Server:
    """The server of a service, which doesn't listen yet."""
    limits, theirs = service.limits, Operations()
    if operations is not None:
        address, port, *_ = operations.getsockname()
        theirs = Operations(port, frozenset(default_hosts(address, ())))
    config = uvicorn.Config(
        create_app(service, page=page, hosts=hosts, operations=theirs),
        http=with_limits(limits, theirs.port),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(max(1, limits.idle_seconds)),
        timeout_graceful_shutdown=int(max(1, limits.shutdown_seconds)),
        **proxy.options(),
    )
    return _Server(config, service)


def run_server(
    server: uvicorn.Server,
    service: Service,
    listeners: Sequence[socket.socket],
    on_ready: Callable[[], None] = lambda: None,
    reloads: Sequence[int] = (),
) -> None:
    """Serves until SIGINT or SIGTERM, then answers what it has taken and returns.

    On SIGHUP, a bundle that was exported anew takes the place of the one served.

    Args:
        reloads: The signals of this kind that came before it is ready.

    Raises what kept the searches from being compiled.
    """
    failure: list[Exception] = []
    started = time.monotonic()

    def stop(error: Exception) -> None:
        if isinstance(error, NotReadyError):
            # A search that never ends would keep the process for ever.
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        failure.append(error)
        server.should_exit = True

    def note_ready() -> None:
        say(f"serve: ready after {time.monotonic() - started:.0f} seconds")
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGHUP, service.reload_bundle
        )
        if reloads:
            service.reload_bundle()
        on_ready()

    service.on_failure, service.on_ready = stop, note_ready
    # uvicorn raises again, when it is done, the signal that stopped it.
    ours = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in ours}
    signal.signal(signal.SIGUSR1, server.handle_exit)
    try:
        asyncio.run(server.serve(sockets=[*listeners]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for listener in listeners:
            listener.close()
    if failure:
        raise failure[0]
    say("serve: stopped")
