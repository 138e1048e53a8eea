"""The recommender: histories of a user's own item ids in, items out."""

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from tiger_jax.data.prepared import hash_user_ids
from tiger_jax.decoding.search.beam_search import Normalize
from tiger_jax.decoding.search.exact_scoring import CatalogueWalk, score_catalogue
from tiger_jax.errors import InputError
from tiger_jax.evaluation.recommend_fn import top_k
from tiger_jax.models.tiger import Params, Tiger, make_decode_fns
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.filters import NUM_SLOTS
from tiger_jax.recommending.item_coder import ItemCoder
from tiger_jax.recommending.programs import KINDS, Batch, Programs, Shapes
from tiger_jax.recommending.requests import (
    Answer,
    Group,
    RecommendedItem,
    Request,
    Resolved,
    resolve,
)
from tiger_jax.semantic_ids.encoder_inputs import encode_histories

MOST_EXACT_ROWS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """What never changes while a recommender runs.

    Attributes:
        params: On the device.
        max_items: Most recent items of a history that the model reads.
        user_hashes: Sorted; of the users that the training knew.
        programs: The compiled searches.
        coder: What gives new items their codes.
    """

    model: Tiger
    params: Params
    max_items: int
    user_hashes: UInt32[np.ndarray, " U"]
    programs: Programs
    shapes: Shapes
    coder: ItemCoder


@dataclasses.dataclass(frozen=True)
class SimilarItem:
    """An item like another one.

    Attributes:
        shared_levels: Leading codewords that the two Semantic IDs share.
        cosine: Of the two items' embeddings; None without embeddings.
    """

    item: RecommendedItem
    shared_levels: int
    cosine: float | None


class Recommender:
    """Recommends from one catalogue, which can be exchanged while it works.

    Example:
        recommender = Recommender.load("runs/my_shop/bundle")
        answer = recommender.recommend(["item 7", "item 12"], k=10)
        for item in answer.items:
            print(item.title, item.score)
    """

    def __init__(self, engine: Engine, catalogue: Catalogue) -> None:
        """Takes a model and a catalogue that belong together."""
        self.engine, self._catalogue = engine, catalogue
        self._walk: tuple[Catalogue, CatalogueWalk] | None = None
        self._walk_lock = threading.Lock()

    @classmethod
    def load(cls, path: str | Path, *, version: int | None = None) -> "Recommender":
        """Loads a bundle that `run.py --stage=export` wrote, checking every hash.

        Args:
            path: The bundle's folder.
            version: Of the catalogue: the newest kept beside the bundle if None, 0
                for the bundle's own.

        Raises:
            InputError: A part is missing, damaged, or of another bundle, or that
                version isn't kept.
        """
        from tiger_jax.recommending.versions import CatalogueVersions

        return CatalogueVersions.open(Path(path)).recommender(version)

    @property
    def catalogue(self) -> Catalogue:
        """What is being recommended from; take it once for one piece of work."""
        return self._catalogue

    def swap(self, catalogue: Catalogue) -> None:
        """Recommends from another catalogue from the next batch on.

        Raises:
            InputError: It was built for other shapes, and would compile again.
        """
        if catalogue.host_trie.plan != self._catalogue.host_trie.plan:
            raise InputError("the new catalogue's trie has another plan than the old")
        self._catalogue = catalogue

    @overload
    def recommend(
        self, histories: Sequence[str], k: int = 10, **options: Any
    ) -> Answer: ...

    @overload
    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, **options: Any
    ) -> list[Answer]: ...

    def recommend(
        self, histories: Sequence[Any], k: int = 10, **options: Any
    ) -> Answer | list[Answer]:
        """Recommends k items to one history of item ids, or to each of many.

        Unknown items are left out and reported. A history without any known item
        gets the most popular ones. Of a longer one, the model reads the last
        `engine.max_items`; all of it counts for `exclude_history`.

        Args:
            histories: Item ids, oldest first; or a list of such lists.
            k: Items a history; at most the bundle's number of beams.
            **options: The other fields of `Request`, for all histories alike:
                user, exclude, exclude_history, filter, prefix, temperature, seed,
                epsilon, exact.

        Raises:
            InputError: An option makes no sense; says which.
        """
        is_one = not len(histories) or isinstance(histories[0], str)
        lists = [histories] if is_one else histories
        requests = [Request(history, k, **options) for history in lists]
        if options.get("temperature") is not None:
            seed = options.get("seed", 0)
            requests = [
                dataclasses.replace(r, seed=(seed + i) % (1 << 32))
                for i, r in enumerate(requests)
            ]
        answers = self.answer(requests)
        return answers[0] if is_one else answers

    def answer(
        self, requests: Sequence[Request], catalogue: Catalogue | None = None
    ) -> list[Answer]:
        """Answers requests of any kinds together, in as few batches as they need.

        Raises:
            InputError: One of them makes no sense.
        """
        catalogue = catalogue or self._catalogue
        for request in requests:
            self.check(request)
        resolved = [resolve(request, catalogue) for request in requests]
        rows = [
            _Row(i, group, r)
            for i, r in enumerate(resolved)
            if len(r.known)
            for group in r.request.groups
        ]
        found: dict[tuple[int, Group], _List] = {}
        for kind in ("exact", *KINDS):
            own = [row for row in rows if row.kind == kind]
            run = self._score if kind == "exact" else functools.partial(self._run, kind)
            size = MOST_EXACT_ROWS if kind == "exact" else self._most_rows
            for start in range(0, len(own), size):
                part = own[start : start + size]
                for row, listed in zip(part, run(catalogue, part), strict=True):
                    found[row.index, row.group] = listed
        return [
            self._popular(catalogue, r)
            if not len(r.known)
            else _merge(catalogue, r, {g: found[i, g] for g in r.request.groups})
            for i, r in enumerate(resolved)
        ]

    def check(self, request: Request) -> None:
        """Refuses what this recommender can't answer.

        Raises:
            InputError: More items are wanted than the search has beams.
        """
        if request.k > self.engine.shapes.num_beams and not request.exact:
            raise InputError(
                f"{request.k} items a user need at least as many beams, and this "
                f"recommender searches with {self.engine.shapes.num_beams}"
            )

    def similar_items(
        self,
        item_id: str,
        k: int = 10,
        *,
        by: Literal["prefix", "embedding"] = "prefix",
        filter: Any = None,
    ) -> list[SimilarItem]:
        """Lists the items most like one.

        Args:
            item_id: The item.
            k: Items wanted.
            by: "prefix": by how many leading codewords are shared, then by cosine.
                "embedding": by cosine alone.
            filter: See `filters`.

        Raises:
            InputError: The item is unknown, or there are no embeddings to compare.
        """
        catalogue = self._catalogue
        if item_id not in catalogue.number_of:
            raise InputError(f"there is no item {item_id[:80]!r} in the catalogue")
        if by not in ("prefix", "embedding"):
            raise InputError(f"by is {by!r}: choose prefix or embedding")
        number = catalogue.number_of[item_id]
        codes, vectors = catalogue.table.codes, catalogue.embeddings
        shared = np.logical_and.accumulate(codes == codes[number], axis=1).sum(1)
        cosine = np.zeros(catalogue.num_items, np.float32)
        if vectors is not None:
            lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[number])
            cosine = vectors @ vectors[number] / np.maximum(lengths, 1e-30)
        elif by == "embedding":
            raise InputError("this catalogue has no embeddings to compare items by")
        passes = np.ones(catalogue.num_items, bool)
        if filter:
            passes = catalogue.mask(
                resolve(Request((), filter=filter), catalogue).filter or {}
            )
        passes[number] = False
        rank = np.lexsort((-cosine, -shared if by == "prefix" else 0 * shared))
        best = rank[passes[rank]][:k]
        return [
            SimilarItem(
                describe(catalogue, int(n), float(cosine[n])),
                int(shared[n]),
                float(cosine[n]) if vectors is not None else None,
            )
            for n in best
        ]

    def warm_up(self, kinds: Sequence[str] = KINDS) -> None:
        """Compiles every program, so that no request waits for it."""
        catalogue = self._catalogue
        trie, _ = catalogue.slots.assign({})
        for kind in kinds:
            for size in self.engine.shapes.batch_sizes:
                batch = Batch.empty(size, self.engine.shapes)
                jax.block_until_ready(
                    self.engine.programs(kind, self.engine.params, trie, batch)
                )

    @property
    def _most_rows(self) -> int:
        """Rows of a batch: as many as fit, each with a filter of its own."""
        return min(self.engine.shapes.batch_sizes[-1], NUM_SLOTS)

    def _run(
        self, kind: str, catalogue: Catalogue, rows: Sequence["_Row"]
    ) -> list["_List"]:
        shapes = self.engine.shapes
        batch = Batch.empty(shapes.batch_size_for(len(rows)), shapes)
        names = [row.mask_name(shapes) for row in rows]
        masks = {
            name: functools.partial(
                row.mask, catalogue, with_exclusion=row.excludes_too_many(shapes)
            )
            for name, row in zip(names, rows, strict=True)
        }
        trie, bits = catalogue.slots.assign(masks)
        batch.inputs[:] = self._encode(catalogue, rows)[
            np.minimum(np.arange(len(batch.inputs)), len(rows) - 1)
        ]
        for i, (row, name) in enumerate(zip(rows, names, strict=True)):
            excluded = row.resolved.exclude
            if not row.excludes_too_many(shapes):
                batch.exclude[i, : len(excluded)] = excluded
            batch.allowed[i] = bits[name]
            batch.prefix[i] = row.resolved.prefix
            batch.seeds[i] = row.seed
            batch.temperatures[i] = row.request.temperature or 1.0
        found = jax.device_get(
            self.engine.programs(kind, self.engine.params, trie, batch)
        )
        return [(found.item_numbers[i], found.scores[i]) for i in range(len(rows))]

    def _score(self, catalogue: Catalogue, rows: Sequence["_Row"]) -> list["_List"]:
        """Scores every item; what is not allowed is taken out afterwards."""
        encoded = self._encode(catalogue, rows)
        size = 1 if len(rows) == 1 else MOST_EXACT_ROWS
        padded = encoded[np.minimum(np.arange(size), len(rows) - 1)]
        scores = np.array(
            _score_all(
                self.engine.model,
                self.engine.shapes.normalize,
                self.engine.params,
                self._walk_of(catalogue),
                jnp.asarray(padded),
            )
        )
        scores = scores[:, : catalogue.num_items]
        listed = []
        for row, own in zip(rows, scores, strict=False):
            codes = catalogue.table.codes
            prefix = row.resolved.prefix[None, :]
            allowed = row.mask(catalogue) & ((prefix < 0) | (codes == prefix)).all(1)
            own[~allowed] = -np.inf
            # Ties go to the smaller Semantic ID, as in the search by beams.
            order = np.lexsort(codes.T[::-1])
            exclude = np.argsort(order)[row.resolved.exclude].astype(np.int32)[None, :]
            places, best = top_k(own[order][None, :], exclude, row.request.k)
            items = np.where(places[0] >= 0, order[places[0]], -1)
            listed.append((items.astype(np.int32), best[0]))
        return listed

    def _walk_of(self, catalogue: Catalogue) -> CatalogueWalk:
        with self._walk_lock:
            if self._walk is None or self._walk[0] is not catalogue:
                walk = CatalogueWalk.build(catalogue.host_trie, fills_plan=True)
                self._walk = (catalogue, jax.device_put(walk))
            return self._walk[1]

    def _encode(
        self, catalogue: Catalogue, rows: Sequence["_Row"]
    ) -> Int32[np.ndarray, "B S"]:
        engine = self.engine
        histories = np.full((len(rows), engine.max_items), -1, np.int32)
        for i, row in enumerate(rows):
            last = row.resolved.known[-engine.max_items :]
            histories[i, : len(last)] = last
        users = [row.request.user for row in rows]
        hashes = hash_user_ids([user or "" for user in users])
        place = np.searchsorted(engine.user_hashes, hashes)
        is_known = np.array([user is not None for user in users])
        if len(engine.user_hashes):
            near = engine.user_hashes[np.minimum(place, len(engine.user_hashes) - 1)]
            is_known &= near == hashes
        else:
            is_known[:] = False
        return encode_histories(
            histories,
            catalogue.table.codes,
            engine.model.layout,
            user_hashes=hashes,
            is_known=is_known,
        )

    def _popular(self, catalogue: Catalogue, resolved: Resolved) -> Answer:
        """The stated fallback: what is allowed, by its number of interactions."""
        request = resolved.request
        lists: dict[Group, _List] = {}
        prefix = resolved.prefix[None, :]
        fits = ((prefix < 0) | (catalogue.table.codes == prefix)).all(1)
        for group in request.groups:
            row = _Row(0, group, resolved)
            counts = catalogue.popularity.astype(np.float32)
            counts[~(row.mask(catalogue) & fits)] = -np.inf
            items, scores = top_k(counts[None], resolved.exclude[None], request.k)
            lists[group] = (items[0], scores[0])
        answer = _merge(catalogue, resolved, lists)
        return dataclasses.replace(answer, by="popularity")


_List = tuple[Int32[np.ndarray, " M"], Float32[np.ndarray, " M"]]


@dataclasses.dataclass(frozen=True)
class _Row:
    """One search: a request, or the part of it that is for one group of items."""

    index: int
    group: Group
    resolved: Resolved

    @property
    def request(self) -> Request:
        return self.resolved.request

    @property
    def kind(self) -> str:
        if self.request.exact:
            return "exact"
        return "search" if self.request.temperature is None else "sample"

    @property
    def seed(self) -> int:
        # The two groups of one request draw differently.
        return (self.request.seed + (self.group == "new") * 0x9E3779B9) % (1 << 32)

    def excludes_too_many(self, shapes: Shapes) -> bool:
        """Whether the exclusion is no list for the search, but part of the mask."""
        return len(self.resolved.exclude) > shapes.max_excluded

    def mask_name(self, shapes: Shapes) -> str:
        too_many = self.excludes_too_many(shapes)
        return self.resolved.mask_name(self.group, too_many=too_many)

    def mask(
        self, catalogue: Catalogue, *, with_exclusion: bool = False
    ) -> Bool[np.ndarray, " N"]:
        """Items that the filter and the group leave, and the exclusion if asked."""
        mask = catalogue.mask(self.resolved.filter or {})
        if self.group != "any":
            mask &= catalogue.is_new == (self.group == "new")
        if with_exclusion:
            mask[self.resolved.exclude] = False
        return mask


def describe(catalogue: Catalogue, number: int, score: float) -> RecommendedItem:
    """An item as it is shown."""
    return RecommendedItem(
        item_id=catalogue.item_ids[number],
        title=catalogue.titles[number],
        category=catalogue.categories[number],
        semantic_id=tuple(catalogue.table.codes[number].tolist()),
        score=score,
        is_new=bool(catalogue.is_new[number]),
    )


def _merge(
    catalogue: Catalogue, resolved: Resolved, lists: Mapping[Group, _List]
) -> Answer:
    """Makes one list of the groups': the new items' best, and the best of the rest."""
    k = resolved.request.k

    def pairs(group: Group, most: int) -> list[tuple[float, int]]:
        if group not in lists:
            return []
        items, scores = lists[group]
        kept = [
            (float(s), int(i)) for i, s in zip(items, scores, strict=True) if i >= 0
        ]
        return kept[:most]

    if "any" in lists:
        chosen = pairs("any", k)
    else:
        new = pairs("new", resolved.request.num_new)
        chosen = pairs("known", k - len(new)) + new
        chosen.sort(key=lambda pair: -pair[0])
    return Answer(
        tuple(describe(catalogue, number, score) for score, number in chosen),
        resolved.unknown_items,
        "tiger",
        catalogue.version,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_all(
    model: Tiger,
    normalize: Normalize,
    params: Params,
    walk: CatalogueWalk,
    inputs: Int32[Array, "B S"],
) -> Float32[Array, "B N"]:
    init_decode, decode_step = make_decode_fns(model)
    return score_catalogue(
        params,
        inputs,
        walk,
        init_decode=init_decode,
        decode_step=decode_step,
        normalize=normalize,
    )
