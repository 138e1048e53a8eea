"""The sentence about an item."""

import pyarrow as pa
import pytest
from shops import shop_of

from tiger_jax.data.item_text import (
    ItemTextConfig,
    build_item_texts,
    examine_texts,
)
from tiger_jax.data.raw_shop import CATEGORY_PATHS
from tiger_jax.errors import InputError

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Red\n  polish {5 ml}", "", ""],
        "brand": ["OPI", "Essie", ""],
        "price": pa.array([4.5, None, None], pa.float64()),
        "categories": pa.array(
            [[["Beauty", "Nails"], ["Beauty", "Gifts"]], [], []], CATEGORY_PATHS
        ),
        "colour": ["red", "blue", ""],
    }
)


def test_the_default_is_the_papers_sentence():
    """The default is the paper's sentence without what is unknown."""
    assert build_item_texts(ITEMS, ItemTextConfig()) == [
        "This item is called 'Red polish {5 ml}'. It is priced at 4.50. It is "
        "manufactured by 'OPI'. It belongs to the categories of Beauty, Nails, Gifts.",
        "It is manufactured by 'Essie'.",
        "",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"title": "", "brand": "", "price": None, "categories": []}, "no item has a"),
        ({"title": "", "brand": "", "price": 3.0, "categories": []}, "but a price"),
        ({"title": "Item", "brand": "", "categories": []}, "have the same text"),
        ({"title": "12.99 €"}, "titles hold no letters"),
        ({"brand": "", "categories": []}, "about 67% of the items have no text"),
        ({}, None),
    ],
)
def test_texts_that_tell_nothing_are_warned_of(changes, problem):
    items = ITEMS
    for name, value in changes.items():
        kind = ITEMS.schema.field(name).type
        place = ITEMS.column_names.index(name)
        items = items.set_column(place, name, pa.array([value] * 3, kind))
    flag = "--gin.files.FilesConfig.title=NAME"
    *shown, last = examine_texts(items, ItemTextConfig(), flag)
    if problem is None:
        assert last.startswith("  text             of 'a': This item is called 'Red")
    else:
        assert last.startswith("WARNING: ")
        assert problem in last
        assert flag in last
        assert flag not in examine_texts(items, ItemTextConfig())[-1]
    assert len(shown) == (problem not in (None, "no item has a"))


def test_further_columns_and_other_prices_can_be_written():
    config = ItemTextConfig(("{title} in {colour}, {{new}}", "{price}"), "${:.0f}")
    texts = build_item_texts(ITEMS, config)
    assert texts == ["Red polish {5 ml} in red, {new} $4", "", ""]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("{size}", "{size} in '{size}' is no field of the items (there are: item_id"),
        ("{title.__class__}", "{title.__class__} in"),
        ("{title[0]}", "is no field"),
        ("{}", "{} in '{}' is no field"),
        ("{title!r}", "is no field"),
        ("{title:>9}", "is no field"),
        ("{title", "is malformed (expected '}' before end of string)"),
    ],
)
def test_templates_that_name_no_field_are_refused(sentence, expected):
    with pytest.raises(InputError) as caught:
        build_item_texts(ITEMS, ItemTextConfig((sentence,)))
    assert expected in str(caught.value)


@pytest.mark.parametrize("price_format", ["{:d}", "{0.__class__.x}", "{1}", "{"])
def test_price_formats_that_fit_no_number_are_refused(price_format):
    with pytest.raises(InputError, match="price_format"):
        build_item_texts(ITEMS, ItemTextConfig(("{price}",), price_format))


def test_texts_follow_the_order_of_the_table():
    items = shop_of([("u", f"i{n}", n) for n in range(50)]).items
    texts = build_item_texts(items, ItemTextConfig(("{item_id}",)))
    assert texts == [f"i{n}" for n in range(50)]
