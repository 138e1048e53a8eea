"""Runs the benchmarks in sizes that end within minutes: `make bench`.

Each prints JSON rows; the comparisons with other code are left out where that code
isn't installed, and say so on standard error. Every benchmark has a command of its
own for the full sizes: python -m benchmarks.NAME --help.
"""

import os
import subprocess
import sys
from pathlib import Path

BEAUTY = Path(os.environ.get("TIGER_DATA") or "nowhere") / "amazon2014_beauty"
REAL = [f"--data_dir={BEAUTY}"] if BEAUTY.is_dir() else []

SMALL = {
    "training.step": [*REAL, "--cases=buckets", "--dtypes=float32", "--rounds=3"],
    "decoding": ["--quick"],
}


def main() -> int:
    """Runs one after the other; a failing one doesn't keep the next from running."""
    failed = []
    for name, arguments in SMALL.items():
        print(f"benchmarks.{name} {' '.join(arguments)}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
