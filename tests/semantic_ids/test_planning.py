"""Plans of Semantic IDs against codes that were drawn, or assigned, and counted."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tiger_jax.decoding.trie import Trie, expected_case, make_plan
from tiger_jax.errors import InputError
from tiger_jax.quantizers.residual_kmeans import ResidualKMeans
from tiger_jax.semantic_ids.collisions import add_collision_level, group_rows
from tiger_jax.semantic_ids.planning import (
    CodeSpread,
    expected_distinct,
    expected_largest_group,
    plan_semantic_ids,
)
from tiger_jax.semantic_ids.quality import describe_codes

DATA = os.environ.get("TIGER_DATA")


def draw_codes(num_items, sizes, *, shape=None, seed=0):
    """Uniform cells, or cells whose shares are Gamma of a shape."""
    rng = np.random.default_rng(seed)
    cells = int(np.prod(sizes))
    if shape is None:
        cell = rng.integers(0, cells, num_items)
    else:
        weights = rng.gamma(shape, size=cells)
        cell = rng.choice(cells, num_items, p=weights / weights.sum())
    return np.column_stack(np.unravel_index(cell, sizes)).astype(np.int32)


@pytest.mark.parametrize("num_items", [500, 20_000, 300_000])
def test_uniform_codes_are_as_planned(num_items):
    codes = draw_codes(num_items, (32, 32, 32))
    plan = plan_semantic_ids(num_items, codebook_size=32, num_levels=3)
    measured = describe_codes(codes, (32, 32, 32))
    for level, expected in zip(measured["levels"], plan.num_prefixes, strict=False):
        assert level["distinct_prefixes"] == pytest.approx(expected, rel=0.015)
    assert measured["collision_rate"] == pytest.approx(plan.collision_rate, abs=0.005)
    assert abs(measured["largest_group"] - plan.largest_group) <= 2
    # Their spread is measured to be uniform; deep levels show it in few collisions.
    spread = CodeSpread.measure(codes, (32, 32, 32))
    np.testing.assert_allclose(spread.evenness, 1, atol=0.1)


@pytest.mark.parametrize("shape", [0.05, 0.5, 5.0])
def test_a_tenth_of_uneven_codes_tells_of_all(shape):
    sizes, num_items = (16, 16, 16), 50_000
    codes = draw_codes(num_items, sizes, shape=shape)
    spread = CodeSpread.measure(codes[: num_items // 10], sizes)
    plan = plan_semantic_ids(num_items, codebook_size=16, num_levels=3, spread=spread)
    measured = describe_codes(codes, sizes)
    distinct = measured["levels"][-1]["distinct_prefixes"]
    assert plan.num_prefixes[2] == pytest.approx(distinct, rel=0.1)
    assert plan.collision_rate == pytest.approx(measured["collision_rate"], abs=0.01)
    assert plan.largest_group == pytest.approx(measured["largest_group"], rel=0.3)
    assert plan.largest_group_bound >= measured["largest_group"]
    assert plan.codebook_sizes[-1] >= measured["largest_group"]


def test_a_quantizer_is_planned_from_a_part_of_its_items():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(50, 8)) * 2
    items = (centers[rng.integers(50, size=8000)] + rng.normal(size=(8000, 8))) / 2
    sizes = (16, 16, 16)
    config = ResidualKMeans(sizes, max_iterations=5)
    codes = config.fit(items.astype(np.float32), seed=0).encode(items)
    spread = CodeSpread.measure(codes[:1000], sizes)
    plan = plan_semantic_ids(8000, codebook_size=16, num_levels=3, spread=spread)
    measured = describe_codes(codes, sizes)
    assert plan.collision_rate == pytest.approx(measured["collision_rate"], rel=0.15)
    assert plan.largest_group < measured["largest_group"] <= plan.largest_group_bound


def test_the_bytes_of_ids_and_trie_are_as_planned():
    sizes, num_items = (64, 64, 64), 60_000
    codes = draw_codes(num_items, sizes)
    ids = tuple(str(number) for number in range(num_items))
    full = add_collision_level(codes, ids)
    plan = plan_semantic_ids(num_items, codebook_size=64, num_levels=3)
    assert full.nbytes == plan.table_bytes
    assert plan.packed_bytes == num_items * (3 * 6 + 8) / 8
    assert plan.vocab_size == 1 + 3 * 64 + 256
    trie = make_plan(expected_case(plan.codebook_sizes, plan.num_prefixes))
    measured = Trie.build(full, plan.codebook_sizes)
    assert [level.kind for level in trie.levels] == [
        level.kind for level in measured.plan.levels
    ]
    assert sum(trie.level_bytes) == pytest.approx(measured.nbytes["levels"], rel=0.1)


def test_the_fewest_levels_that_keep_to_the_collision_rate():
    spread = CodeSpread((1.0, 0.6))
    plan = plan_semantic_ids(10**6, spread=spread, max_collision_rate=0.05)
    fewer = plan_semantic_ids(10**6, spread=spread, num_levels=plan.num_levels - 1)
    assert plan.collision_rate <= 0.05 < fewer.collision_rate
    # The last evenness holds for all further levels.
    assert spread.agreements((8, 8, 8)) == pytest.approx(
        [8**-1, 8**-1.6, 8**-2.2], rel=1e-12
    )


def test_counts_follow_from_their_definitions():
    assert expected_distinct(1, 1000, 1 / 1000) == pytest.approx(1, rel=1e-3)
    assert expected_distinct(2, 2, 1 / 2) == pytest.approx(2 * (1 - np.exp(-1)))
    # 50 are expected in each of the two cells, and a few more in the fuller one.
    assert expected_largest_group(100, 2, 1 / 2) in range(50, 60)
    assert expected_largest_group(10, 10**9, 1e-9) == 1


def test_what_can_not_be_planned_is_an_error():
    with pytest.raises(InputError, match="must be an item"):
        plan_semantic_ids(0)
    with pytest.raises(InputError, match="tell too little apart"):
        plan_semantic_ids(10**9, spread=CodeSpread((1.0, 0.001)))
    with pytest.raises(InputError, match=r"65,536 are the most"):
        plan_semantic_ids(10**9, codebook_size=16, num_levels=1)
    with pytest.raises(InputError, match="two items or more"):
        CodeSpread.measure(np.zeros((1, 2), np.int32), (4, 4))
    with pytest.raises(InputError, match="larger pilot"):
        CodeSpread.measure(np.arange(3)[:, None], (4,))


@pytest.mark.skipif(not DATA, reason="needs TIGER_DATA")
@pytest.mark.parametrize(
    ("name", "tolerance"), [("beauty_rqvae", 0.15), ("beauty_rqkmeans", 0.3)]
)
def test_a_quarter_of_beauty_tells_of_all_of_beauty(name, tolerance):
    path = Path(DATA) / "peer_semantic_ids" / f"{name}.json"
    codes = np.array(list(json.loads(path.read_text()).values()))[:, :3]
    codes = np.random.default_rng(0).permutation(codes)
    sizes = (256, 256, 256)
    spread = CodeSpread.measure(codes[: len(codes) // 4], sizes)
    plan = plan_semantic_ids(len(codes), num_levels=3, spread=spread)
    measured = describe_codes(codes, sizes)
    found = measured["collision_rate"]
    assert plan.collision_rate == pytest.approx(found, rel=tolerance)
    counts = np.bincount(group_rows(codes))
    assert plan.largest_group < counts.max() <= plan.largest_group_bound
