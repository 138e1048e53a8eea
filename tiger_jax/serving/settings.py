"""How much the server takes, and how long it waits."""

import dataclasses

from tiger_jax.config import config
from tiger_jax.errors import InputError


@config("settings")
class Limits:
    """What one server takes on; beyond, it refuses at once.

    Attributes:
        waiting: Histories that wait for a batch, at most; further ones get 429.
        waiting_exact: The same of requests that score every item.
        deadline_seconds: A request that waited longer gets 503.
        requests: Histories in one batch request.
        body_bytes: Of a request's body.
        read_seconds: In which a request must have arrived whole.
        write_seconds: In which an answer must have been taken.
        idle_seconds: That a connection stays open without a request.
        connections: Open at once.
        shutdown_seconds: For what was taken when the server is told to stop.
    """

    waiting: int = 256
    waiting_exact: int = 4
    deadline_seconds: float = 10.0
    requests: int = 64
    body_bytes: int = 1 << 20
    read_seconds: float = 10.0
    write_seconds: float = 10.0
    idle_seconds: float = 15.0
    connections: int = 256
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise InputError(f"settings.Limits.{field.name} must be positive")
        # With epsilon, a history is searched twice.
        if self.waiting < 2 * self.requests:
            raise InputError(
                f"settings.Limits.waiting is {self.waiting}: a batch of "
                f"{self.requests} histories needs {2 * self.requests}"
            )
