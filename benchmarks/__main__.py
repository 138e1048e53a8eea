"""Runs the benchmarks in sizes that end within minutes: `make bench`.

Each prints JSON rows; the comparisons with other code are left out where that code
isn't installed, and say so on standard error. Every benchmark has a command of its
own for the full sizes, with --help:

    python -m benchmarks.decoding
    python -m benchmarks.training.step
    python -m benchmarks.serving
    python -m benchmarks.scale
    python -m benchmarks.paper, .analyses
"""

import subprocess
import sys

from benchmarks import lib

SMALL = {
    "training.step": ["--cases=buckets", "--dtypes=float32", "--rounds=3"],
    "decoding": ["--quick"],
}


def main() -> None:
    """Runs one after the other; a failing one doesn't keep the next from running."""
    lib.make_parser(__doc__).parse_args()
    # Before an hour of others has passed.
    lib.find_data(None, "amazon2014_beauty", "TIGER_DATA, the folder that holds it")
    failed = []
    for name, arguments in SMALL.items():
        print(f"benchmarks.{name} {' '.join(arguments)}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    lib.run(main)
