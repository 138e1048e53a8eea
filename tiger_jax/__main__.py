"""The command `tiger-jax`, and `python -m tiger_jax`: the same as `run.py`."""

import os
import signal
import sys

from tiger_jax import processes
from tiger_jax.cpu_allocator import use_fast_cpu_allocator
from tiger_jax.progress import outlive_readers


def main() -> int:
    """Runs the command line after what must be set before JAX is imported."""
    if os.getpid() == 1:  # of a container: no signal ends it that it doesn't handle
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    use_fast_cpu_allocator()
    outlive_readers()
    return processes.run(_run)


def _run() -> int:
    from tiger_jax import cli

    return cli.main(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
