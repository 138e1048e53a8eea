"""What the server counts, for Prometheus."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        common: dict[str, Any] = {"registry": self.registry, "namespace": "tiger"}
        self.requests = Counter(
            "requests", "HTTP requests answered.", ("path", "status"), **common
        )
        self.seconds = Histogram(
            "request_seconds",
            "From a request's first byte to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            **common,
        )
        self.shed = Counter("shed", "Requests refused under load.", ("why",), **common)
        self.waiting = Gauge(
            "waiting", "Histories that wait for a batch.", ("lane",), **common
        )
        self.batch_rows = Histogram(
            "batch_rows", "Searches a batch.", ("lane",), buckets=_ROWS, **common
        )
        self.batch_seconds = Histogram(
            "batch_seconds", "Seconds a batch.", ("lane",), buckets=_SECONDS, **common
        )
        self.ready = Gauge("ready", "1 once all searches are compiled.", **common)
        self.version = Gauge("catalogue_version", "Of the catalogue.", **common)
        self.items = Gauge("catalogue_items", "Items in the catalogue.", **common)
