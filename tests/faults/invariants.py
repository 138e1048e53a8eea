"""What must hold over any number of runs: lists, round trips, metrics, seeds."""

import functools
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decoding_cases import CAPACITY, SHAPES, draw_codes, plan_of, search
from decoding_reference import make_tables
from ranking_reference import ranks_in_catalogue

from faults import shop
from faults.campaign import FINE, Fault, Outcome
from tiger_jax.decoding.search import beam_search
from tiger_jax.decoding.trie import Trie, make_plan, worst_case
from tiger_jax.evaluation import metrics, recommend_fn
from tiger_jax.models.generator import init_params, make_decode_fns
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.quantizers.residual_kmeans import ResidualCodebooks
from tiger_jax.recommending.trained_model import load_recommender
from tiger_jax.semantic_ids.collisions import (
    add_collision_level,
    group_rows,
    number_within_groups,
)
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts

# --- Decoded lists ------------------------------------------------------------------

LISTS_PER_TRY, NUM_BEAMS, NUM_EXCLUDED = 250, 12, 5


def decode_tables(number: int, folder: Path) -> Outcome:
    """Lists of a model that is a table of logits, over all shapes of tries."""
    del folder
    rng = np.random.default_rng([1, number])
    place = number // LISTS_PER_TRY
    shape = list(SHAPES)[place % len(SHAPES)]
    normalize = ("level", "children")[place // len(SHAPES) % 2]
    codes = draw_codes(rng, shape)
    trie = Trie.build(codes, SHAPES[shape], plan=plan_of(shape, "mixed"))
    tables = make_tables(rng, SHAPES[shape], step=0.25 if rng.random() < 0.3 else None)
    exclude = _draw_exclusions(rng, len(codes))
    requests = jnp.arange(LISTS_PER_TRY, dtype=jnp.int32)
    found = search(
        tables,
        requests,
        trie,
        num_beams=NUM_BEAMS,
        normalize=normalize,
        exclude=jnp.asarray(exclude),
    )
    return _judge(found, exclude, len(codes), f"{shape}, {normalize}, try {number}")


def _draw_exclusions(rng: np.random.Generator, num_items: int) -> np.ndarray:
    exclude = rng.integers(0, num_items, (LISTS_PER_TRY, NUM_EXCLUDED))
    exclude[rng.random(exclude.shape) > rng.random()] = -1
    return exclude.astype(np.int32)


def _judge(found, exclude: np.ndarray, num_items: int, what: str) -> Outcome:
    items, scores = (np.asarray(part) for part in found)
    bad = _bad_lists(items, scores, exclude, num_items)
    note = f"{what}: list {int(bad.argmax())}" if bad.any() else ""
    return Outcome(wrong=int(bad.sum()), note=note, count=len(items))


def _bad_lists(
    items: np.ndarray, scores: np.ndarray, exclude: np.ndarray, num_items: int
) -> np.ndarray:
    """Marks lists with what is no item, comes twice, was excluded or is missing."""
    is_item = items >= 0
    invalid = (items < -1) | (items >= num_items)
    excluded = is_item & (items[:, :, None] == exclude[:, None, :]).any(2)
    in_order = np.sort(items, axis=1)
    repeated = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    unsorted = scores[:, 1:] > scores[:, :-1]
    padded = is_item != np.isfinite(scores)
    in_order = np.sort(exclude, axis=1)
    is_new = np.ones(exclude.shape, bool)
    is_new[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    num_out = (is_new & (in_order >= 0)).sum(1)
    # Nothing else is allowed to be missing.
    too_short = is_item.sum(1) != np.minimum(items.shape[1], num_items - num_out)
    return (
        invalid.any(1)
        | excluded.any(1)
        | repeated.any(1)
        | unsorted.any(1)
        | padded.any(1)
        | too_short
    )


_SIZES = (8, 8, 8, 4)
_TIGER = Tiger(
    TigerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
    ),
    TokenLayout(_SIZES, num_user_tokens=7),
)


@functools.cache
def _tiger_search():
    init_decode, decode_step = make_decode_fns(_TIGER)
    return jax.jit(
        functools.partial(
            beam_search,
            init_decode=init_decode,
            decode_step=decode_step,
            num_beams=NUM_BEAMS,
        )
    )


@functools.cache
def _tiger_init():
    import flax.linen as nn

    return jax.jit(lambda key: nn.meta.unbox(init_params(_TIGER, key)))


def decode_tiger(number: int, folder: Path) -> Outcome:
    """Lists of a TIGER with random parameters, large ones too, on random histories."""
    del folder
    rng = np.random.default_rng([2, number])
    num_items = int(rng.integers(1, CAPACITY))
    flat = rng.choice(math.prod(_SIZES), num_items, replace=False)
    codes = np.stack(np.unravel_index(flat, _SIZES), axis=1).astype(np.int32)
    plan = make_plan(worst_case(_SIZES, CAPACITY))
    trie = Trie.build(codes, _SIZES, plan=plan)
    scale = float(rng.choice([1.0, 3.0, 30.0]))
    params = jax.tree.map(lambda x: x * scale, _tiger_init()(jax.random.key(number)))
    layout = _TIGER.layout
    history = codes[rng.integers(0, num_items, (LISTS_PER_TRY, 3))]
    tokens = layout.tokens_of(history).reshape(LISTS_PER_TRY, -1)
    tokens[rng.random(LISTS_PER_TRY) < 0.3, 4:] = 0
    users = layout.first_user_token + rng.integers(0, 7, (LISTS_PER_TRY, 1))
    exclude = _draw_exclusions(rng, num_items)
    inputs = jnp.asarray(np.concatenate([users, tokens], 1).astype(np.int32))
    found = _tiger_search()(params, inputs, trie, exclude=jnp.asarray(exclude))
    return _judge(found, exclude, num_items, f"parameters x {scale:g}, try {number}")


# --- Round trips --------------------------------------------------------------------

TRIPS_PER_TRY = 20
_WITH_COLLISIONS = [shape for shape, sizes in SHAPES.items() if len(sizes) > 1]


def round_trips(number: int, folder: Path) -> Outcome:
    """Vectors to codes, table, disk, tokens, trie, and back to the same items."""
    rng = np.random.default_rng([3, number])
    for _ in range(TRIPS_PER_TRY):
        _round_trip(rng, folder / "table")
    return Outcome(count=TRIPS_PER_TRY)


def _round_trip(rng: np.random.Generator, folder: Path) -> None:
    shape = str(rng.choice(_WITH_COLLISIONS))
    *sizes, num_last = SHAPES[shape]
    codes, ids = _quantize(rng, sizes, num_last)
    full = add_collision_level(codes, ids, collision_level_size=num_last)
    assert len(np.unique(full, axis=0)) == len(ids)
    assert (full[:, :-1] == codes).all()
    table = SemanticIdTable(full, SHAPES[shape], len(sizes), ids)
    shutil.rmtree(folder, ignore_errors=True)
    table.save(folder)
    again = SemanticIdTable.load(folder)
    assert again.content_hash == table.content_hash
    layout = TokenLayout(again.codebook_sizes, num_user_tokens=int(rng.integers(0, 9)))
    tokens = layout.tokens_of(again.codes)
    assert 0 < tokens.min() <= tokens.max() < layout.first_user_token
    item_of = {tuple(code): n for n, code in enumerate(again.codes.tolist())}
    back = [again.item_ids[item_of[tuple(c)]] for c in layout.codes_of(tokens).tolist()]
    assert tuple(back) == ids
    trie = Trie.build(again.codes, SHAPES[shape], plan=plan_of(shape, "mixed"))
    order = np.lexsort(again.codes.T[::-1])
    np.testing.assert_array_equal(trie.semantic_ids(), again.codes[order])
    items = _item_numbers(trie, np.arange(CAPACITY, dtype=np.int32))
    np.testing.assert_array_equal(np.asarray(items)[: len(ids)], order)


@jax.jit
def _item_numbers(trie: Trie, leaves):
    return trie.item_numbers(leaves)


def _quantize(
    rng: np.random.Generator, sizes: list[int], num_last: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes of random vectors by random codebooks, few enough to be told apart."""
    dims = int(rng.integers(1, 7))
    books = tuple(rng.normal(size=(k, dims)).astype(np.float32) for k in sizes)
    vectors = rng.normal(size=(CAPACITY, dims)).astype(np.float32)
    codes = ResidualCodebooks(books).encode(vectors)
    _check_nearest(vectors, books, codes)
    place = number_within_groups(group_rows(codes), np.arange(len(codes)))
    codes = codes[place < num_last]
    codes = codes[: rng.integers(1, len(codes) + 1)]
    return codes, tuple(f"item {n}" for n in rng.permutation(len(codes)))


def _check_nearest(
    vectors: np.ndarray, books: tuple[np.ndarray, ...], codes: np.ndarray
) -> None:
    """Each codeword is the nearest to what is left over, but for rounding."""
    left = vectors.astype(np.float64)
    for level, book in enumerate(books):
        distances = ((left[:, None, :] - book[None]) ** 2).sum(2)
        taken = distances[np.arange(len(left)), codes[:, level]]
        assert (taken <= distances.min(1) + 1e-4).all()
        left = left - book[codes[:, level]]


# --- Metrics ------------------------------------------------------------------------

USERS_PER_TRY = 200


def metrics_by_hand(number: int, folder: Path) -> Outcome:
    """Recall, NDCG and MRR against a loop over sorted lists; ties and gaps included."""
    del folder
    rng = np.random.default_rng([4, number])
    num_items = int(rng.integers(2, 40))
    scores = rng.normal(size=(USERS_PER_TRY, num_items))
    if rng.random() < 0.5:  # many ties
        scores = np.round(scores)
    scores = scores.astype(np.float32)
    targets = rng.integers(0, num_items, USERS_PER_TRY).astype(np.int32)
    nothing = np.full((USERS_PER_TRY, 1), -1, np.int32)
    k = 20
    listed, values = recommend_fn.top_k(scores, nothing, k + 1)
    ranks = metrics.ranks_in_lists(listed, values, targets)
    found = metrics.compute_metrics(ranks)
    whole = metrics.compute_metrics(ranks_in_catalogue(scores, targets))
    # A list that ends early: nobody knows whether the tie at its end went on.
    ends_early = num_items < k + 1
    for got, slow in (
        (found, _slow_metrics(scores, targets, is_unsure=ends_early)),
        (whole, _slow_metrics(scores, targets, is_unsure=False)),
    ):
        for name, value in slow.items():
            if not math.isclose(got[name], value, abs_tol=1e-12):
                note = f"try {number}: {name} is {got[name]}, by hand {value}"
                return Outcome(wrong=1, note=note, count=USERS_PER_TRY)
    return Outcome(count=USERS_PER_TRY)


def _slow_metrics(
    scores: np.ndarray, targets: np.ndarray, *, is_unsure: bool
) -> dict[str, float]:
    sums = dict.fromkeys(metrics.REPORTED, 0.0)
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        better = sum(1 for score in row if score >= row[target])
        is_tied_last = better == len(row) and row.count(row[target]) > 1
        for name in sums:
            kind, _, cutoff = name.partition("@")
            if better <= int(cutoff) and not (is_unsure and is_tied_last):
                sums[name] += {
                    "recall": 1.0,
                    "ndcg": 1.0 / math.log2(better + 1),
                    "mrr": 1.0 / better,
                }[kind]
    return {name: total / len(targets) for name, total in sums.items()}


# --- Seeds and devices --------------------------------------------------------------


def same_seed(number: int, folder: Path) -> Outcome:
    """All stages, twice, with a seed of the try's own."""
    shop.whole_run(folder.parent)
    hashes: list[dict[str, str]] = []
    for name in ("first", "second"):
        workdir = folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        for stage in ("", *shop.ON_REQUEST):
            ended = shop.run_stage(stage, workdir, f"--gin.SEED={number + 1}")
            assert ended.code == 0, ended.output[-500:]
        made = {n: artifacts.load_manifest(workdir / n) for n in _FOLDERS}
        hashes.append({name: manifest.content_hash for name, manifest in made.items()})
    first, second = hashes
    other = [name for name in _FOLDERS if first[name] != second[name]]
    return Outcome(wrong=1, note=f"seed {number + 1}: {other}") if other else FINE


_FOLDERS = [name for name in shop.FOLDERS.values() if name != shop.SHOWS_TIMES]
# Of the largest parameter: sums are added in another order, for 60 updates.
DEVICE_TOLERANCE = 2e-3


def same_on_devices(number: int, folder: Path) -> Outcome:
    """The recommender, trained on 1, 2 and 8 devices."""
    whole = shop.whole_run(folder.parent)
    trained = {}
    for devices in (1, 2, 8):
        workdir = folder / f"on_{devices}"
        shop.copy_before("train_recommender", whole, workdir)
        ended = shop.Stage(
            "train_recommender",
            workdir,
            f"--gin.train_recommender.seed={number}",
            num_devices=devices,
        ).end()
        assert ended.code == 0, ended.output[-500:]
        assert f"mesh {devices} data" in ended.output, "it used other devices"
        *_, params = load_recommender(workdir / "recommender")
        trained[devices] = jax.tree.leaves(jax.device_get(params))
    problems = []
    for devices in (2, 8):
        for one, other in zip(trained[1], trained[devices], strict=True):
            apart = np.abs(one - other).max() / np.abs(one).max()
            if not apart <= DEVICE_TOLERANCE:
                problems.append(f"{devices} devices: {apart:.2g}")
    note = f"seed {number}: {problems}" if problems else ""
    return Outcome(wrong=int(bool(problems)), note=note)


FAULTS = [
    Fault(
        "invariant: a decoded list, random tables",
        900_000,
        decode_tables,
        quick=LISTS_PER_TRY,
        tries_per_row=20_000,
    ),
    Fault(
        "invariant: a decoded list, random TIGERs",
        100_000,
        decode_tiger,
        tries_per_row=10_000,
    ),
    Fault(
        "invariant: codebook to table, tokens, trie and back",
        10_000,
        round_trips,
        tries_per_row=500,
    ),
    Fault(
        "invariant: a user's metrics, by hand",
        100_000,
        metrics_by_hand,
        quick=2000,
        tries_per_row=10_000,
    ),
    Fault("invariant: same seed, same folders", 10, same_seed, seconds=1800),
    Fault(
        f"invariant: 1, 2 and 8 devices, within {DEVICE_TOLERANCE:g}",
        10,
        same_on_devices,
        seconds=1800,
    ),
]
