"""uvicorn's HTTP/1.1, with clocks for clients that are slow.

uvicorn waits for ever for a request that never ends, and for a client that doesn't
take its answer. Here a request must be whole in `Limits.read_seconds` after its
first byte (or after the connection was made), and an answer taken in
`Limits.write_seconds`.
"""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tiger_jax.serving.errors import ApiError
from tiger_jax.serving.settings import Limits

# After the app has said that a body was too slow, or too large, the client gets
# this long to read it.
_GRACE_SECONDS = 2.0


class PatientProtocol(H11Protocol):
    """One connection; `with_limits` makes the class for a server."""

    limits: ClassVar[Limits]
    operations_port: ClassVar[int | None]
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        is_operators = (self.server or ("", -1))[1] == self.operations_port
        if len(self.connections) > self.limits.connections and not is_operators:
            message = f"{self.limits.connections} connections are open already"
            self._refuse(
                ApiError(503, "too_many_connections", message, retry_after=1.0)
            )
        else:
            self._start_reading()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
                self._start_reading()
        else:
            self._stop_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._stop_reading()
        self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading()
        if self._writing is not None:
            self._writing.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "not_http", "this is no HTTP/1.1 request"))

    def _start_reading(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(
                self.limits.read_seconds, self._read_too_slowly
            )

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _read_too_slowly(self) -> None:
        self._reading = None
        if self.conn.their_state is h11.SEND_BODY:
            # The app has an answer to this; the client gets the time to read it.
            self.loop.call_later(_GRACE_SECONDS, self._end_unfinished)
        elif self.conn.trailing_data[0]:
            message = f"no whole request in {self.limits.read_seconds:g} seconds"
            self._refuse(ApiError(408, "too_slow", message))
        else:
            self.transport.close()

    def _end_unfinished(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _watch_writing(self) -> None:
        if self._writing is None and self.transport.get_write_buffer_size():
            self._writing = self.loop.call_later(
                self.limits.write_seconds, self._end_unread
            )

    def _end_unread(self) -> None:
        self._writing = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answers without the app, and ends the connection."""
        response = error.response()
        lines = [f"HTTP/1.1 {error.status_code} Refused".encode(), b"connection: close"]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body))
        self.transport.close()
        self._watch_writing()


def with_limits(
    limits: Limits, operations_port: int | None = None
) -> type[PatientProtocol]:
    """The protocol of a server with these limits."""
    own = {"limits": limits, "operations_port": operations_port}
    return type("LimitedProtocol", (PatientProtocol,), own)
