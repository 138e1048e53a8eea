"""Catalogues and models for the decoding benchmark."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tiger_jax.decoding.trie import Trie
from tiger_jax.models.generator import init_params, make_decode_fns
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.semantic_ids.collisions import group_rows
from tiger_jax.semantic_ids.token_ids import TokenLayout

NUM_HISTORY_ITEMS = 20
NUM_USER_TOKENS = 2000


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Drawn Semantic IDs, and the trie of them; the last one used is kept."""

    items: int
    codebook_size: int
    length: int
    distribution: str

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.length

    @property
    def codes(self) -> np.ndarray:
        """In any order, int32 [N T]."""
        return draw_codes(*dataclasses.astuple(self))

    @property
    def sorted_codes(self) -> np.ndarray:
        """In lexicographic order, as STATIC needs them."""
        return self.codes[np.lexsort(self.codes.T[::-1])]

    @property
    def trie(self) -> Trie:
        return _build_trie(self)


@functools.lru_cache(maxsize=1)
def _build_trie(catalogue: Catalogue) -> Trie:
    return Trie.build(catalogue.codes, catalogue.sizes)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement's sizes; also what a row says of it."""

    part: str
    catalogue: Catalogue
    batch: int = 0
    beams: int = 0
    level: int | None = None

    def describe(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        sizes = {"part": self.part, **found.pop("catalogue"), **found}
        return {k: v for k, v in sizes.items() if v is not None and v != 0}


@functools.lru_cache(maxsize=1)
def draw_codes(
    items: int, codebook_size: int, length: int, distribution: str
) -> np.ndarray:
    """Distinct Semantic IDs in random order, uniform or Zipf-like at every level.

    Zipf: codeword k has probability proportional to 1 / (k + 1) at every level, so
    few prefixes hold most items, and some node of every depth has nearly K children.
    """
    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, codebook_size + 1)
    upto = np.cumsum(weights / weights.sum())[:-1]
    codes = np.empty((0, length), np.int32)
    while len(codes) < items:
        shape = (max(items - len(codes), items // 4), length)
        if distribution == "random":
            drawn = rng.integers(0, codebook_size, shape, np.int32)
        else:
            drawn = np.searchsorted(upto, rng.random(shape)).astype(np.int32)
        codes = np.concatenate([codes, drawn])
        _, firsts = np.unique(group_rows(codes), return_index=True)
        codes = codes[firsts]
    return codes[rng.permutation(len(codes))[:items]]


def around(
    model: Any, search: Callable[..., Any], *arguments: Any, **options: Any
) -> Callable[[], Any]:
    """A jitted search by a model's decoder, of inputs and what is searched."""
    run = functools.partial(
        search, init_decode=model.init_decode, decode_step=model.decode_step, **options
    )
    return functools.partial(jax.jit(run), model.params, *arguments)


class TrivialModel:
    """Logits read from a table: the request and the last codeword choose the row."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self.rows = tuple(sizes), max(sizes)
        self.params = jax.random.normal(jax.random.key(0), (self.rows, self.rows))

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
        del parents
        row = (codewords + requests[:, None]) % self.rows
        logits = params.at[row].get(mode="promise_in_bounds")
        return logits[..., : self.sizes[level]], requests


class RealModel:
    """TIGER with random weights, in the sizes of the paper."""

    def __init__(self, sizes: Sequence[int], config: TigerConfig) -> None:
        self.layout = TokenLayout(tuple(sizes), NUM_USER_TOKENS)
        model = Tiger(config, self.layout)
        self.config = config
        self.params = nn.unbox(init_params(model, jax.random.key(0)))
        decode_fns: tuple[Callable[..., Any], ...] = make_decode_fns(model)
        self.init_decode, self.decode_step = decode_fns

    def encoded(self) -> Any:
        """The same model for inputs that its `init_decode` has been through."""
        return SimpleNamespace(
            params=self.params,
            init_decode=lambda params, memory: memory,
            decode_step=self.decode_step,
        )

    def inputs(self, batch: int, codes: np.ndarray) -> jax.Array:
        """Full histories of random items, int32 [B S]."""
        rng = np.random.default_rng(1)
        history = codes[rng.integers(0, len(codes), (batch, NUM_HISTORY_ITEMS))]
        tokens = self.layout.tokens_of(history)
        user = rng.integers(0, NUM_USER_TOKENS, (batch, 1))
        user += self.layout.first_user_token
        inputs = np.concatenate([user, tokens.reshape(batch, -1)], axis=1)
        return jnp.asarray(inputs, jnp.int32)
