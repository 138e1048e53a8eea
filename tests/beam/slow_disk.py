"""The command line on a disk where every shard takes a while."""

import sys
import time

from tiger_jax.cli import main
from tiger_jax.workdir.shards import ShardWriter

SECONDS = 0.15


def run(arguments: list[str]) -> None:
    """Runs the command in a process of its own, which it ends."""
    write = ShardWriter.write

    def write_slowly(self, shard, write_file, **facts):
        def halves(path):
            time.sleep(SECONDS)
            rows = write_file(path)
            time.sleep(SECONDS)  # the file is written, and not yet in its place
            return rows

        write(self, shard, halves, **facts)

    ShardWriter.write = write_slowly
    sys.exit(main(["run.py", *arguments]))
