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

from tiger_jax.decoding.search import beam_search
from tiger_jax.decoding.trie import (
    Trie,
    TriePlan,
    make_plan,
    worst_case,
)
from tiger_jax.errors import InputError

requests = jnp.arange(4, dtype=jnp.int32)


def in_order(codes):
    return codes[np.lexsort(codes.T[::-1])]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(shape, "mixed") for shape in SHAPES] + [("wide", kind) for kind in KINDS],
)
def test_a_trie_gives_back_its_semantic_ids(shape, kind):
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
    assert level.find(parents, codewords).tolist() == children.tolist()
    assert level.codeword(parents, children).tolist() == codes[:, 1].tolist()
    has = {(int(p), int(c)) for p, c in zip(parents, codewords, strict=True)}
    for row, parent in enumerate(parents.tolist()):
        every = jnp.arange(33, dtype=jnp.int32)
        child = level.find(jnp.full(33, parent, jnp.int32), every)
        found = child < level.plan.child_capacity
        assert found.tolist() == [(parent, c) in has for c in range(33)]
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
    plan = make_plan(worst_case(sizes, 120))
    for num_items, skew in ((100, False), (1, False), (120, True)):
        codes = random_codes(rng, sizes, num_items, skew=skew)
        trie = Trie.build(codes, sizes, plan=plan)
        result = run(tables, requests, trie, exclude)
        expected = Reference(codes, tables, "level").search(2, 5)
        assert_same(found_items(result, 2), expected)
    assert len(traces) == 1
    assert run._cache_size() == 1


def test_a_grown_catalogue_fits_a_plan_with_room():
    """A grown catalogue fits a plan with room, or the error says it doesn't."""
    rng = np.random.default_rng(1)
    sizes = (32, 32, 32)
    codes = random_codes(rng, sizes, 260)
    plan = make_plan(worst_case(sizes, 300))
    trie = Trie.build(codes[:200], sizes, plan=plan)
    grown = Trie.build(codes, sizes, plan=plan)
    assert jax.tree.structure(grown) == jax.tree.structure(trie)
    shapes = [a.shape for a in jax.tree.leaves(trie)]
    assert [a.shape for a in jax.tree.leaves(grown)] == shapes
    with pytest.raises(InputError, match="exceed the plan's room"):
        Trie.build(random_codes(rng, sizes, 400), sizes, plan=plan)
    narrow = [[0, 0, k] for k in range(32)]
    with pytest.raises(InputError, match="children of one node"):
        Trie.build(np.array(narrow), sizes, plan=Trie.build(codes, sizes).plan)
    with pytest.raises(InputError, match="codebooks"):
        Trie.build(codes, (32, 32, 64), plan=plan)


def test_the_planner_takes_the_fitting_kind():
    # 100,000 items in 3 levels of 2048: a wide root, a wide level 1, single children.
    rng = np.random.default_rng(0)
    codes = random_codes(rng, (2048, 2048, 2048), 100_000)
    trie = Trie.build(codes, (2048,) * 3)
    assert [level.kind for level in trie.plan.levels] == ["bitset", "csr", "csr"]
    statistics = worst_case((256, 256, 256), 50_000)
    plan = make_plan(statistics)
    assert {level.kind for level in plan.levels} == {"bitset"}
    forced = make_plan(statistics, kinds=[None, "bitmap", "csr"])
    assert [level.kind for level in forced.levels] == ["bitset", "bitmap", "csr"]
    with pytest.raises(InputError, match="make them equal"):
        TriePlan((forced.levels[0], dataclasses.replace(forced.levels[0])))


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_a_plan_counts_the_bytes_of_a_trie(kind):
    codes = draw_codes(np.random.default_rng(0), "wide")
    plan = plan_of("wide", kind, capacity=9000)
    trie = Trie.build(codes, SHAPES["wide"], plan=plan)
    assert trie.nbytes["levels"] == sum(plan.level_bytes)


def test_a_saved_trie_is_the_same_and_belongs_to_its_table(tmp_path):
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
