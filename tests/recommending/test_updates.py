"""Items come and go; the model, its programs and everybody's Semantic IDs stay."""

import copy

import jax
import numpy as np
import pytest
from joining import HISTORIES, new_items

from tiger_jax.errors import InputError
from tiger_jax.quantizers.residual_kmeans import ResidualCodebooks
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.item_encoder import ItemCoder
from tiger_jax.recommending.new_items import NewItem
from tiger_jax.recommending.updates import update


def change(recommender, coder, **changes):
    catalogue, report = update(recommender.catalogue, coder, **changes)
    return recommender.fork(catalogue), report


def test_what_was_added_is_found_and_gone_again_when_removed(recommender, coder):
    before = recommender.recommend(HISTORIES, k=50, epsilon=None)
    added, report = change(recommender, coder, add=new_items(20))
    ids = [item.item_id for item in report.added]
    catalogue = added.catalogue
    assert recommender.recommend(HISTORIES, k=50) == before, "the old one changed"
    np.testing.assert_array_equal(
        catalogue.table.codes[:50], recommender.catalogue.table.codes
    )
    assert catalogue.search("novelty 7") == [57]
    for answer in added.recommend(HISTORIES, k=10, epsilon=0.2):
        assert sum(item.is_new for item in answer.items) == 2
    for answer in added.recommend(HISTORIES, k=10, epsilon=1.0):
        assert {item.item_id for item in answer.items} <= set(ids)
    removed, _ = change(added, coder, remove=ids)
    after = removed.recommend(HISTORIES, k=50)
    for old, new in zip(before, after, strict=True):
        assert (old.items, old.by) == (new.items, new.by)
    assert removed.catalogue.version == 2


def test_scores_that_cannot_be_compared_are_not_sorted(recommender, coder):
    """New items are spread through a list whose groups are normalised apart."""
    added, _ = change(recommender, coder, add=new_items(5))
    drawn = {"k": 10, "temperature": 1.0, "seed": 5}
    for answer in added.recommend(HISTORIES, epsilon=0.2, **drawn):
        assert answer.merged == "share"
        assert [i for i, item in enumerate(answer.items) if item.is_new] == [4, 9]
        groups = [
            [i.item_id for i in answer.items if i.is_new == is_new]
            for is_new in (False, True)
        ]
        for epsilon, group in zip((0.0, 1.0), groups, strict=True):
            alone = added.recommend(list(HISTORIES), epsilon=epsilon, **drawn)
            firsts = [[i.item_id for i in one.items[: len(group)]] for one in alone]
            assert group in firsts
            assert {one.merged for one in alone} == {"score"}
    for answer in added.recommend(HISTORIES, k=10, epsilon=0.2):
        assert answer.merged == "score"
        scores = [item.score for item in answer.items]
        assert scores == sorted(scores, reverse=True)


def test_new_items_beams_score_them_as_scoring_all_items_does(recommender, coder):
    added, _ = change(recommender, coder, add=new_items(25))
    options = {"k": 10, "filter": {"in_stock": True, "category": "Shelf 1"}}
    found = added.recommend(HISTORIES, **options)
    exact = added.recommend(HISTORIES, exact=True, **options)
    for one, other in zip(found, exact, strict=True):
        assert [i.item_id for i in one.items] == [i.item_id for i in other.items]
        assert {i.is_new for i in one.items} == {True}
        np.testing.assert_allclose(
            [i.score for i in one.items], [i.score for i in other.items], atol=1e-4
        )


def test_other_catalogues_of_the_capacity_compile_nothing(recommender, coder):
    options = {"k": 10, "epsilon": 0.3, "filter": {"category": ["Shelf 1"]}}
    current, _ = change(recommender, coder, add=new_items(3, seed=9))
    current.recommend(HISTORIES, **options)
    compiled = []
    name = "/jax/core/compile/backend_compile_duration"

    def count(event: str, *_, **__) -> None:
        compiled.extend([event] * (event == name))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for seed, number in enumerate((1, 7, 12)):
            current, _ = change(current, coder, add=new_items(number, seed))
            current.recommend(HISTORIES, **options)
        assert compiled == []
        jax.jit(lambda x: x + 41)(np.ones(3))
        assert len(compiled) == 1, "compilations are not counted"
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_like_items_get_ids_of_their_own_while_there_are_any(recommender, coder):
    vector = [0.1] * 6
    twins = [NewItem(f"twin-{n}", "Twin", embedding=vector) for n in range(5)]
    free = 4 - _sharing(recommender.catalogue, coder, vector)
    added, report = change(recommender, coder, add=twins[:free])
    assert len({a.semantic_id[:3] for a in report.added}) == 1
    with pytest.raises(InputError, match=f"'twin-{free}' would be one of more than 4"):
        change(added, coder, add=twins[free : free + 1])
    # The one that leaves makes room, and only its own codeword is taken again.
    gone = report.added[1]
    _, again = change(added, coder, remove=["twin-1"], add=twins[4:])
    assert again.added[0].semantic_id == gone.semantic_id


def test_attributes_are_set_shown_filtered_and_taken_back(recommender, coder):
    changed, _ = change(
        recommender,
        coder,
        attributes={
            "item-3": {"in_stock": False, "category": "Garden", "price": 4.5},
            "*": {"in_stock": True},
        },
    )
    catalogue = changed.catalogue
    assert catalogue.categories[3] == "Garden"
    assert catalogue.values_of("in_stock") == {"true": 49, "false": 1}
    assert catalogue.mask({"price": {"max": 5.0}}).nonzero()[0].tolist() == [3]
    answer = changed.recommend(HISTORIES[0], k=5, filter={"category": "Garden"})
    assert [item.item_id for item in answer.items] == ["item-3"]
    no_stock = {"category": "Garden", "in_stock": True}
    assert changed.recommend(HISTORIES[0], filter=no_stock).items == ()
    back, _ = update(
        changed.catalogue,
        coder,
        attributes={
            "item-3": {"in_stock": None, "category": None, "price": None},
            "*": {"in_stock": None},
        },
    )
    assert back.attributes == {}
    assert back.categories == recommender.catalogue.categories


def test_a_removed_items_attributes_are_gone_with_it(recommender, coder):
    attributes = {"item-3": {"in_stock": False}}
    changed, _ = update(recommender.catalogue, coder, attributes=attributes)
    again = NewItem("item-3", "Third anew", embedding=[0.0] * 6)
    catalogue, _ = update(changed, coder, remove=["item-3"], add=[again])
    assert catalogue.attributes == {}
    assert catalogue.titles[catalogue.number_of["item-3"]] == "Third anew"
    assert catalogue.num_items == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "nothing to change"),
        ({"add": [{"title": "x"}]}, "a new item is an object"),
        ({"add": [{"item_id": "item-1"}]}, "in the catalogue already"),
        ({"add": new_items(1) * 2}, "given twice"),
        ({"add": [{"item_id": "a", "title": "x"}]}, "no encoder .* of 6 numbers"),
        ({"add": [{"item_id": "a", "embedding": [1.0]}]}, r"6 numbers.*shape \[1\]"),
        ({"add": [{"item_id": "a", "embedding": ["x"] * 6}]}, "6 numbers"),
        ({"add": [{"item_id": "a", "embedding": [float("nan")] * 6}]}, "isn't finite"),
        ({"add": [{"item_id": "*"}]}, "no name"),
        ({"add": [{"item_id": "\ud800"}]}, "no whole Unicode"),
        ({"add": [{"item_id": "a", "price": 10**400}]}, "positive number"),
        ({"add": [{"item_id": "a", "categories": "Hair"}]}, "categories are paths"),
        ({"add": [{"item_id": "a", "colour": ["red"]}]}, "'colour' must be a text"),
        ({"add": new_items(26)}, "76 items exceed the 75 .*export.room"),
        ({"remove": ["item-1", "gone", "away"]}, "no item 'gone' .* nor 1 others"),
        ({"add": [{"item_id": 7}]}, "item_id must be a text"),
        ({"remove": [f"item-{n}" for n in range(50)]}, "every item"),
        ({"attributes": {"gone": {"a": 1}}}, "no item 'gone' to set"),
        ({"attributes": {"item-1": {"embedding": 1}}}, "can't be changed"),
        ({"attributes": {"item-1": {"in_stock": None, "a": {}}}}, "'a' must be"),
        ({"attributes": {"item-1": "red"}}, "an object of fields"),
    ],
)
def test_a_senseless_change_is_refused_and_changes_nothing(
    recommender, coder, change, message
):
    catalogue = recommender.catalogue
    with pytest.raises(InputError, match=message):
        update(recommender.catalogue, coder, **change)
    assert (catalogue.num_items, catalogue.attributes) == (50, {})


def test_without_a_quantizer_nothing_joins(recommender):
    coder = ItemCoder(None, None, 6)
    with pytest.raises(InputError, match="no quantizer"):
        update(recommender.catalogue, coder, add=new_items(1))


def test_new_items_codes_rest_on_their_text_alone(recommender):
    """Codes that hold the collaborative signal rest on the text alone."""
    rng = np.random.default_rng(0)
    books = rng.normal(size=(3, 8, 8)).astype(np.float32)
    coder = ItemCoder(None, ResidualCodebooks(tuple(books)), 6, collaborative_dims=2)
    item = NewItem("a", "A", embedding=[3.0, 4.0, 0, 0, 0, 0])
    _, report = update(recommender.catalogue, coder, add=[item])
    unit = np.array([[0.6, 0.8, 0, 0, 0, 0, 0, 0]], np.float32)
    expected = coder.quantizer.encode(unit)[0].tolist()
    assert list(report.added[0].semantic_id[:3]) == expected
    assert "text alone" in report.notes[0]


@pytest.mark.parametrize(("occurs", "said"), [(1, "nearest in text"), (0, "alone")])
def test_a_new_item_takes_the_collaborative_vector_of_those_like_it(
    recommender, occurs, said
):
    """Where the bundle says which items occurred, as older ones don't."""
    rng, count = np.random.default_rng(0), recommender.catalogue.num_items
    catalogue = copy.copy(recommender.catalogue)
    catalogue.embeddings = rng.normal(size=(count, 6)).astype(np.float32)
    catalogue.collaborative = np.ones((count, 2), np.float32)
    catalogue.occurrences = np.full(count, occurs)
    books = rng.normal(size=(3, 8, 8)).astype(np.float32)
    coder = ItemCoder(None, ResidualCodebooks(tuple(books)), 6, collaborative_dims=2)
    item = NewItem("a", "A", embedding=[3.0, 4.0, 0, 0, 0, 0])
    changed, report = update(catalogue, coder, add=[item])
    np.testing.assert_allclose(changed.collaborative[-1], occurs, rtol=1e-6)
    assert said in report.notes[0]


def _sharing(catalogue: Catalogue, coder: ItemCoder, vector: list[float]) -> int:
    codes = coder.encode(np.array([vector], np.float32))
    return int((catalogue.table.codes[:, :-1] == codes).all(1).sum())
