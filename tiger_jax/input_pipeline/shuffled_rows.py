"""Embeddings in shards as an endless shuffled stream that is a function of a position.

The order is defined by the seed and by row numbers, not by files. Rows are cut into
blocks that follow one another. An epoch takes all blocks in a random order, a few at
a time, and hands out the rows of these few in a random order. So every row comes once
an epoch; a stream of any number of files is the same; and a run that goes on needs no
more than the number of rows that it had drawn.

How well it shuffles: two rows of one block always come within `num_mixed` blocks of
each other. But rows stand in the order of item numbers, which are a random permutation
of the catalogue already: a block is a random sample of it.
"""

import functools

import numpy as np
from jaxtyping import Float32, Int64

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.workdir.vector_shards import VectorRows


@config("shuffled_rows")
class ShuffleConfig:
    """How much of the embeddings is held at a time.

    Attributes:
        block_rows: Rows that are read together.
        num_mixed: Blocks that are in memory, and whose rows are mixed.
        sample_rows: Rows drawn by seed, once, of which k-means and the scale of the
            embeddings are computed; they stay in memory.
    """

    block_rows: int = 16_384
    num_mixed: int = 8
    sample_rows: int = 131_072

    def __post_init__(self) -> None:
        if min(self.block_rows, self.num_mixed, self.sample_rows) < 1:
            raise InputError("shuffled_rows.ShuffleConfig: all must be at least 1")


class ShuffledRows:
    """The rows from any position on; see the module."""

    def __init__(self, rows: VectorRows, config: ShuffleConfig, *, seed: int) -> None:
        self._rows, self._config, self._seed = rows, config, seed
        self._mixed = functools.lru_cache(maxsize=1)(self._mix)
        self._epoch = functools.lru_cache(maxsize=1)(self._plan)

    def draw(self, position: int, count: int) -> Float32[np.ndarray, "B E"]:
        """Rows number `position` to `position + count` of the stream."""
        parts, end = [], position + count
        while position < end:
            epoch, within = divmod(position, self._rows.num_rows)
            _, ends = self._epoch(epoch)
            group = int(np.searchsorted(ends, within, side="right"))
            mixed = self._mixed(epoch, group)
            start = within - (int(ends[group]) - len(mixed))
            parts.append(mixed[start : start + end - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _plan(
        self, epoch: int
    ) -> tuple[Int64[np.ndarray, " blocks"], Int64[np.ndarray, " groups"]]:
        """An epoch's blocks in their order, and where each few of them end."""
        size, mixed = self._config.block_rows, self._config.num_mixed
        total = self._rows.num_rows
        order = np.random.default_rng([self._seed, epoch]).permutation(
            -(-total // size)
        )
        ends = np.cumsum(np.minimum(size, total - order * size))
        last = np.arange(mixed - 1, len(order) + mixed - 1, mixed)
        return order, ends[np.minimum(last, len(order) - 1)]

    def _mix(self, epoch: int, group: int) -> Float32[np.ndarray, "_ E"]:
        order, _ = self._epoch(epoch)
        size, mixed = self._config.block_rows, self._config.num_mixed
        total = self._rows.num_rows
        starts = size * order[group * mixed : (group + 1) * mixed]
        whole = np.concatenate(
            [self._rows.read(s, min(s + size, total)) for s in starts.tolist()]
        )
        rng = np.random.default_rng([self._seed, epoch, group])
        return whole[rng.permutation(len(whole))]
