"""A bundle answers as the work directory does, and tells when a part isn't its own."""

import shutil

import numpy as np
import pytest

from tiger_jax import artifacts
from tiger_jax.errors import InputError
from tiger_jax.serving.bundle import Bundle

HISTORY = ["item-1", "item-2"]


def test_beams_as_many_as_items_find_what_scoring_every_item_finds(recommender):
    options = {"k": 10, "filter": {"category": ["Shelf 1", "Shelf 2"]}}
    found = recommender.recommend(HISTORY, **options)
    exact = recommender.recommend(HISTORY, exact=True, **options)
    assert [i.item_id for i in found.items] == [i.item_id for i in exact.items]
    scores = [[i.score for i in answer.items] for answer in (found, exact)]
    np.testing.assert_allclose(*scores, atol=1e-4)
    assert {i.category for i in found.items} == {"Shelf 1", "Shelf 2"}
    assert not {i.item_id for i in found.items} & set(HISTORY)


def test_a_filter_leaves_the_next_request_with_the_same_filter_whole(recommender):
    options = {"k": 10, "filter": {"category": "Shelf 1"}, "exclude_history": False}
    before = recommender.recommend(["item-2"], **options)
    everything = [f"item-{n}" for n in range(45)] * 2
    less = recommender.recommend(HISTORY, k=10, exclude=everything)
    assert {i.item_id for i in less.items} == {f"item-{n}" for n in range(45, 50)}
    assert recommender.recommend(["item-2"], **options) == before
    assert len(before.items) == 10


def test_a_batch_answers_as_its_requests_do_alone(recommender):
    histories = [HISTORY, ["item-3"], ["gone"], ["item-4", "gone"], []]
    together = recommender.recommend(histories, k=5)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.recommend(history, k=5)
        assert [i.item_id for i in alone.items] == [i.item_id for i in answer.items]
    assert [a.by for a in together] == ["tiger", "tiger", *["popularity", "tiger"]] + [
        "popularity"
    ]
    assert together[3].unknown_items == ("gone",)


def test_a_seed_decides_what_is_drawn(recommender):
    draw = [
        recommender.recommend(HISTORY, k=8, temperature=1.0, seed=s) for s in (1, 1, 2)
    ]
    assert draw[0] == draw[1] != draw[2]
    assert len({i.item_id for i in draw[0].items}) == 8


def test_a_damaged_part_is_named(folder, tmp_path):
    copy = tmp_path / "bundle"
    for name in ("params.safetensors", "programs/search_1.stablehlo", "trie/trie.json"):
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(InputError, match=name.split("/")[-1]):
            Bundle.load(copy)


def test_a_part_of_another_bundle_is_named_even_with_its_manifest(folder, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    is_new = np.load(copy / "items" / "is_new.npy")
    np.save(copy / "items" / "is_new.npy", ~is_new)
    manifest = artifacts.read_json(copy / "manifest.json")
    path = copy / "items" / "is_new.npy"
    manifest["files"]["items/is_new.npy"]["sha256"] = artifacts.hash_file(path)
    artifacts.write_json(copy / "manifest.json", manifest)
    with pytest.raises(InputError, match="items is .* of another bundle"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 51}, "at least as many beams"),
        ({"temperature": float("nan")}, "temperature"),
        ({"epsilon": 2.0}, "epsilon"),
        ({"filter": {"colour": "red"}}, "no field 'colour'"),
        ({"prefix": [8]}, "codeword 8 at level 0"),
    ],
)
def test_a_senseless_request_is_refused(recommender, options, message):
    with pytest.raises(InputError, match=message):
        recommender.recommend(HISTORY, **options)
