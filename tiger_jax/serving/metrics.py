"""What the server counts, for Prometheus."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from tiger_jax.workdir.provenance import code_version, package_versions

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where several workers keep what they count; the library reads it when imported."""


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        common: dict[str, Any] = {"registry": self.registry, "namespace": "tiger"}
        seconds = common | {"buckets": _SECONDS}
        lane, least = ("lane",), common | {"multiprocess_mode": "livemin"}
        self.requests = Counter(
            "requests", "HTTP requests answered.", ("path", "status"), **common
        )
        self.seconds = Histogram(
            "request_seconds",
            "From a request's first byte to the end of its answer.",
            ("path",),
            **seconds,
        )
        self.shed = Counter("shed", "Requests refused under load.", ("why",), **common)
        total = common | {"multiprocess_mode": "livesum"}
        self.waiting = Gauge(
            "waiting", "Histories that wait for a batch.", lane, **total
        )
        self.queue_seconds = Histogram(
            "queue_seconds", "That a request waited for its batch.", lane, **seconds
        )
        self.batch_rows = Histogram(
            "batch_rows", "Searches a batch.", lane, buckets=_ROWS, **common
        )
        self.batch_seconds = Histogram(
            "batch_seconds", "Seconds a batch.", lane, **seconds
        )
        self.failed_batches = Counter(
            "failed_batches", "Batches with a fault of ours.", lane, **common
        )
        self.answers = Counter(
            "answers", "Histories answered, by model.", ("model",), **common
        )
        self.changes = Counter(
            "catalogue_changes", "Changes, by what came of them.", ("result",), **common
        )
        self.ready = Gauge("ready", "1 if /readyz says so.", **least)
        self.version = Gauge("catalogue_version", "Of the catalogue.", **least)
        self.items = Gauge("catalogue_items", "Items in the catalogue.", **least)
        self.memory = Gauge("device_bytes", "Memory in use on the device.", **total)
        self.resident = Gauge("resident_bytes", "Memory of the process.", **total)
        names = ("version", "jax", "platform", "model")
        self.build = Gauge("build_info", "What is running.", names, **least)

    def note_build(self, model: str) -> None:
        """Says what is running."""
        self.build.labels(
            code_version(),
            package_versions().get("jax", ""),
            jax.default_backend(),
            model,
        ).set(1)

    def note_memory(self) -> None:
        """Measures this process and its device; each worker's is added up."""
        with contextlib.suppress(OSError):  # not on Linux
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.set(pages * os.sysconf("SC_PAGE_SIZE"))
        with contextlib.suppress(RuntimeError):  # a device that is lost
            used = (jax.local_devices()[0].memory_stats() or {}).get("bytes_in_use")
            if used is None:  # a CPU counts nothing itself
                used = sum(array.nbytes for array in jax.live_arrays())
            self.memory.set(used)

    def text(self) -> bytes:
        """All of it as Prometheus reads it; of all workers, where there are several."""
        self.note_memory()
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
