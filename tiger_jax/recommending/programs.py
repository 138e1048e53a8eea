"""A bundle's searches: of a few fixed shapes, compiled for any machine (`jax.export`).

A program is `searcher.run` of one kind, "search" or "sample". Its shapes depend on
the model, the trie's plan and the batch size alone, so that neither a request nor a
changed catalogue of the same capacity compiles anything. Exported programs are
StableHLO for CPU, GPU and TPU; they need none of the model's code.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from tiger_jax.data.item_vectors import make_content
from tiger_jax.decoding.search import Normalize
from tiger_jax.decoding.trie import Trie
from tiger_jax.decoding.trie.attributes import EVERY_ITEM
from tiger_jax.errors import InputError
from tiger_jax.models.generator import needs_content
from tiger_jax.recommending import searcher
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.parts import Parts
from tiger_jax.recommending.searcher import Params, Queries
from tiger_jax.semantic_ids.encoder_inputs import ItemInputs

PLATFORMS = ("cpu", "cuda", "tpu")
KINDS = ("search", "sample")
SUFFIX = ".stablehlo"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is fixed when programs are made.

    Attributes:
        batch_sizes: Queries per call, rising; others are filled up to one of them.
        num_beams: Most items of a list.
        max_excluded: Excluded items per query that the search takes as a list;
            more become one more filter.
        content_items: Items of a history whose content the model takes; 0 if it takes
            none.
    """

    batch_sizes: tuple[int, ...]
    num_beams: int
    max_excluded: int
    encoder_length: int
    semantic_id_length: int
    normalize: Normalize
    content_items: int = 0

    def batch_size_for(self, num_rows: int) -> int:
        """The smallest batch that holds so many rows, or the largest there is."""
        fits = [size for size in self.batch_sizes if size >= num_rows]
        return fits[0] if fits else self.batch_sizes[-1]

    @classmethod
    def for_parts(
        cls,
        parts: Parts,
        search: searcher.SearchConfig,
        batch_sizes: tuple[int, ...],
        max_excluded: int,
    ) -> "Shapes":
        """What a recommender's programs are made for."""
        layout = parts.model.layout
        length = layout.semantic_id_length
        return cls(
            batch_sizes=batch_sizes,
            num_beams=search.num_beams,
            max_excluded=max_excluded,
            encoder_length=min(layout.num_user_tokens, 1) + parts.max_items * length,
            semantic_id_length=length,
            normalize=search.normalize_for(parts.model.config),
            content_items=parts.max_items * needs_content(parts.model.config),
        )

    @property
    def settings(self) -> searcher.Settings:
        return searcher.Settings(self.num_beams, self.normalize)

    def empty_queries(self, size: int) -> Queries:
        """Rows that ask for nothing in particular."""
        tokens = np.zeros((size, self.encoder_length), np.int32)
        items = np.full((size, self.content_items), -1, np.int32)
        return Queries(
            ItemInputs(tokens, items) if self.content_items else tokens,
            np.full((size, self.max_excluded), -1, np.int32),
            np.full(size, EVERY_ITEM, np.uint32),
            np.full((size, self.semantic_id_length), -1, np.int32),
            np.zeros(size, np.uint32),
            np.ones(size, np.float32),
        )


def embed_catalogue(
    own: searcher.Searcher, catalogue: Catalogue, weights: searcher.DenseWeights
) -> searcher.ItemTable | None:
    """A catalogue's items as the model sees their content; None if it takes none.

    Raises:
        InputError: The catalogue has no embeddings.
    """
    if not needs_content(own.model.config):
        return None
    if catalogue.embeddings is None:
        raise InputError("the model reads content, and the catalogue has no embeddings")
    content = make_content(catalogue.embeddings, catalogue.collaborative)
    return own.embed_items(
        content,
        occurrences=catalogue.occurrences,
        numbers=catalogue.numbers,
        weights=weights,
        num_rows=catalogue.capacity,
    )


class ExportedPrograms:
    """Read from files of StableHLO; compiled for this machine when first called."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Takes files by `program_name`; InputError if one isn't for this platform."""
        self._calls = {name: _read_program(path) for name, path in files.items()}

    def __call__(
        self, kind: str, params: Params, trie: Any, queries: Queries
    ) -> searcher.Found:
        call = self._calls[program_name(kind, len(queries.exclude))]
        return searcher.Found(*call(*_flat(params, trie, queries)))


def program_name(kind: str, batch_size: int) -> str:
    """How a program is called in a bundle."""
    return f"{kind}_{batch_size}"


def export_program(
    kind: str,
    model: nn.Module,
    shapes: Shapes,
    batch_size: int,
    params: Params,
    trie: Trie | searcher.WithItems,
) -> bytes:
    """Lowers one program for all platforms; what is returned holds no parameters.

    The parameters and what is searched go in as flat lists of arrays, in the order in
    which `jax.tree.leaves` gives them.
    """
    queries = shapes.empty_queries(batch_size)
    trees = [jax.tree.structure(tree) for tree in (params, trie, queries)]

    def call(params: list, trie: list, *arrays: Array) -> tuple[Array, ...]:
        own_params = jax.tree.unflatten(trees[0], params)
        own_trie = jax.tree.unflatten(trees[1], trie)
        queries = jax.tree.unflatten(trees[2], arrays)
        return tuple(
            searcher.run(kind, model, shapes.settings, own_params, own_trie, queries)
        )

    structs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _flat(params, trie, queries)
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


def _flat(params: Params, trie: Any, queries: Queries) -> tuple[Any, ...]:
    arrays = map(jnp.asarray, jax.tree.leaves(queries))
    return (jax.tree.leaves(params), jax.tree.leaves(trie), *arrays)


def _read_program(path: Path) -> Any:
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        exported.mlir_module()  # in a dialect that this XLA reads
    except Exception as error:  # flatbuffers and XLA each have errors of their own
        raise InputError(f"{path} is no exported program ({error})") from error
    convention = exported.calling_convention_version
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= convention <= newest:
        raise InputError(
            f"{path} was exported with the calling convention {convention}, and this "
            f"JAX has {oldest} to {newest}"
        )
    platform = jax.default_backend()
    named = {"gpu": "cuda"}.get(platform, platform)
    if named not in exported.platforms:
        raise InputError(
            f"{path} was exported for {', '.join(exported.platforms)}, not for {named}"
        )
    return jax.jit(exported.call)
