"""Spans of requests and batches for OpenTelemetry, where it is set up.

This makes the spans; where they go is its SDK's to say: `pip install
opentelemetry-distro opentelemetry-exporter-otlp`, then `opentelemetry-instrument python
run.py --stage=serve --gin.serve.traces=True`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from starlette.types import Scope

from tiger_jax.errors import InputError


class Traces:
    """Makes spans, or none."""

    def __init__(self, is_on: bool = False) -> None:
        """Takes whether to; InputError if the package isn't there."""
        self._tracer: Any = None
        if is_on:
            try:
                from opentelemetry import propagate, trace
            except ImportError as error:
                raise InputError(
                    "serve.traces needs OpenTelemetry: pip install opentelemetry-distro"
                ) from error
            self._tracer, self._propagate = trace.get_tracer("tiger_jax"), propagate

    @contextlib.contextmanager
    def span(self, name: str, scope: Scope | None = None, **facts: Any) -> Iterator:
        """A span of what the block does; of a request, under the client's own."""
        if self._tracer is None:
            yield None
            return
        context = None
        if scope is not None:
            pairs = scope["headers"]
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in pairs}
            context = self._propagate.extract(headers)
        with self._tracer.start_as_current_span(name, context) as span:
            span.set_attributes(facts)
            yield span
