"""The searches a recommender runs, of a few fixed shapes: jitted here, or exported.

A program takes the parameters, the trie and one batch of requests as arrays and
gives item numbers and scores. Its shapes depend on the model, the trie's plan and
the batch size alone, so that neither a request nor a changed catalogue of the same
capacity compiles anything. Exported programs are StableHLO (`jax.export`) for CPU,
GPU and TPU; they need none of the model's code.

*   "search" is the exact beam search.
*   "sample" draws distinct items at a temperature. Each row has a seed of its own,
    so an answer depends on its request and not on who shares the batch.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tiger_jax.decoding.search.beam_search import Normalize, beam_search
from tiger_jax.decoding.search.sampling import sample_distinct_items
from tiger_jax.decoding.trie.attributes import EVERY_ITEM
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.models.tiger import Params, Tiger, make_decode_fns

PLATFORMS = ("cpu", "cuda", "tpu")
KINDS = ("search", "sample")
SUFFIX = ".stablehlo"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is fixed when programs are made.

    Attributes:
        batch_sizes: Requests a call, rising; others are filled up to one of them.
        num_beams: Most items a list.
        max_excluded: Excluded items a request that the search takes as a list;
            more become one more filter.
        encoder_length: S.
        semantic_id_length: T.
        normalize: See `beam_search`.
    """

    batch_sizes: tuple[int, ...]
    num_beams: int
    max_excluded: int
    encoder_length: int
    semantic_id_length: int
    normalize: Normalize

    def batch_size_for(self, num_rows: int) -> int:
        """The smallest batch that holds so many rows, or the largest there is."""
        fits = [size for size in self.batch_sizes if size >= num_rows]
        return fits[0] if fits else self.batch_sizes[-1]


class Batch(NamedTuple):
    """Requests as arrays.

    Attributes:
        inputs: int32 [B S]; encoder tokens.
        exclude: int32 [B X]; item numbers, padded with -1.
        allowed: uint32 [B]; one bit of the trie's, `EVERY_ITEM` for no filter.
        prefix: int32 [B T]; codewords that Semantic IDs begin with, -1 for any.
        seeds: uint32 [B]; of the draws ("sample" only).
        temperatures: float32 [B]; of the draws ("sample" only).
    """

    inputs: Any
    exclude: Any
    allowed: Any
    prefix: Any
    seeds: Any
    temperatures: Any

    @classmethod
    def empty(cls, size: int, shapes: Shapes) -> "Batch":
        """Rows that ask for nothing in particular."""
        return cls(
            np.zeros((size, shapes.encoder_length), np.int32),
            np.full((size, shapes.max_excluded), -1, np.int32),
            np.full(size, EVERY_ITEM, np.uint32),
            np.full((size, shapes.semantic_id_length), -1, np.int32),
            np.zeros(size, np.uint32),
            np.ones(size, np.float32),
        )


class Found(NamedTuple):
    """Each request's items, best (or first drawn) first; -1 and -inf where none."""

    item_numbers: Any
    scores: Any


@runtime_checkable
class Programs(Protocol):
    """Runs a batch of one of the batch sizes."""

    def __call__(self, kind: str, params: Params, trie: Trie, batch: Batch) -> Found:
        """Runs the program of a kind ("search" or "sample")."""


def _search(
    model: Tiger, shapes: Shapes, params: Params, trie: Trie, batch: Batch
) -> Found:
    init_decode, decode_step = make_decode_fns(model)
    found = beam_search(
        params,
        batch.inputs,
        trie,
        init_decode=init_decode,
        decode_step=decode_step,
        num_beams=shapes.num_beams,
        normalize=shapes.normalize,
        exclude=batch.exclude,
        allowed=batch.allowed,
        prefix=batch.prefix,
    )
    return Found(*found)


def _sample(
    model: Tiger, shapes: Shapes, params: Params, trie: Trie, batch: Batch
) -> Found:
    init_decode, decode_step = make_decode_fns(model)

    def draw(row: Batch) -> Found:
        found = sample_distinct_items(
            params,
            row.inputs[None],
            trie,
            jax.random.key(row.seeds),
            init_decode=init_decode,
            decode_step=decode_step,
            num_samples=shapes.num_beams,
            temperature=row.temperatures,
            exclude=row.exclude[None],
            allowed=row.allowed[None],
            prefix=row.prefix[None],
        )
        return Found(found.item_numbers[0], found.scores[0])

    return jax.vmap(draw)(batch)


_FUNCTIONS = {"search": _search, "sample": _sample}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    kind: str, model: Tiger, shapes: Shapes, params: Params, trie: Trie, batch: Batch
) -> Found:
    return _FUNCTIONS[kind](model, shapes, params, trie, batch)


@dataclasses.dataclass(frozen=True)
class JittedPrograms:
    """Compiled from the model's code when first called."""

    model: Tiger
    shapes: Shapes

    def __call__(self, kind: str, params: Params, trie: Trie, batch: Batch) -> Found:
        return _run(kind, self.model, self.shapes, params, trie, batch)


class ExportedPrograms:
    """Read from files of StableHLO; compiled for this machine when first called."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Takes the file of each program, by `program_name`.

        Raises:
            InputError: A file is no exported program, or not one for this platform.
        """
        self._calls = {name: _read_program(path) for name, path in files.items()}

    def __call__(self, kind: str, params: Params, trie: Trie, batch: Batch) -> Found:
        call = self._calls[program_name(kind, len(batch.inputs))]
        return Found(*call(*_flat(params, trie, batch)))


def program_name(kind: str, batch_size: int) -> str:
    """How a program is called in a bundle."""
    return f"{kind}_{batch_size}"


def export_program(
    kind: str, model: Tiger, shapes: Shapes, batch_size: int, params: Params, trie: Trie
) -> bytes:
    """Lowers one program for all platforms; what is returned holds no parameters.

    The parameters and the trie go in as flat lists of arrays, in the order in which
    `jax.tree.leaves` gives them.
    """
    batch = Batch.empty(batch_size, shapes)
    trees = [jax.tree.structure(tree) for tree in (params, trie)]

    def call(params: list, trie: list, *arrays: Array) -> tuple[Array, ...]:
        own_params = jax.tree.unflatten(trees[0], params)
        own_trie = jax.tree.unflatten(trees[1], trie)
        found = _FUNCTIONS[kind](model, shapes, own_params, own_trie, Batch(*arrays))
        return tuple(found)

    structs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _flat(params, trie, batch)
    )
    with _without_locations():
        exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(*structs)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps files and lines of this code, and of who called it, out of a program.

    Else its bytes, and the bundle's content hash, would tell where the code lies.
    """
    name = "jax_traceback_in_locations_limit"
    usual = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, usual)


def _flat(params: Params, trie: Trie, batch: Batch) -> tuple[Any, ...]:
    return (jax.tree.leaves(params), jax.tree.leaves(trie), *map(jnp.asarray, batch))


def _read_program(path: Path) -> Any:
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers and XLA each have errors of their own
        raise InputError(f"{path} is no exported program ({error})") from error
    platform = jax.default_backend()
    named = {"gpu": "cuda"}.get(platform, platform)
    if named not in exported.platforms:
        raise InputError(
            f"{path} was exported for {', '.join(exported.platforms)}, not for {named}"
        )
    return jax.jit(exported.call)
