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
        waiting_reads: Requests for items, similar items or the catalogue in work.
        deadline_seconds: A request that waited longer gets 503.
        requests: Histories in one batch request.
        body_bytes: Of a request's body.
        read_seconds: In which a request must have arrived whole.
        write_seconds: In which an answer must have been taken.
        idle_seconds: That a connection stays open without a request.
        connections: Open at once.
        drain_seconds: After a signal to stop, in which `/readyz` says so and
            requests are still taken; then the listener closes.
        shutdown_seconds: Then, for what was taken.
        failed_batches: In a row, after which `/readyz` says no.
        stuck_seconds: Of one batch, after which it says no.
        unready_seconds: Of saying no, after which the process ends, with code 1.
    """

    waiting: int = 256
    waiting_exact: int = 4
    waiting_reads: int = 32
    deadline_seconds: float = 10.0
    requests: int = 64
    body_bytes: int = 1 << 20
    read_seconds: float = 10.0
    write_seconds: float = 10.0
    idle_seconds: float = 15.0
    connections: int = 256
    drain_seconds: float = 3.0
    shutdown_seconds: float = 30.0
    failed_batches: int = 3
    stuck_seconds: float = 60.0
    unready_seconds: float = 120.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name == "drain_seconds" else 1e-9
            if getattr(self, field.name) < least:
                raise InputError(f"settings.Limits.{field.name} must be positive")
        # With epsilon, a history is searched twice.
        if self.waiting < 2 * self.requests:
            raise InputError(
                f"settings.Limits.waiting is {self.waiting}: a batch of "
                f"{self.requests} histories needs {2 * self.requests}"
            )
