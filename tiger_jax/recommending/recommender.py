"""The recommender: histories of a user's own item ids in, items out."""

import dataclasses
import functools
import threading
import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt32

from tiger_jax.data.prepared import hash_user_ids
from tiger_jax.errors import InputError
from tiger_jax.evaluation.recommend_fn import top_k
from tiger_jax.progress import Progress, say
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.filters import NUM_SLOTS
from tiger_jax.recommending.hub import fetch_bundle
from tiger_jax.recommending.parts import Parts
from tiger_jax.recommending.programs import KINDS, Shapes, embed_catalogue
from tiger_jax.recommending.requests import (
    Answer,
    Group,
    RecommendedItem,
    Request,
    Resolved,
    SimilarItem,
    resolve,
)
from tiger_jax.recommending.searcher import (
    MAX_EXACT_ROWS,
    NO_DENSE_HEAD,
    DenseWeights,
    Found,
    ItemTable,
    Programs,
    SearchConfig,
    Searcher,
)
from tiger_jax.recommending.trust import ANY, Trust
from tiger_jax.recommending.updates import UpdateReport
from tiger_jax.recommending.versions import CatalogueVersions, UnconfirmedError
from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.reading import read_unchanged

# Of a recommender that is compiled when it is asked: rows of a batch, listed items.
UNEXPORTED_BATCHES, UNEXPORTED_EXCLUDED = (1, 31), 64


@dataclasses.dataclass(eq=False, repr=False)
class Recommender:
    """Recommends from one catalogue, which can be exchanged while it works.

    Examples:
        recommender = Recommender.load("runs/my_shop/bundle")
        answer = recommender.recommend(["item 7", "item 12"], k=10)
        for item in answer.items:
            print(item.title, item.score)

    Attributes:
        catalogue: What is being recommended from; take it once for one piece of work,
            and exchange it by `swap`.
        max_items: Most recent items of a history that the model reads.
        user_hashes: Sorted; of the users that the training knew.
        dense_weights: How a dense head's log p(item) counts beside log p(codes).
        model: The beginning of its bundle's hash, named in every answer.
    """

    searcher: Searcher
    catalogue: Catalogue
    shapes: Shapes
    max_items: int
    user_hashes: UInt32[np.ndarray, " U"]
    dense_weights: DenseWeights = NO_DENSE_HEAD
    model: str = ""

    def __post_init__(self) -> None:
        self._change_lock = threading.Lock()
        self._tables: MutableMapping[Catalogue, Any] = weakref.WeakKeyDictionary()
        self.items_of(self.catalogue)

    @classmethod
    def load(
        cls,
        source: str | Path | CatalogueVersions,
        *,
        version: int | None = None,
        expected_hash: str | Sequence[str] = (),
        public_key: str | None = None,
    ) -> "Recommender":
        """Loads a bundle that `run.py --stage=export` wrote, checking every hash.

        Args:
            source: The bundle's folder; ``hf://owner/name``, with ``@revision`` if
                wanted, for one on the Hugging Face hub; or the versions beside one
                that was read.
            version: Of the catalogue: the newest kept beside the bundle if None, 0
                for the bundle's own.
            expected_hash: The SHA-256 of the bundle's manifest, or several, one of
                which it must have.
            public_key: A PEM file with the Ed25519 key that must have signed it.

        Raises:
            InputError: A part is missing, damaged, or of another bundle, or that
                version isn't kept.
        """
        if not isinstance(source, CatalogueVersions):
            given = [expected_hash] if isinstance(expected_hash, str) else expected_hash
            folder, trust = fetch_bundle(source), Trust(given, public_key)
            return load_with_versions(folder, version=version, trust=trust)[0]
        if expected_hash or public_key:
            raise InputError(
                "this bundle has been read: give CatalogueVersions.open, which reads "
                "it, trust=Trust(hashes, public_key)"
            )
        bundle, catalogue = source.bundle, source.load(version)
        try:
            programs: Programs | None = bundle.programs()
        except InputError as error:
            made = artifacts.load_manifest(bundle.folder, verify=False).made
            exported = made.get("packages", {}).get("jax", "another version")
            programs = None
            say(
                f"note: {error} (exported under JAX {exported}, and this is "
                f"{jax.__version__}): the searches are compiled from the model's code"
            )
        recommender = cls.of_parts(bundle.parts, bundle.shapes, catalogue, programs)
        # A copy would embed the catalogue's items once more.
        recommender.model = bundle.content_hash[:12]
        return recommender

    @classmethod
    def of_workdir(
        cls, workdir: str | Path, search: SearchConfig | None = None
    ) -> "Recommender":
        """The recommender that a work directory holds, compiled when first asked.

        Raises:
            InputError: A part can't be read, or the parts don't belong together.
        """
        parts = Parts.of_workdir(Path(workdir), for_new_items=False)
        shapes = Shapes.for_parts(
            parts, search or SearchConfig(), UNEXPORTED_BATCHES, UNEXPORTED_EXCLUDED
        )
        return cls.of_parts(parts, shapes)

    @classmethod
    def of_parts(
        cls,
        parts: Parts,
        shapes: Shapes,
        catalogue: Catalogue | None = None,
        programs: Programs | None = None,
    ) -> "Recommender":
        """Makes a recommender of what a bundle holds.

        Args:
            catalogue: Of the parts' items as they are if None.
            programs: Compiled from the model's code when first called if None.
        """
        params = jax.tree.map(jnp.asarray, parts.params)
        searcher = Searcher(parts.model, params, shapes.settings, programs)
        catalogue = catalogue or parts.catalogue()
        return cls(
            searcher,
            catalogue,
            shapes,
            parts.max_items,
            parts.user_hashes,
            parts.dense_weights,
        )

    def fork(self, catalogue: Catalogue | None = None) -> "Recommender":
        """Another recommender, of the same model and compiled programs."""
        return dataclasses.replace(self, catalogue=catalogue or self.catalogue)

    def swap(self, catalogue: Catalogue) -> None:
        """Changes to another catalogue; InputError if its plan is another."""
        if catalogue.host_trie.plan != self.catalogue.host_trie.plan:
            raise InputError("the new catalogue's trie has another plan than the old")
        self.items_of(catalogue)  # before a request waits for it
        self.catalogue = catalogue

    def update(self, versions: CatalogueVersions, **changes: Any) -> UpdateReport:
        """Changes the catalogue: on disk first, then for the next batch.

        One change at a time; requests are answered meanwhile.

        Args:
            **changes: See `CatalogueVersions.change`.

        Raises:
            InputError: The change makes no sense; neither disk nor memory has it.
            UnconfirmedError: The disk has it; memory not yet: see `follow`.
        """
        with self._change_lock:
            catalogue, report = versions.change(self.catalogue, **changes)
            self._take_over(catalogue)
        versions.prune()
        return report

    def roll_back(self, versions: CatalogueVersions, version: int) -> UpdateReport:
        """Makes an earlier version's content the newest; InputError if it is gone."""
        with self._change_lock:
            catalogue, report = versions.roll_back(self.catalogue, version)
            self._take_over(catalogue)
        versions.prune()
        return report

    def _take_over(self, catalogue: Catalogue) -> None:
        """Serves what is in force already: a failure here is no refusal."""
        try:
            self.swap(catalogue)
        except Exception as error:
            raise UnconfirmedError(
                f"version {catalogue.version} is in force, but not served yet "
                f"({type(error).__name__}: {error}): it is tried again, by `follow`"
            ) from error

    def follow(self, versions: CatalogueVersions) -> bool:
        """Changes to what other processes made of the catalogue; whether they did."""
        with self._change_lock:
            newest = versions.newest_after(self.catalogue)
            is_newer = newest is not self.catalogue
            if is_newer:
                self.swap(newest)
        return is_newer

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
        `max_items`; all of it counts for `exclude_history`.

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

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests in as few batches as can be; InputError if one can't be."""
        catalogue = self.catalogue
        return self.answer_resolved([self.resolve(r, catalogue) for r in requests])

    def resolve(self, request: Request, catalogue: Catalogue) -> Resolved:
        """Looks a request's items up, and refuses what can't be answered.

        Raises:
            InputError: More items are wanted than the search has beams, or see
                `requests.resolve`.
        """
        if request.k > self.shapes.num_beams and not request.exact:
            raise InputError(
                f"{request.k} items a user need at least as many beams, and this "
                f"recommender searches with {self.shapes.num_beams}"
            )
        return resolve(request, catalogue)

    def answer_resolved(self, requests: Sequence[Resolved]) -> list[Answer]:
        """Answers requests that `resolve` has looked up in one catalogue."""
        rows = [
            Row(i, group, resolved)
            for i, resolved in enumerate(requests)
            if len(resolved.known)
            for group in resolved.request.groups
        ]
        found: dict[tuple[int, Group], _List] = {}
        # As many rows as a batch holds, each with a filter of its own.
        max_rows = min(self.shapes.batch_sizes[-1], NUM_SLOTS)
        for kind in ("exact", *KINDS):
            own = [row for row in rows if row.kind == kind]
            size = MAX_EXACT_ROWS if kind == "exact" else max_rows
            for start in range(0, len(own), size):
                part = own[start : start + size]
                lists = self._score(part) if kind == "exact" else self._run(kind, part)
                for row, listed in zip(part, lists, strict=True):
                    found[row.index, row.group] = listed
        normalize = self.searcher.settings.normalize
        answers = (
            _merge(
                resolved,
                {g: found[i, g] for g in resolved.request.groups},
                by_share=resolved.request.normalizes_groups(normalize),
            )
            if len(resolved.known)
            else _popular(resolved)
            for i, resolved in enumerate(requests)
        )
        return [dataclasses.replace(answer, model=self.model) for answer in answers]

    def similar_items(
        self,
        item_id: str,
        k: int = 10,
        *,
        by: Literal["prefix", "embedding"] = "prefix",
    ) -> list[SimilarItem]:
        """Lists the items most like one.

        Args:
            by: "prefix": by how many leading codewords are shared, then by cosine.
                "embedding": by cosine alone.

        Raises:
            InputError: The item is unknown, or there are no embeddings to compare.
        """
        catalogue = self.catalogue
        if item_id not in catalogue.number_of:
            raise InputError(f"there is no item {item_id[:80]!r} in the catalogue")
        if by not in ("prefix", "embedding"):
            raise InputError(f"by is {by!r}: choose prefix or embedding")
        number = catalogue.number_of[item_id]
        codes, vectors = catalogue.table.codes, catalogue.embeddings
        shared = np.logical_and.accumulate(codes == codes[number], axis=1).sum(1)
        cosine = np.zeros(catalogue.num_items, np.float32)
        if vectors is not None:
            lengths = catalogue.lengths * catalogue.lengths[number]
            cosine = vectors @ vectors[number] / np.maximum(lengths, 1e-30)
        elif by == "embedding":
            raise InputError("this catalogue has no embeddings to compare items by")
        rank = np.lexsort((-cosine, -shared if by == "prefix" else 0 * shared))
        best = rank[rank != number][:k]
        return [
            SimilarItem.of(
                catalogue,
                int(n),
                shared_levels=int(shared[n]),
                cosine=float(cosine[n]) if vectors is not None else None,
            )
            for n in best
        ]

    def warm_up(self) -> None:
        """Compiles every program, so that no request waits for it."""
        trie, _ = self.catalogue.slots.assign({})
        trie = self._with_items(trie, self.catalogue)
        wanted = [(kind, size) for kind in KINDS for size in self.shapes.batch_sizes]
        with Progress(len(wanted), "Compiling", unit="program") as bar:
            for kind, size in wanted:
                queries = self.shapes.empty_queries(size)
                jax.block_until_ready(getattr(self.searcher, kind)(trie, queries))
                bar.advance()

    def _run(self, kind: str, rows: Sequence["Row"]) -> list["_List"]:
        shapes, catalogue = self.shapes, rows[0].resolved.catalogue
        queries = shapes.empty_queries(shapes.batch_size_for(len(rows)))
        # A longer exclusion is no list for the search, but part of the mask.
        is_listed = [len(r.resolved.exclude) <= shapes.max_excluded for r in rows]
        names = [
            row.resolved.mask_name(row.group, too_many=not listed)
            for row, listed in zip(rows, is_listed, strict=True)
        ]
        masks = {
            name: functools.partial(row.mask, with_exclusion=not listed)
            for name, row, listed in zip(names, rows, is_listed, strict=True)
        }
        trie, bits = catalogue.slots.assign(masks)
        trie = self._with_items(trie, catalogue)
        for empty, own in zip(
            jax.tree.leaves(queries.inputs),
            jax.tree.leaves(self.encode(rows)),
            strict=True,
        ):
            empty[: len(rows)], empty[len(rows) :] = own, own[-1]
        for i, row in enumerate(rows):
            excluded = row.resolved.exclude
            if is_listed[i]:
                queries.exclude[i, : len(excluded)] = excluded
            queries.allowed[i] = bits[names[i]]
            queries.prefix[i] = row.resolved.prefix
            queries.seeds[i] = row.seed
            queries.temperatures[i] = row.request.temperature or 1.0
        found: Found = jax.device_get(getattr(self.searcher, kind)(trie, queries))
        return [(found.item_numbers[i], found.scores[i]) for i in range(len(rows))]

    def _score(self, rows: Sequence["Row"]) -> list["_List"]:
        """Scores every item; the longest list wanted is cut for the others."""
        allowed = np.stack([row.mask(with_exclusion=True) for row in rows])
        allowed &= np.stack([row.resolved.fits_prefix for row in rows])
        catalogue, inputs = rows[0].resolved.catalogue, self.encode(rows)
        walk = self._with_items(catalogue.walk, catalogue)
        k = max(row.request.k for row in rows)
        found = self.searcher.search_exactly(walk, inputs, allowed, k)
        return list(zip(*found, strict=True))

    def _with_items(self, searched: Any, catalogue: Catalogue) -> Any:
        """What is searched, with the items' content beside it if the model's."""
        table = self.items_of(catalogue)
        return searched if table is None else table.over(searched)

    def items_of(self, catalogue: Catalogue) -> ItemTable | None:
        """Embedded once per catalogue; its shapes follow from the plan alone."""
        if catalogue not in self._tables:
            table = embed_catalogue(self.searcher, catalogue, self.dense_weights)
            self._tables[catalogue] = jax.device_put(table, catalogue.sharding)
        return self._tables[catalogue]

    def encode(self, rows: Sequence["Row"]) -> Any:
        """The rows' histories as the model reads them."""
        histories = np.full((len(rows), self.max_items), -1, np.int32)
        for i, row in enumerate(rows):
            last = row.resolved.known[-self.max_items :]
            histories[i, : len(last)] = last
        users = [row.request.user for row in rows]
        hashes = hash_user_ids([user or "" for user in users])
        first, end = (
            np.searchsorted(self.user_hashes, hashes, side)
            for side in ("left", "right")
        )
        is_known = (first < end) & np.array([user is not None for user in users])
        return encode_histories(
            histories,
            rows[0].resolved.catalogue.table.codes,
            self.searcher.model.layout,
            user_hashes=hashes,
            is_known=is_known,
            with_items=bool(self.shapes.content_items),
        )


def load_with_versions(
    folder: Path, *, version: int | None = None, trust: Trust = ANY
) -> tuple[Recommender, CatalogueVersions]:
    """Loads a bundle, even while another process exports it anew.

    Raises:
        InputError: See `Recommender.load`.
    """

    stamp = functools.partial(artifacts.stamp, folder)

    def load() -> tuple[Recommender, CatalogueVersions]:
        before = stamp()
        versions = CatalogueVersions.open(folder, trust=trust)
        recommender = Recommender.load(versions, version=version)
        if stamp() != before:
            raise InputError(f"{folder} is being exported again and again: wait")
        return recommender, versions

    return read_unchanged(stamp, load)[1]


_List = tuple[Int32[np.ndarray, " M"], Float32[np.ndarray, " M"]]


@dataclasses.dataclass(frozen=True)
class Row:
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

    def mask(self, *, with_exclusion: bool = False) -> Bool[np.ndarray, " N"]:
        """Items that the filter and the group leave, and the exclusion if asked."""
        catalogue = self.resolved.catalogue
        mask = catalogue.mask(self.resolved.filter or {})
        if self.group != "any":
            mask &= catalogue.is_new == (self.group == "new")
        if with_exclusion:
            mask[self.resolved.exclude] = False
        return mask


def _popular(resolved: Resolved) -> Answer:
    """The stated fallback: what is allowed, by its number of interactions."""
    lists: dict[Group, _List] = {}
    for group in resolved.request.groups:
        allowed = Row(0, group, resolved).mask() & resolved.fits_prefix
        counts = np.where(allowed, resolved.catalogue.popularity, -np.inf)
        items, scores = top_k(
            counts[None].astype(np.float32), resolved.exclude[None], resolved.request.k
        )
        lists[group] = (items[0], scores[0])
    answer = _merge(resolved, lists, by_share=False)
    return dataclasses.replace(answer, by="popularity")


def _merge(
    resolved: Resolved, lists: Mapping[Group, _List], *, by_share: bool
) -> Answer:
    """Makes one list of the groups': the new items' best, and the best of the rest."""
    k = resolved.request.k

    def pairs(group: Group, most: int) -> list[tuple[float, int]]:
        found = zip(*lists.get(group, ((), ())), strict=True)
        return [(float(score), int(i)) for i, score in found if i >= 0][:most]

    new = pairs("new", resolved.request.num_new)
    known = pairs("known", k - len(new))
    by_share = by_share and bool(new and known)
    if not (new and known):  # one list, in its own order
        chosen = pairs("any", k) + known + new
    elif by_share:
        # One of the new for each so many places.
        total = len(new) + len(known)
        due = [(place + 1) * len(new) // total for place in range(total)]
        turns = np.diff(np.array([0, *due])).tolist()
        chosen = [new.pop(0) if turn else known.pop(0) for turn in turns]
    else:
        chosen = sorted(known + new, key=lambda pair: -pair[0])
    return Answer(
        tuple(
            RecommendedItem.of(resolved.catalogue, number, score=score)
            for score, number in chosen
        ),
        resolved.unknown_items,
        "tiger",
        resolved.catalogue.version,
        "share" if by_share else "score",
    )
