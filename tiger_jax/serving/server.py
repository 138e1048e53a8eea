"""Runs the app until it is told to stop."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Collection

import uvicorn

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.serving.app import Service, create_app
from tiger_jax.serving.protocol import with_limits
from tiger_jax.workdir.reading import path_of

TOKEN_VARIABLE = "TIGER_SERVE_TOKEN"
MIN_TOKEN = 16


def read_token(file: str | None) -> str | None:
    """Takes the token from a file, or else from the environment; None if neither.

    Never from the command line, which every user of a machine can read.

    Raises:
        InputError: The file can't be read, or the token is no good one.
    """
    if file is not None:
        try:
            token = path_of(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"serve.token_file={file} can't be read: {error}"
            raise InputError(message) from error
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    if len(token) < MIN_TOKEN or not token.isascii() or " " in token:
        raise InputError(
            f"a token has at least {MIN_TOKEN} ASCII characters and no spaces: "
            "make one with `openssl rand -hex 32`"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """Opens the port; InputError if it is taken or the address isn't this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"can't listen on {host} port {port} ({error}): choose another with "
            "--gin.serve.port=PORT"
        ) from error


def default_hosts(host: str, more: Collection[str]) -> tuple[str, ...]:
    """Names the server goes by: on loopback only its own, elsewhere those given."""
    if is_loopback(host):
        return ("localhost", "127.0.0.1", "::1", host.lower(), *more)
    return tuple(name.lower() for name in more)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run_server(
    service: Service, listener: socket.socket, *, page: str, hosts: Collection[str]
) -> None:
    """Serves until SIGINT or SIGTERM, then answers what it has taken and returns.

    Raises what kept the searches from being compiled.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").addFilter(_is_no_noise)
    limits = service.limits
    app = create_app(service, page=page, hosts=hosts)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=with_limits(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(max(1, limits.idle_seconds)),
            timeout_graceful_shutdown=int(max(1, limits.shutdown_seconds)),
        )
    )
    failure: list[Exception] = []

    def stop(error: Exception) -> None:
        failure.append(error)
        server.should_exit = True

    started = time.monotonic()
    service.on_failure = stop
    service.on_ready = lambda: say(
        f"serve: ready after {time.monotonic() - started:.0f} seconds"
    )
    # uvicorn raises again, when it is done, the signal that stopped it.
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
    if failure:
        raise failure[0]
    say("serve: stopped")


def _is_no_noise(record: logging.LogRecord) -> bool:
    """What clients do wrong is answered to them, and counted, not logged."""
    return not record.getMessage().startswith(
        ("Invalid HTTP request", "Unsupported upgrade", "No supported WebSocket")
    )
