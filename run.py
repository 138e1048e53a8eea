"""Runs TIGER: every stage of the pipeline, or one. See `tiger_jax/cli.py`."""

import os
import sys

from tiger_jax.cpu_allocator import use_fast_cpu_allocator

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    use_fast_cpu_allocator()
    from tiger_jax.cli import main

    sys.exit(main(sys.argv))
