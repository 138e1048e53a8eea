"""What a browser gets of the tree of Semantic IDs."""

import base64
import gzip
import json

import numpy as np
import pytest

from tiger_jax.semantic_ids.code_tree import label_nodes, pack_tree


def unpack(packed):
    tree = json.loads(gzip.decompress(packed))
    dtypes = {"codes": "<u2", "category": "<u2", "counts": "<u4", "places": "<i2"}
    for name, dtype in dtypes.items():
        if tree[name] is not None:
            tree[name] = np.frombuffer(base64.b64decode(tree[name]), dtype)
    return tree


def test_items_come_in_the_order_of_their_ids_with_what_is_theirs():
    codes = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.int32)
    tree = unpack(
        pack_tree(
            codes,
            2,
            (2, 2, 2),
            item_ids=["a", "b", "c", "d"],
            titles=["Tea", "Soap", "Salt", "Sugar"],
            categories=["Food", "Bath", "Food", ""],
            counts=np.array([7, 5, 3, 1]),
        )
    )
    assert tree["ids"] == ["d", "c", "b", "a"]
    assert tree["titles"] == ["Sugar", "Salt", "Soap", "Tea"]
    assert tree["codes"].reshape(4, 3).tolist() == sorted(codes.tolist())
    assert tree["counts"].tolist() == [1, 3, 5, 7]
    names = [tree["categories"][c] if c < 0xFFFF else "" for c in tree["category"]]
    assert names == ["", "Food", "Bath", "Food"]
    assert tree["places"] is None


def test_a_node_is_labelled_by_what_it_has_more_of():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]])
    titles = ["red lamp", "blue lamp", "green lamp", "red chair", "blue chair"]
    first, second = label_nodes(codes, titles)
    assert first == ["lamp", "chair"]
    assert second == ["lamp", "", "", ""]  # one item is no group


def test_a_node_is_told_from_its_neighbours():
    codes = np.array([[0, 0]] * 2 + [[0, 1]] * 2 + [[1, 0]] * 4)
    colors = ["red lamp", "red lamp", "blue lamp", "blue lamp"]
    first, second = label_nodes(codes, colors + ["oak chair"] * 4)
    assert first == ["lamp · red · blue", "oak · chair"]
    # Lamps are all of the first node; the last is all of its own, as in the catalogue.
    assert second == ["red", "blue", "oak · chair"]


def test_two_directions_tell_groups_apart():
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(3, 8), 20, axis=0) + 0.01 * rng.normal(size=(60, 8))
    packed = pack_tree(
        np.arange(60)[:, None],
        1,
        (64,),
        item_ids=[str(n) for n in range(60)],
        titles=[""] * 60,
        categories=[""] * 60,
        counts=np.zeros(60, int),
        vectors=vectors,
    )
    places = unpack(packed)["places"].reshape(3, 20, 2).astype(float)
    spread = places.std(axis=1).max()
    between = np.linalg.norm(np.diff(places.mean(1), axis=0), axis=1).min()
    assert between > 20 * spread


def test_many_first_codewords_come_in_groups_of_like_ones():
    rng = np.random.default_rng(0)
    kinds = rng.permutation(128) % 4  # of the codewords, numbered at random
    vectors = 0.01 * rng.normal(size=(128, 8))
    vectors[:, 5] += kinds

    def pack(codes, vectors):
        n = len(codes)
        return unpack(
            pack_tree(
                codes[:, None],
                1,
                (256,),
                item_ids=[str(item) for item in range(n)],
                titles=[""] * n,
                categories=[""] * n,
                counts=np.zeros(n, int),
                vectors=vectors,
            )
        )

    tree = pack(np.arange(128), vectors)
    assert (tree["grouped"], tree["levels"], tree["length"]) == (True, 2, 2)
    groups, codewords = tree["codes"].reshape(128, 2).T
    assert codewords.tolist() == [int(item) for item in tree["ids"]]
    by_group = [np.unique(kinds[codewords[groups == g]]).tolist() for g in range(4)]
    assert by_group in ([[0], [1], [2], [3]], [[3], [2], [1], [0]])
    assert not pack(np.arange(128), None)["grouped"]  # nothing to tell them by
    assert not pack(np.arange(128) % 64, vectors)["grouped"]  # few enough


@pytest.mark.slow
def test_twelve_thousand_items_are_less_than_a_megabyte_and_a_half():
    rng = np.random.default_rng(0)
    n = 12_000
    words = [
        f"word{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}{i}"
        for i in range(4000)
    ]
    titles = [" ".join(rng.choice(words, 9)) for _ in range(n)]
    packed = pack_tree(
        rng.integers(0, 256, (n, 4)),
        3,
        (256,) * 4,
        item_ids=[f"B{i:09}" for i in rng.permutation(n)],
        titles=titles,
        categories=[f"Category {c}" for c in rng.integers(0, 200, n)],
        counts=rng.integers(1, 500, n),
        vectors=rng.normal(size=(n, 16)),
    )
    assert len(packed) < 1_500_000
