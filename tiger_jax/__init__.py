"""TIGER: recommender systems with generative retrieval, in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Looked up when first asked for: `import tiger_jax` alone imports nothing heavy.
_HOMES = {
    "run": "tiger_jax.api",
    "RunResult": "tiger_jax.api",
    "Recommender": "tiger_jax.recommending.recommender",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
