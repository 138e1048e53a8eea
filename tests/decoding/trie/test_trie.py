import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import (
    KINDS,
    SHAPES,
    assert_same,
    draw_codes,
    found_items,
    plan_of,
    search,
)
from decoding_reference import (
    Reference,
    decode_step,
    init_decode,
    make_tables,
    random_codes,
)

from tiger_jax.decoding.search.beam_search import beam_search
from tiger_jax.decoding.trie import prefixes
from tiger_jax.decoding.trie.planner import TriePlan, make_plan, worst_case
from tiger_jax.decoding.trie.prefixes import sort_prefixes
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError

requests = jnp.arange(4, dtype=jnp.int32)


def in_order(codes):
    return codes[np.lexsort(codes.T[::-1])]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(shape, "mixed") for shape in SHAPES] + [("wide", kind) for kind in KINDS],
)
def test_a_trie_gives_back_the_semantic_ids_it_was_built_from(shape, kind):
    rng = np.random.default_rng(0)
    for _ in range(3):
        codes = draw_codes(rng, shape)
        trie = Trie.build(codes, SHAPES[shape], plan=plan_of(shape, kind))
        np.testing.assert_array_equal(trie.semantic_ids(), in_order(codes))
        leaves = jnp.arange(len(codes), dtype=jnp.int32)
        items = trie.item_numbers(leaves)
        np.testing.assert_array_equal(codes[np.asarray(items)], in_order(codes))
        np.testing.assert_array_equal(trie.exclusion.leaves_of(items), leaves)
        # Ancestors of every leaf, and every question a level answers about them.
        for depth in range(1, len(SHAPES[shape])):
            prefixes = [tuple(code) for code in in_order(codes)[:, :depth].tolist()]
            numbers = {prefix: i for i, prefix in enumerate(sorted(set(prefixes)))}
            nodes = trie.exclusion.ancestors_of(leaves, depth)
            assert nodes.tolist() == [numbers[prefix] for prefix in prefixes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_maps_codewords_to_children_and_back(kind):
    """A level knows each child by its codeword, and the reverse."""
    codes = in_order(draw_codes(np.random.default_rng(7), "wide"))
    trie = Trie.build(codes, SHAPES["wide"], plan=plan_of("wide", kind))
    parents = jnp.asarray(trie.exclusion.ancestors_of(jnp.arange(len(codes)), 1))
    children = trie.exclusion.ancestors_of(jnp.arange(len(codes)), 2)
    level = trie.levels[1]
    codewords = jnp.asarray(codes[:, 1])
    assert level.child(parents, codewords).tolist() == children.tolist()
    assert level.codeword(parents, children).tolist() == codes[:, 1].tolist()
    has = {(int(p), int(c)) for p, c in zip(parents, codewords, strict=True)}
    mask = level.children_mask(parents)
    for row, parent in enumerate(parents.tolist()):
        every = jnp.arange(33, dtype=jnp.int32)
        found = level.has_child(jnp.full(33, parent, jnp.int32), every)
        assert found.tolist() == [(parent, c) in has for c in range(33)]
        assert mask[row].tolist() == found.tolist()
        assert int(level.fan_out(parents[row : row + 1])[0]) == int(found.sum())


def test_catalogues_of_one_capacity_share_a_compiled_search():
    traces = []

    def counted(params, inputs, trie, exclude):
        traces.append(trie.plan)
        return beam_search(
            params,
            inputs,
            trie,
            init_decode=init_decode,
            decode_step=decode_step,
            num_beams=5,
            exclude=exclude,
        )

    run = jax.jit(counted)
    rng = np.random.default_rng(0)
    sizes = (16, 16, 16)
    tables = make_tables(rng, sizes)
    exclude = jnp.full((4, 3), -1, jnp.int32)
    for num_items, skew in ((100, False), (1, False), (120, True)):
        codes = random_codes(rng, sizes, num_items, skew=skew)
        trie = Trie.build(codes, sizes, capacity=120)
        result = run(tables, requests, trie, exclude)
        expected = Reference(codes, tables, "level").search(2, 5)
        assert_same(found_items(result, 2), expected)
    assert len(traces) == 1
    assert run._cache_size() == 1


def test_a_grown_catalogue_fits_a_plan_with_headroom():
    """A grown catalogue fits a plan with headroom, or the error says it doesn't."""
    rng = np.random.default_rng(1)
    sizes = (32, 32, 32)
    codes = random_codes(rng, sizes, 260)
    trie = Trie.build(codes[:200], sizes, headroom=1.5)
    grown = Trie.build(codes, sizes, plan=trie.plan)
    assert jax.tree.structure(grown) == jax.tree.structure(trie)
    shapes = [a.shape for a in jax.tree.leaves(trie)]
    assert [a.shape for a in jax.tree.leaves(grown)] == shapes
    with pytest.raises(InputError, match="exceed the plan's room"):
        Trie.build(random_codes(rng, sizes, 400), sizes, plan=trie.plan)
    narrow = [[0, 0, k] for k in range(32)]
    with pytest.raises(InputError, match="children of one node"):
        Trie.build(np.array(narrow), sizes, plan=trie.plan)
    with pytest.raises(InputError, match="exceed the capacity"):
        Trie.build(codes, sizes, capacity=100)
    with pytest.raises(InputError, match="codebooks"):
        Trie.build(codes, (32, 32, 64), plan=trie.plan)


def test_the_planner_obeys_a_memory_cap():
    # 100,000 items in 3 levels of 2048: a wide root, a wide level 1, single children.
    """The planner takes the fitting kind and obeys a memory cap."""
    rng = np.random.default_rng(0)
    codes = random_codes(rng, (2048, 2048, 2048), 100_000)
    trie = Trie.build(codes, (2048,) * 3)
    assert [level.kind for level in trie.plan.levels] == ["bitset", "csr", "csr"]
    statistics = worst_case((256, 256, 256), 50_000)
    plan = make_plan(statistics)
    assert {level.kind for level in plan.levels} == {"bitset"}
    smaller = make_plan(statistics, memory_cap_bytes=sum(plan.level_bytes) // 2)
    assert sum(smaller.level_bytes) <= sum(plan.level_bytes) // 2
    assert smaller.levels[2].kind != "bitset"
    with pytest.raises(InputError, match="memory cap"):
        make_plan(statistics, memory_cap_bytes=1000)
    forced = make_plan(statistics, kinds=[None, "bitmap", "csr"])
    assert [level.kind for level in forced.levels] == ["bitset", "bitmap", "csr"]
    assert "bitmap" in str(forced)
    with pytest.raises(InputError, match="make them equal"):
        TriePlan((forced.levels[0], dataclasses.replace(forced.levels[0])))


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_a_plan_counts_the_bytes_that_a_trie_takes(kind):
    codes = draw_codes(np.random.default_rng(0), "wide")
    plan = plan_of("wide", kind, capacity=9000)
    trie = Trie.build(codes, SHAPES["wide"], plan=plan)
    assert trie.nbytes["levels"] == sum(plan.level_bytes)


def test_a_saved_trie_searches_alike_and_belongs_to_its_table(tmp_path):
    rng = np.random.default_rng(2)
    codes = draw_codes(rng, "wide")
    tables = make_tables(rng, SHAPES["wide"])
    for kind in (*KINDS, "mixed"):
        trie = Trie.build(
            codes,
            SHAPES["wide"],
            plan=plan_of("wide", kind, capacity=5000),
            attributes=np.ones(len(codes), np.uint32),
            unseen=np.arange(len(codes)) % 2 == 0,
        )
        trie.save(tmp_path / kind, content_hash="a" * 64)
        loaded = Trie.load(tmp_path / kind, content_hash="a" * 64)
        assert jax.tree.structure(loaded) == jax.tree.structure(trie)
        for mine, theirs in zip(
            jax.tree.leaves(loaded), jax.tree.leaves(trie), strict=True
        ):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        with pytest.raises(InputError, match="aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
            Trie.load(tmp_path / kind, content_hash="b" * 64)
    bare = Trie.build(codes, SHAPES["wide"], exclusion=False)
    bare.save(tmp_path / "bare", content_hash="c")
    loaded = Trie.load(tmp_path / "bare", content_hash="c")
    assert loaded.exclusion is None
    result = search(tables, requests, loaded, num_beams=7)
    expected = Reference(codes, tables, "level").search(1, 7)
    assert_same(found_items(result, 1), expected)
    (tmp_path / "bare" / "items.low.npy").unlink()
    with pytest.raises(InputError, match="build and save it again"):
        Trie.load(tmp_path / "bare", content_hash="c")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [2, 0], [0, 1]], "items 0 and 2 share the Semantic ID"),
        ([[0, 1], [4, 0]], "item 1 has codeword 4 at level 0, whose codebook has 4"),
        ([[0, 1], [1, -1]], "item 1 has codeword -1 at level 1"),
        ([[0, 1, 2]], "don't fit 2 codebooks"),
        (np.zeros((0, 2), np.int32), "without items"),
    ],
)
def test_semantic_ids_that_make_no_trie_are_named(codes, message):
    with pytest.raises(InputError, match=message):
        Trie.build(np.array(codes), (4, 4))


@pytest.mark.parametrize("sizes", [(3,) * 8, (4096,) * 8, (256,) * 8, (5, 4096, 7)])
@pytest.mark.parametrize("num_items", [1, 500, 300_000])
def test_sorting_in_rounds_is_a_lexicographic_sort(sizes, num_items):
    rng = np.random.default_rng(0)
    # Few distinct leading codewords, so that ties last through several rounds.
    spread = [min(size, 6 + level) for level, size in enumerate(sizes)]
    codes = rng.integers(0, spread, (num_items, len(sizes))).astype(np.int32)
    codes = np.unique(codes, axis=0)
    codes = codes[rng.permutation(len(codes))]
    check_sorted(codes, sizes)


def check_sorted(codes, sizes):
    found = sort_prefixes(codes, sizes)
    order = np.lexsort(codes.T[::-1])
    np.testing.assert_array_equal(found.order, order)
    by_id = codes[order]
    for level in range(len(sizes)):
        nodes, where = np.unique(by_id[:, : level + 1], axis=0, return_index=True)
        np.testing.assert_array_equal(found.tokens[level], nodes[:, -1])
        starts = np.unique(by_id[where, :level], axis=0, return_index=True)[1]
        np.testing.assert_array_equal(found.first[level], starts if level else [0])
    is_new = np.ones((len(codes), len(sizes)), bool)
    is_new[1:] = by_id[1:] != by_id[:-1]
    np.testing.assert_array_equal(found.first_difference[1:], is_new.argmax(1)[1:])


@pytest.mark.parametrize(
    "sizes", [(1, 4, 1), (65536, 3, 65536, 2, 65536, 9), (300,) * 12, (7,) * 30]
)
@pytest.mark.parametrize("spread", [2, 5, 1 << 16])
def test_blocks_and_ranges_join(sizes, spread, monkeypatch):
    monkeypatch.setattr(prefixes, "_BLOCK", 64)
    monkeypatch.setattr(prefixes, "_SAMPLE", 32)
    rng = np.random.default_rng(1)
    most = np.minimum(sizes, spread)
    for num_items in (2, 63, 64, 65, 1000):
        drawn = rng.integers(0, most, (num_items, len(sizes)))
        codes = np.unique(drawn.astype(np.uint16), axis=0)
        check_sorted(codes[rng.permutation(len(codes))], sizes)
        twice = np.concatenate([codes, codes[-1:]])
        with pytest.raises(InputError, match=f"{len(codes) - 1} and {len(codes)} sha"):
            sort_prefixes(twice, sizes)


def test_more_ties_than_sixteen_bits_count_are_broken():
    rng = np.random.default_rng(2)
    leading = rng.integers(0, 1 << 32, 100_000, dtype=np.uint64) << np.uint64(32)
    word = np.concatenate([leading | np.uint64(1 << 20), leading, leading])
    rows = prefixes._order_of([word], num_digits=4)
    np.testing.assert_array_equal(rows, np.argsort(word, kind="stable"))
