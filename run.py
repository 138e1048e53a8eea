"""Runs TIGER: every stage of the pipeline, or one. See `tiger_jax/cli.py`."""

import sys

from tiger_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
