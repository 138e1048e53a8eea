import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.collisions import (
    add_collision_level,
    count_distinct,
    group_rows,
)
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout

# Few codewords for many items, so that most items collide.
crowded_codes = hnp.arrays(
    np.int32, st.tuples(st.integers(1, 40), st.just(2)), elements=st.integers(0, 2)
)


def ids_for(codes, seed):
    order = np.random.default_rng(seed).permutation(len(codes))
    return [f"item{number:03}" for number in order]


def a_table():
    codes = np.array([[0, 1, 0], [0, 1, 1], [2, 0, 0]], np.int32)
    return SemanticIdTable(codes, (3, 2, 4), 2, ("a", "b", "ü"))


@given(crowded_codes, st.integers(0, 5))
def test_the_collision_level_makes_ids_unique(codes, seed):
    """Collisions make IDs unique and leave learned levels alone."""
    full = add_collision_level(codes, ids_for(codes, seed))
    np.testing.assert_array_equal(full[:, :-1], codes)
    assert len({tuple(row) for row in full.tolist()}) == len(codes)


@given(crowded_codes, st.integers(0, 5))
def test_collision_codewords_count_up_in_every_group(codes, seed):
    full = add_collision_level(codes, ids_for(codes, seed))
    for row in np.unique(codes, axis=0):
        numbers = full[(codes == row).all(1), -1]
        assert sorted(numbers.tolist()) == list(range(len(numbers)))


def test_collision_codewords_do_not_follow_the_ids():
    item_ids = [f"B{number:09}" for number in range(400)]  # as they came, perhaps
    numbers = add_collision_level(
        np.zeros((400, 1), int), item_ids, collision_level_size=512
    )[:, -1]
    assert abs(np.corrcoef(numbers, np.arange(400))[0, 1]) < 0.15


@given(crowded_codes, st.integers(0, 5))
def test_the_order_of_the_items_changes_no_id(codes, seed):
    item_ids = ids_for(codes, seed)
    shuffle = np.random.default_rng(seed + 1).permutation(len(codes))
    full = add_collision_level(codes, item_ids)
    shuffled = add_collision_level(codes[shuffle], [item_ids[i] for i in shuffle])
    np.testing.assert_array_equal(shuffled, full[shuffle])


@given(crowded_codes, st.integers(0, 9), st.integers(0, 3))
def test_items_that_join_take_the_smallest_free_codeword(codes, seed, num_kept):
    rng = np.random.default_rng(seed)
    item_ids = ids_for(codes, seed)
    # Kept codewords with gaps, at most one of each in a group.
    among_all = add_collision_level(codes, item_ids)[:, -1]
    taken = 3 * among_all % 7
    kept = (rng.random(len(codes)) < num_kept / 3) & (among_all < 7)
    taken = np.where(kept, taken, -1)
    full = add_collision_level(codes, item_ids, taken=taken)

    used = {(*row, t) for row, t in zip(codes.tolist(), taken.tolist(), strict=True)}
    for item in np.argsort(among_all, kind="stable"):  # in the order of a group
        row = tuple(codes[item].tolist())
        expected = int(taken[item])
        if expected < 0:
            expected = next(n for n in range(99) if (*row, n) not in used)
            used.add((*row, expected))
        assert full[item].tolist() == [*row, expected]


def test_two_items_cannot_keep_one_id():
    codes = np.zeros((3, 1), np.int32)
    with pytest.raises(InputError, match="'a' and 'c' have the same codewords"):
        add_collision_level(codes, ["a", "b", "c"], taken=np.array([4, -1, 4]))


@given(crowded_codes)
def test_groups_are_the_distinct_rows(codes):
    groups = group_rows(codes)
    rows = [tuple(row) for row in codes.tolist()]
    numbers = {row: number for number, row in enumerate(sorted(set(rows)))}
    assert groups.tolist() == [numbers[row] for row in rows]
    assert count_distinct(codes) == len(numbers)


def test_groups_of_many_wide_levels_do_not_overflow():
    codes = np.array([[2**20 - 1] * 8, [2**20 - 1] * 7 + [0]], np.int32)
    assert group_rows(codes).tolist() == [1, 0]


def test_a_full_collision_level_says_how_to_widen_it():
    codes = np.zeros((5, 2), np.int32)
    with pytest.raises(InputError, match=r"5 items share .*collision_level_size=8"):
        add_collision_level(codes, list("abcde"), collision_level_size=4)
    full = add_collision_level(codes, list("abcde"), collision_level_size=5)
    assert sorted(full[:, -1].tolist()) == [0, 1, 2, 3, 4]


def test_a_table_is_read_back_as_it_was_saved(tmp_path):
    table = a_table()
    table.save(tmp_path)
    loaded = SemanticIdTable.load(tmp_path)
    np.testing.assert_array_equal(loaded.codes, table.codes)
    assert loaded.codes.dtype == np.int32
    assert loaded.codebook_sizes == (3, 2, 4)
    assert loaded.item_ids == ("a", "b", "ü")
    assert loaded.num_levels == 2
    assert loaded.content_hash == table.content_hash


def test_the_content_hash_sees_every_part():
    table = a_table()
    other_codes = table.codes.copy()
    other_codes[2, 0] = 1
    others = [
        SemanticIdTable(other_codes, (3, 2, 4), 2, table.item_ids),
        SemanticIdTable(table.codes, (3, 2, 5), 2, table.item_ids),
        SemanticIdTable(table.codes, (3, 2, 4), 2, ("a", "b", "c")),
    ]
    assert len({table.content_hash} | {t.content_hash for t in others}) == 4


def test_a_changed_file_is_noticed(tmp_path):
    table = a_table()
    table.save(tmp_path)
    other = table.codes.copy()
    other[2, 0] = 1
    np.save(tmp_path / "codes.npy", other)
    with pytest.raises(InputError, match="table.json says"):
        SemanticIdTable.load(tmp_path)


@pytest.mark.parametrize("name", ["codes.npy", "item_ids.parquet", "table.json"])
def test_a_missing_or_truncated_file_is_an_input_error(tmp_path, name):
    folder = tmp_path / "semantic_ids"
    a_table().save(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="assign_semantic_ids again"):
        SemanticIdTable.load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match="assign_semantic_ids again"):
        SemanticIdTable.load(folder)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 0], [0, 0]], "'a' and 'b' share"),
        ([[0, 0], [3, 0]], "'b' has codeword 3 at level 0"),
        ([[0, 0], [-1, 0]], "'b' has codeword -1"),
    ],
)
def test_a_table_refuses_codes_that_name_no_single_item(codes, message):
    with pytest.raises(InputError, match=message):
        SemanticIdTable(np.array(codes, np.int32), (3, 2), 1, ("a", "b"))


def test_a_table_refuses_sizes_or_ids_of_another_length():
    codes = np.array([[0, 0], [1, 0]], np.int32)
    with pytest.raises(InputError, match="codebook sizes"):
        SemanticIdTable(codes, (3, 2, 2), 1, ("a", "b"))
    with pytest.raises(InputError, match="learned levels"):
        SemanticIdTable(codes, (3, 2), 2, ("a", "b"))
    with pytest.raises(InputError, match="2 codes but 1"):
        SemanticIdTable(codes, (3, 2), 1, ("a",))
    with pytest.raises(InputError, match="twice"):
        SemanticIdTable(codes, (3, 2), 1, ("a", "a"))


LAYOUT = TokenLayout((3, 5, 2), num_user_tokens=7)
layout_codes = hnp.arrays(
    np.int32, st.tuples(st.integers(0, 9), st.just(3)), elements=st.integers(0, 100)
).map(lambda codes: codes % np.array(LAYOUT.codebook_sizes, np.int32))


@given(layout_codes)
def test_tokens_and_codes_are_each_others_inverse(codes):
    tokens = LAYOUT.tokens_of(codes)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(LAYOUT.codes_of(tokens), codes)


def test_every_token_has_one_meaning():
    tokens = [0]
    for level, size in enumerate(LAYOUT.codebook_sizes):
        for codeword in range(size):
            codes = np.zeros(3, np.int32)
            codes[level] = codeword
            tokens.append(int(LAYOUT.tokens_of(codes)[level]))
    tokens += LAYOUT.user_tokens(np.arange(7, dtype=np.uint32)).tolist()
    assert tokens == list(range(LAYOUT.vocab_size))


def test_a_user_token_is_the_hash_modulo_their_number():
    hashes = np.array([0, 7, 2**32 - 1], np.uint32)
    expected = [11, 11, 11 + (2**32 - 1) % 7]
    assert LAYOUT.user_tokens(hashes).tolist() == expected


def test_a_token_of_another_level_has_no_code():
    with pytest.raises(ValueError, match="does not belong"):
        LAYOUT.codes_of(np.array([1, 1, 9]))


def test_a_layout_survives_json():
    text = json.dumps(LAYOUT.to_json())
    assert TokenLayout.from_json(json.loads(text)) == LAYOUT
    with pytest.raises(InputError, match="not a token layout"):
        TokenLayout.from_json({"codebook_sizes": [3]})
