"""Catalogues and models for the decoding benchmark."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiger_jax.models.tiger import Tiger, TigerConfig, init_params, make_decode_fns
from tiger_jax.semantic_ids.token_ids import TokenLayout

NUM_HISTORY_ITEMS = 20
NUM_USER_TOKENS = 2000


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement's sizes; also what a row says of it."""

    part: str
    items: int
    codebook_size: int
    length: int
    distribution: str
    batch: int = 0
    beams: int = 0
    level: int | None = None

    def describe(self) -> dict[str, Any]:
        """The fields that are used."""
        found = dataclasses.asdict(self)
        return {k: v for k, v in found.items() if v is not None and v != 0}


@functools.lru_cache(maxsize=1)
def draw_codes(
    items: int, codebook_size: int, length: int, distribution: str
) -> np.ndarray:
    """Distinct Semantic IDs in random order, uniform or Zipf-like at every level.

    Zipf: codeword k has probability proportional to 1 / (k + 1) at every level, so
    few prefixes hold most items, and some node of every depth has nearly K children.
    """
    rng = np.random.default_rng(0)
    bits = (codebook_size - 1).bit_length()
    weights = 1.0 / np.arange(1, codebook_size + 1)
    cumulative = np.cumsum(weights / weights.sum())
    wide = bits * length > 64
    found = np.empty((0, 2 if wide else 1), np.uint64)
    while len(found) < items:
        num_draws = max(items - len(found), items // 4)
        words = np.zeros((num_draws, found.shape[1]), np.uint64)
        for level in range(length):
            if distribution == "random":
                draw = rng.integers(0, codebook_size, num_draws, dtype=np.uint32)
            else:
                draw = np.searchsorted(cumulative, rng.random(num_draws))
                draw = np.minimum(draw, codebook_size - 1)
            word = words[:, level % words.shape[1]]
            word <<= np.uint64(bits)
            word |= draw.astype(np.uint64)
        found = np.concatenate([found, words])
        view = np.ascontiguousarray(found).view([("", np.uint64)] * found.shape[1])
        found = np.unique(view).view(np.uint64).reshape(-1, found.shape[1])
    found = found[rng.permutation(len(found))[:items]]
    codes = np.empty((items, length), np.int32)
    mask = np.uint64((1 << bits) - 1)
    for level in reversed(range(length)):
        word = found[:, level % found.shape[1]]
        codes[:, level] = word & mask
        word >>= np.uint64(bits)
    return codes


def sort_codes(codes: np.ndarray) -> np.ndarray:
    """In lexicographic order, as STATIC needs them."""
    return codes[np.lexsort(codes.T[::-1])]


class TrivialModel:
    """Logits read from a table: the request and the last codeword choose the row."""

    def __init__(self, codebook_size: int) -> None:
        """Draws the table."""
        size = (codebook_size, codebook_size)
        self.size = codebook_size
        self.params = jax.random.normal(jax.random.key(0), size)

    def init_decode(self, params: jax.Array, requests: jax.Array) -> jax.Array:
        """Requests are int32 [B]."""
        del params
        return requests

    def decode_step(
        self,
        params: jax.Array,
        requests: jax.Array,
        codewords: jax.Array,
        parents: jax.Array,
        level: int,
    ) -> tuple[jax.Array, jax.Array]:
        """The seam of `beam_search`."""
        del parents, level
        row = (codewords + requests[:, None]) % self.size
        return params.at[row].get(mode="promise_in_bounds"), requests

    def inputs(self, batch: int) -> jax.Array:
        """Requests."""
        return jnp.arange(batch, dtype=jnp.int32)


class RealModel:
    """TIGER with random weights, in the sizes of the paper."""

    def __init__(self, codebook_size: int, length: int, config: TigerConfig) -> None:
        """Draws the weights."""
        self.layout = TokenLayout((codebook_size,) * length, NUM_USER_TOKENS)
        model = Tiger(config, self.layout)
        self.config = config
        self.params = jax.tree.map(
            lambda x: x.value if hasattr(x, "value") else x,
            init_params(model, jax.random.key(0)),
            is_leaf=lambda x: hasattr(x, "value"),
        )
        self.init_decode: Callable[..., Any]
        self.decode_step: Callable[..., Any]
        self.init_decode, self.decode_step = make_decode_fns(model)

    def encoded(self) -> "EncodedModel":
        """The same model for inputs that went through its encoder."""
        return EncodedModel(self.params, self.decode_step)

    def inputs(self, batch: int, codes: np.ndarray) -> jax.Array:
        """Full histories of random items, int32 [B S]."""
        rng = np.random.default_rng(1)
        history = codes[rng.integers(0, len(codes), (batch, NUM_HISTORY_ITEMS))]
        tokens = self.layout.tokens_of(history)
        user = self.layout.first_user_token + rng.integers(
            0, NUM_USER_TOKENS, (batch, 1)
        )
        return jnp.asarray(
            np.concatenate([user, tokens.reshape(batch, -1)], axis=1), jnp.int32
        )


@dataclasses.dataclass(frozen=True)
class EncodedModel:
    """A `RealModel` whose inputs are what its `init_decode` returned."""

    params: Any
    decode_step: Callable[..., Any]

    def init_decode(self, params: Any, memory: Any) -> Any:
        """Takes the memory as it is."""
        del params
        return memory
