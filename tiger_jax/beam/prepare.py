"""Raw interactions -> k-core -> chronological histories, and the catalogue.

The steps, each a folder of shards:

    joined/      interactions with their item's row, by bucket of users
    core/        rounds of the k-core: which items still have enough interactions
    survivors/   users that are left, and where they first appear
    histories/   histories in the order of user numbers
    items/       the catalogue in the order of item numbers

A bucket holds all interactions of its users, in the order of the raw rows, so that
what concerns one user is the local stage's functions on a bucket. Item numbers are
the one thing that is drawn for the whole catalogue at once: the local stage's random
permutation, 12 bytes an item, in files that workers map instead of loading.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from jaxtyping import Bool, Int64

from tiger_jax.beam.blocks import (
    ITEM_NUMBER,
    column,
    gather,
    scatter,
    shards_of,
    write_items,
)
from tiger_jax.beam.joined import join_interactions
from tiger_jax.beam.raw import RawShards
from tiger_jax.beam.runner import Flow, Keyed, RunnerConfig
from tiger_jax.data.interactions import (
    MIN_HISTORY,
    InteractionsConfig,
    chronological_order,
    k_core,
    shuffle_rows,
)
from tiger_jax.data.prepared import hash_user_ids
from tiger_jax.data.splits import SplitsConfig, choose_unseen_items
from tiger_jax.errors import InputError, flag
from tiger_jax.histories import Histories
from tiger_jax.progress import say
from tiger_jax.workdir.arrays import load_array, save_whole
from tiger_jax.workdir.hashing import hash_arrays, hash_file, hash_json
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading
from tiger_jax.workdir.shards import (
    ShardRows,
    Shards,
    ShardWriter,
    cut_evenly,
    recipe_of,
    rows_of,
    texts,
)

HISTORY_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("user_hash", pa.uint32()),
        ("items", pa.list_(pa.int32())),
    ]
)
_COUNTS = pa.schema([("item_row", pa.int64()), ("count", pa.int64())])
_FACTS = "prepared.json"
# Resolution of the histogram by which users are shared out to shards.
_CELLS = 1 << 16


@dataclasses.dataclass(frozen=True)
class PreparedShards:
    """What `prepare` writes: `PreparedData` in shards.

    Attributes:
        items: The catalogue, by item number.
        histories: `user_id`, `user_hash`, `items`, by user number.
        folder: With `items_file_rows.npy`, `unseen_items.npy` and `prepared.json`.
        facts: Name, counts and configs.
    """

    items: Shards
    histories: Shards
    folder: Path
    facts: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "PreparedShards":
        """Reads the lists, and no rows; InputError if the folder is not whole."""
        folder = Path(folder)
        with reading(folder, "run --stage=prepare_shards"):
            facts = read_json(folder / _FACTS)
        items, histories = (Shards.load(folder / n) for n in ("items", "histories"))
        if [items.content_hash, histories.content_hash] != facts["contents"]:
            raise InputError(
                f"{folder} is being made anew: run --stage=prepare_shards to its end"
            )
        return cls(items, histories, folder, facts)

    @property
    def unseen_items(self) -> np.ndarray:
        """Item numbers kept out of training and validation."""
        return load_array(self.folder / "unseen_items.npy")

    @property
    def content_hash(self) -> str:
        """Names all that later pipelines read."""
        return hash_json([*self.facts["contents"], self.facts["unseen_items_hash"]])


def prepare(
    raw: RawShards,
    folder: Path,
    *,
    interactions: InteractionsConfig,
    splits: SplitsConfig,
    seed: int,
    num_shards: int,
    runner: RunnerConfig,
) -> PreparedShards:
    """Filters, numbers, orders and splits a shop, in shards.

    Equal to `data.prepare.prepare_shop` on the same rows, for any number of shards;
    the seed decides item numbers and unseen items. InputError if a config is
    impossible, or too little is left to train on.
    """
    interactions = interactions.resolved(is_generated=raw.is_generated)
    if interactions.tie_order == "shuffle":
        raise InputError(
            "tie_order 'shuffle' draws for all interactions at once, which no shard "
            f"can: {flag('interactions.InteractionsConfig.tie_order', 'data')}, or item"
        )
    if interactions.duplicates == "drop":
        raise InputError(
            "InteractionsConfig.duplicates = 'drop' is not for shards: drop them where "
            "the shards are written"
        )
    if splits.left_out:
        raise InputError(
            "SplitsConfig.left_out is not for shards: a recipe is chosen on a sample"
        )
    folder.mkdir(parents=True, exist_ok=True)
    joined = join_interactions(raw, folder / "joined", num_shards, runner)
    core = _Core(joined, raw.items.num_rows, folder / "core", runner)
    k = interactions.k_core
    assert k is not None
    min_user = max(k, MIN_HISTORY)
    alive = core.items_with(k, min_user=k)
    num_in_core = None
    if min_user > k:
        num_in_core = core.survivors(alive, min_user=k).num_rows
        alive = core.items_with(k, min_user=min_user, alive=alive)
    survivors = core.survivors(alive, min_user=min_user)
    counts = {
        "raw_users": sum(joined.count("users")),
        "raw_items": raw.items.num_rows,
        "raw_interactions": raw.interactions.num_rows,
        "users_with_too_short_history": (num_in_core or survivors.num_rows)
        - survivors.num_rows,
    }
    _refuse_too_little(survivors, counts, k)

    in_catalogue = np.flatnonzero(load_array(alive, is_mapped=True))
    if interactions.keep_all_items:
        in_catalogue = np.arange(raw.items.num_rows)
    items_file_rows = shuffle_rows(in_catalogue, seed)
    number_of_row = np.full(raw.items.num_rows, -1, np.int32)
    number_of_row[items_file_rows] = np.arange(len(items_file_rows), dtype=np.int32)
    numbers = folder / "number_of_row.npy"
    save_whole(numbers, number_of_row)
    save_whole(folder / "items_file_rows.npy", items_file_rows)
    recipe = recipe_of({"interactions": interactions, "seed": seed}, joined)
    no_items = pa.parquet.read_schema(raw.items.paths[0]).empty_table()
    ends = cut_evenly(len(items_file_rows), num_shards)
    emit = functools.partial(_emit_items, numbers=numbers, ends=ends)
    items = runner.write(
        ShardWriter(folder / "items", num_shards, recipe),
        Flow(
            functools.partial(write_items, empty=no_items),
            {"take apart": (rows_of(raw.items), emit)},
        ),
    )
    emit = functools.partial(
        _emit_histories,
        alive=alive,
        numbers=numbers,
        min_user=min_user,
        tie_order=interactions.tie_order,
        ends=_cut_users(survivors, raw.interactions.num_rows, num_shards),
    )
    histories = runner.write(
        ShardWriter(folder / "histories", num_shards, recipe),
        Flow(_write_histories, {"take apart": (joined.paths, emit)}),
    )
    unseen = _choose_unseen(histories, splits.unseen_share, seed)
    save_whole(folder / "unseen_items.npy", unseen)
    facts = {
        "name": raw.name,
        "users": histories.num_rows,
        "items": items.num_rows,
        "interactions": sum(histories.count("interactions")),
        **counts,
        "k_core": k,
        "tie_order": interactions.tie_order,
        "unseen_items": len(unseen),
        "notes": list(raw.notes),
        "seed": seed,
        "contents": [items.content_hash, histories.content_hash],
        "unseen_items_hash": hash_arrays({"unseen_items": unseen}),
    }
    write_json(folder / _FACTS, facts)
    say(
        f"{folder}: {facts['users']:,} users, {facts['items']:,} items, "
        f"{facts['interactions']:,} interactions in {num_shards} shards"
    )
    return PreparedShards.load(folder)


def read_histories(table: pa.Table) -> Histories:
    """The `items` column of a shard of histories."""
    lists = texts(table, "items")
    offsets = np.asarray(lists.offsets).astype(np.int64)
    return Histories(
        np.asarray(lists.values)[offsets[0] : offsets[-1]], offsets - offsets[0]
    )


@dataclasses.dataclass(frozen=True)
class _Core:
    """Rounds of the k-core over the buckets of users.

    A round filters users, within their buckets, by the items that are alive, and
    counts what that leaves of each item. When no item dies, the core is reached.
    """

    joined: Shards
    num_items: int
    folder: Path
    runner: RunnerConfig

    def items_with(
        self, min_item: int, *, min_user: int, alive: Path | None = None
    ) -> Path:
        """A file that says of each raw item whether it is in the core.

        The minima are of interactions; `alive` are the items to start from, or all.
        """
        num_alive = self.num_items
        if alive is not None:
            num_alive = int(np.count_nonzero(load_array(alive, is_mapped=True)))
        write = functools.partial(_write_counts, min_item=min_item)
        for number in range(self.num_items + 1):
            config = {"min_item": min_item, "min_user": min_user, "round": number}
            writer = self._writer(f"round-{number:03}", config)
            folder = writer.folder
            emit = functools.partial(
                _emit_counts,
                alive=alive,
                min_user=min_user,
                num_shards=writer.num_shards,
            )
            flow = Flow(write, {"take apart": (self.joined.paths, emit)})
            counts = self.runner.write(writer, flow)
            before, num_alive = num_alive, counts.num_rows
            alive = folder / "alive.npy"
            flags = np.zeros(self.num_items, bool)
            for table in counts.tables(["item_row"]):
                flags[column(table, "item_row")] = True
            save_whole(alive, flags)
            if num_alive == before:
                break
        assert alive is not None
        return alive

    def survivors(self, alive: Path, *, min_user: int) -> Shards:
        """The users that are left of each bucket: `first_row` and `length`."""
        config = {"min_user": min_user, "alive": hash_file(alive)}
        paths = self.joined.paths
        write = functools.partial(
            _write_survivors, paths=paths, alive=alive, min_user=min_user
        )
        return self.runner.write(self._writer("survivors", config), Flow(write))

    def _writer(self, name: str, config: dict[str, Any]) -> ShardWriter:
        folder = self.folder / f"user-{config['min_user']}" / name
        recipe = recipe_of(config, self.joined)
        return ShardWriter(folder, self.joined.num_shards, recipe)


@dataclasses.dataclass(frozen=True)
class _Bucket:
    """A bucket of users' interactions, in the raw rows' order: who's, and if kept.

    Users are numbered by first appearance in the bucket; `user_ids` are by number.
    """

    table: pa.Table
    users: Int64[np.ndarray, " rows"]
    user_ids: pa.Array
    is_kept: Bool[np.ndarray, " rows"]

    @classmethod
    def read(cls, path: Path, alive: Path | None, min_user: int) -> "_Bucket":
        """Reads a bucket and drops dead items, then users with too few."""
        table = pa.parquet.read_table(path)
        encoded = texts(table, "user_id").dictionary_encode()
        users = np.asarray(encoded.indices).astype(np.int64)
        is_kept = np.ones(len(users), bool)
        if alive is not None:
            flags = load_array(alive, is_mapped=True)
            is_kept = flags[column(table, "item_row")]
        rows = np.flatnonzero(is_kept)
        # As if all were of one item, for items are counted over all buckets.
        one_item = np.zeros(len(rows), np.int64)
        is_kept[rows] = k_core(users[rows], one_item, min_user=min_user, min_item=0)
        return cls(table, users, encoded.dictionary, is_kept)

    def left(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each user who is left: number, interactions, first raw row of all."""
        _, first = np.unique(self.users, return_index=True)
        lengths = np.bincount(self.users[self.is_kept], minlength=len(first))
        left = np.flatnonzero(lengths)
        return left, lengths[left], column(self.table, "row")[first[left]]


def _emit_counts(
    path: Path,
    missing: Sequence[int],
    *,
    alive: Path | None,
    min_user: int,
    num_shards: int,
) -> Iterator[Keyed]:
    bucket = _Bucket.read(path, alive, min_user)
    rows, counts = np.unique(
        column(bucket.table, "item_row")[bucket.is_kept], return_counts=True
    )
    table = pa.table({"item_row": rows, "count": counts}, schema=_COUNTS)
    # By turns: ranges of rows may hold all items that every bucket has.
    yield from scatter(table, rows % num_shards, missing)


def _write_counts(
    shard: int, blocks: Iterable[bytes], writer: ShardWriter, *, min_item: int
) -> None:
    table = gather(blocks) or _COUNTS.empty_table()
    rows, inverse = np.unique(column(table, "item_row"), return_inverse=True)
    counts = np.zeros(len(rows), np.int64)
    np.add.at(counts, inverse, column(table, "count"))
    is_kept = counts >= max(min_item, 1)
    kept = {"item_row": rows[is_kept], "count": counts[is_kept]}
    writer.write_table(shard, pa.table(kept, schema=_COUNTS))


def _write_survivors(
    shard: int,
    _: Iterable[bytes],
    writer: ShardWriter,
    *,
    paths: list[Path],
    alive: Path,
    min_user: int,
) -> None:
    _, lengths, first_rows = _Bucket.read(paths[shard], alive, min_user).left()
    writer.write_table(shard, pa.table({"first_row": first_rows, "length": lengths}))


def _refuse_too_little(survivors: Shards, counts: dict[str, int], k: int) -> None:
    tables = survivors.tables(["length"])
    if any((column(table, "length") > MIN_HISTORY).any() for table in tables):
        return
    raise InputError(
        f"of {counts['raw_interactions']:,} interactions of {counts['raw_users']:,} "
        f"users with {counts['raw_items']:,} items, no user has more than "
        f"{MIN_HISTORY} after filtering with k_core={k}: bring longer histories, or "
        + flag("interactions.InteractionsConfig.k_core", 2)
    )


def _cut_users(survivors: Shards, num_rows: int, num_shards: int) -> list[int]:
    """Ranges of first rows with about equally many users each."""
    cells = min(_CELLS, num_rows)
    counts = np.zeros(cells, np.int64)
    for table in survivors.tables(["first_row"]):
        cell = column(table, "first_row") * cells // num_rows
        counts += np.bincount(cell, minlength=cells)
    upto = np.cumsum(counts)
    wanted = [upto[-1] * shard // num_shards for shard in range(1, num_shards)]
    last_cells = np.asarray(np.searchsorted(upto, wanted, side="left"))
    # The first row of the cell after: ceil((cell + 1) * num_rows / cells).
    inner = [-((int(cell) + 1) * num_rows // -cells) for cell in last_cells]
    return [0, *inner, num_rows]


def _emit_histories(
    path: Path,
    missing: Sequence[int],
    *,
    alive: Path,
    numbers: Path,
    min_user: int,
    tie_order: str,
    ends: Sequence[int],
) -> Iterator[Keyed]:
    bucket = _Bucket.read(path, alive, min_user)
    left, lengths, first_rows = bucket.left()
    kept = bucket.table.filter(pa.array(bucket.is_kept))
    ties = None
    if tie_order == "item":  # in code-point order, as the local stage does
        ties = np.asarray(pc.rank(texts(kept, "item_id"), tiebreaker="dense"))
        ties = ties.astype(np.int64)
    users = bucket.users[bucket.is_kept]
    order = chronological_order(users, column(kept, "timestamp"), ties)
    number_of_row = load_array(numbers, is_mapped=True)
    items = number_of_row[column(kept, "item_row")[order]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    user_ids = bucket.user_ids.take(pa.array(left))
    table = pa.table(
        {
            "user_id": user_ids,
            "user_hash": hash_user_ids(user_ids.to_pylist()),
            "items": pa.ListArray.from_arrays(offsets, items),
        },
        schema=HISTORY_SCHEMA,
    ).append_column("first_row", pa.array(first_rows))
    yield from scatter(table, shards_of(first_rows, ends), missing)


def _write_histories(shard: int, blocks: Iterable[bytes], writer: ShardWriter) -> None:
    table = gather(blocks, "first_row") or HISTORY_SCHEMA.empty_table()
    table = table.select(HISTORY_SCHEMA.names)
    count = len(pc.list_flatten(table["items"]))
    writer.write_table(shard, table, interactions=count)


def _emit_items(
    rows: ShardRows, missing: Sequence[int], *, numbers: Path, ends: Sequence[int]
) -> Iterator[Keyed]:
    table = pa.parquet.read_table(rows.path)
    number_of_row = load_array(numbers, is_mapped=True)
    number = number_of_row[rows.first_row : rows.first_row + table.num_rows]
    in_catalogue = np.flatnonzero(number >= 0)
    number = number[in_catalogue]
    table = table.take(pa.array(in_catalogue))
    table = table.append_column(ITEM_NUMBER, pa.array(number))
    yield from scatter(table, shards_of(number, ends), missing)


def _choose_unseen(histories: Shards, share: float, seed: int) -> np.ndarray:
    """The local stage's draw among the distinct test targets."""
    targets = np.empty(0, np.int32)
    if share > 0:
        for table in histories.tables(["items"]):
            whole = read_histories(table)
            targets = np.union1d(targets, whole.items[whole.offsets[1:] - 1])
    each_alone = Histories(
        targets.astype(np.int32), np.arange(len(targets) + 1, dtype=np.int64)
    )
    return choose_unseen_items(each_alone, share, seed=seed)
