"""A bundle: one folder that holds all a recommender needs, and proves it.

==================  ==============================================================
part                what
==================  ==============================================================
README.md           what it is, for people; Hugging Face's hub shows it
bundle.json         model sizes, token layout, shapes, and the hash of every part
params.safetensors  the parameters, by their paths
programs/           the searches as StableHLO, one file a kind and batch size
semantic_ids/       item ids and codes
trie/               the trie over them, with room for more
items/              titles, brands, prices, categories, further columns, popularity
occurrences.npy     how often each item was in the histories of training
user_hashes.npy     the users that the training knew
embeddings.npy      the items' vectors, if there are any
collaborative.npy   what is joined to them as content, if the model takes content
quantizer/          embedding -> codes, for items that join later, if there is one
encoder/            text -> embedding, for the same
==================  ==============================================================

``manifest.json`` has the SHA-256 of every file, and may have a signature beside it,
``manifest.sig``; ``bundle.json`` has the content hash of
every part, and through it which parts belong together. Both are checked on loading.
Nothing is pickled: arrays are npy and safetensors, tables Parquet, programs
StableHLO, the rest JSON.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from flax import traverse_util

from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.extensions import config_of, settings_of
from tiger_jax.models.generator import build_model, needs_content
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.quantizers.store import load_quantizer, save_quantizer
from tiger_jax.recommending import programs as compiled
from tiger_jax.recommending.hub import fetch_bundle
from tiger_jax.recommending.item_encoder import ItemEncoder
from tiger_jax.recommending.parts import PARAMS, Parts
from tiger_jax.recommending.programs import KINDS, SUFFIX, Shapes, program_name
from tiger_jax.recommending.searcher import DenseWeights, Searcher
from tiger_jax.recommending.trained_model import content_shape_of
from tiger_jax.recommending.trust import ANY, SIGNATURE, Trust
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.hashing import hash_arrays, hash_file, hash_json
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

FORMAT = 4
# 2 has no hash of its trie; 3 and before don't say how often items were trained on, and
# their programs let a dense head order only what the beams had found.
_READABLE = (2, 3, FORMAT)
BUNDLE, CARD = "bundle", "README.md"
# What another export of the same recommender may have otherwise.
_SHAPED = ("shapes", "trie", "programs")
_FACTS, _PROGRAMS = "bundle.json", "programs"


def save_bundle(folder: Path, parts: Parts, shapes: Shapes) -> str:
    """Writes every part of a bundle; the manifest is the artifact's to write.

    Returns:
        The bundle's content hash.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(parts.params, sep="/")
    arrays = {name: np.asarray(array, order="C") for name, array in flat.items()}
    # By hand: the library's own files can be read by their owner alone.
    (folder / PARAMS).write_bytes(save(arrays))
    parts.table.save(folder / "semantic_ids")
    catalogue = parts.catalogue()
    trie = catalogue.host_trie
    own = Searcher(parts.model, parts.params, shapes.settings)
    items = compiled.embed_catalogue(own, catalogue, parts.dense_weights)
    searched = trie if items is None else items.over(trie)
    trie.save(folder / "trie", content_hash=parts.table.content_hash)
    (folder / "items").mkdir()
    pa.parquet.write_table(parts.items, folder / "items" / "items.parquet")
    save_arrays(
        folder / "items", {"popularity": parts.popularity, "is_new": parts.is_new}
    )
    own_arrays = {"user_hashes": parts.user_hashes, "occurrences": parts.occurrences}
    save_arrays(folder, own_arrays)
    if parts.embeddings is not None:
        save_arrays(folder, {"embeddings": parts.embeddings})
    if parts.collaborative is not None:
        save_arrays(folder, {"collaborative": parts.collaborative})
    if parts.encoder is not None:
        parts.encoder.save(folder / "encoder")
    if parts.quantizer is not None:
        save_quantizer(parts.quantizer, folder / "quantizer")
    (folder / _PROGRAMS).mkdir()
    programs = {}
    for kind in KINDS:
        for size in shapes.batch_sizes:
            path = folder / _PROGRAMS / (program_name(kind, size) + SUFFIX)
            path.write_bytes(
                compiled.export_program(
                    kind, parts.model, shapes, size, parts.params, searched
                )
            )
            programs[program_name(kind, size)] = hash_file(path)
    facts = {
        "format": FORMAT,
        "model": settings_of(parts.model.config, TigerConfig),
        "layout": parts.model.layout.to_json(),
        "max_items": parts.max_items,
        "collaborative_dims": parts.collaborative_dims,
        **parts.content_facts,
        "shapes": dataclasses.asdict(shapes),
        "parts": parts.part_hashes,
        "trie": _hash_trie(trie),
        "programs": programs,
    }
    write_json(folder / _FACTS, facts)
    return _content_hash(facts)


def _content_hash(facts: Mapping[str, Any]) -> str:
    return hash_json({k: v for k, v in facts.items() if k not in _SHAPED})


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that has been read and found whole.

    Attributes:
        shapes: What its programs were made for.
        content_hash: Names the parts, whatever shapes the programs have. Versions of
            the catalogue are tied to it.
    """

    folder: Path
    parts: Parts
    shapes: Shapes
    content_hash: str
    format: int = FORMAT

    @classmethod
    def load(cls, source: str | Path, trust: Trust = ANY) -> "Bundle":
        """Reads all parts and checks them; InputError says which one is wrong.

        Args:
            source: The bundle's folder, or an address that `fetch_bundle` takes.
            trust: Which bundles may be read at all.
        """
        folder = fetch_bundle(source)
        if not folder.is_dir():
            raise InputError(
                f"{folder} is no bundle's folder: make one with run.py --stage=export"
            )
        trust.check(folder)
        manifest = artifacts.load_manifest(folder)
        listed = {*manifest.files, artifacts.MANIFEST, SIGNATURE}
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(folder).as_posix() not in listed:
                raise InputError(
                    f"{path} is no part of this bundle, whose manifest doesn't list "
                    "it: take it away"
                )
        with reading(folder):
            facts = read_json(folder / _FACTS)
            if facts["format"] not in _READABLE:
                raise InputError(
                    f"{folder} has format {facts['format']}, this version reads "
                    f"{' and '.join(map(str, _READABLE))}: export it again, or serve "
                    "it by the version of tiger_jax that its manifest names"
                )
            parts, shapes, trie = _read_parts(folder, facts)
        _check_hashes(folder, facts, parts, trie)
        return cls(folder, parts, shapes, _content_hash(facts), facts["format"])

    def programs(self) -> compiled.ExportedPrograms:
        """Reads the exported programs; InputError if this version can't run them."""
        if self.format < 4 and needs_content(self.parts.model.config):
            raise InputError(
                f"the programs of {self.folder}, format {self.format}, let the dense "
                "head propose nothing of its own"
            )
        folder = self.folder / _PROGRAMS
        names = [program_name(k, b) for k in KINDS for b in self.shapes.batch_sizes]
        return compiled.ExportedPrograms({n: folder / (n + SUFFIX) for n in names})


def _read_parts(folder: Path, facts: Mapping[str, Any]) -> tuple[Parts, Shapes, Trie]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    sizes = facts["shapes"]
    shapes = Shapes(**{**sizes, "batch_sizes": tuple(sizes["batch_sizes"])})
    try:
        flat = load_file(folder / PARAMS)
    except SafetensorError as error:
        raise InputError(f"{folder / PARAMS} can't be read ({error})") from error
    arrays = load_arrays(folder / "items", ["popularity", "is_new"])
    table = SemanticIdTable.load(folder / "semantic_ids")
    trie = Trie.load(folder / "trie", content_hash=table.content_hash)
    has = facts["parts"].__contains__
    optional = ("embeddings", "collaborative", "occurrences")
    names = [n for n in optional if has(f"{n}.npy")]
    loose = load_arrays(folder, ["user_hashes", *names])
    parts = Parts(
        model=build_model(
            config_of(facts["model"], TigerConfig, folder / _FACTS),
            TokenLayout.from_json(facts["layout"]),
            content_shape_of(facts),
        ),
        params=traverse_util.unflatten_dict(flat, sep="/"),
        max_items=int(facts["max_items"]),
        table=table,
        items=pa.parquet.read_table(folder / "items" / "items.parquet"),
        popularity=arrays["popularity"],
        occurrences=loose.get("occurrences", np.zeros(table.num_items, np.int64)),
        is_new=arrays["is_new"],
        user_hashes=loose["user_hashes"],
        embeddings=loose.get("embeddings"),
        encoder=ItemEncoder.load(folder / "encoder") if has("encoder") else None,
        quantizer=load_quantizer(folder / "quantizer") if has("quantizer") else None,
        collaborative_dims=int(facts["collaborative_dims"]),
        plan=trie.plan,
        collaborative=loose.get("collaborative"),
        dense_weights=DenseWeights(
            float(facts.get("dense_weight", 0.0)),
            float(facts.get("popularity_weight", 0.0)),
        ),
    )
    return parts, shapes, trie


def _hash_trie(trie: Trie) -> str:
    return hash_arrays({"leaves": jax.tree.leaves(trie)})


def _check_hashes(
    folder: Path, facts: Mapping[str, Any], parts: Parts, trie: Trie
) -> None:
    """Refuses parts that are whole but of another bundle."""
    again = "put the bundle's own back, or export it again"
    found = parts.part_hashes
    found["trie"] = _hash_trie(trie)
    trie_hash = {"trie": facts["trie"]} if facts["format"] > 2 else {}
    for name, expected in {**facts["parts"], **trie_hash}.items():
        if found.get(name) != expected:
            raise InputError(
                f"{folder / name} is {found.get(name, 'missing')[:12]}, but {_FACTS} "
                f"names {expected[:12]}: it is of another bundle; {again}"
            )
    for name, expected in facts["programs"].items():
        path = folder / _PROGRAMS / (name + SUFFIX)
        if not path.is_file() or hash_file(path) != expected:
            raise InputError(f"{path} is not the program that {_FACTS} names: {again}")
    sizes = parts.model.layout.codebook_sizes
    if sizes != parts.table.codebook_sizes or sizes != parts.plan.codebook_sizes:
        raise InputError(
            f"{folder}: the model's codebooks {sizes}, those of semantic_ids "
            f"{parts.table.codebook_sizes} and of the trie {parts.plan.codebook_sizes} "
            f"differ; {again}"
        )
    if parts.items["item_id"].to_pylist() != list(parts.table.item_ids):
        raise InputError(
            f"{folder / 'items'} and semantic_ids don't hold the same items; {again}"
        )
