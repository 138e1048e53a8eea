"""The sentence about an item that is embedded."""

import string
from dataclasses import replace
from typing import Any

import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag

_LOOKED_AT = 2000


@config("item_text")
class ItemTextConfig:
    """The template of an item's text.

    `{title}`, `{brand}`, `{price}`, `{categories}`, `{item_id}` and any further
    column of the items can stand in a sentence. A sentence that names a field the
    item lacks is left out, so that no text speaks of unknown prices.

    Attributes:
        price_format: Python's format of a price ("${:.2f}" where it is dollars).
    """

    sentences: tuple[str, ...] = (
        "This item is called '{title}'.",
        "It is priced at {price}.",
        "It is manufactured by '{brand}'.",
        "It belongs to the categories of {categories}.",
    )
    price_format: str = "{:.2f}"


def build_item_texts(items: pa.Table, config: ItemTextConfig) -> list[str]:
    """Writes the text of each item, in the table's order; "" if nothing is known.

    Categories are all names on the item's paths, root first, each once. White
    space is made single spaces.

    Raises:
        InputError: The template is malformed, or names a field that isn't there.

    Examples:
        >>> items = pa.table({"title": ["Red polish", ""], "price": [None, 2.5]})
        >>> config = ItemTextConfig(("Called {title}.", "Costs {price}."))
        >>> build_item_texts(items, config)
        ['Called Red polish.', 'Costs 2.50.']
    """
    templates = [
        (sentence, _fields_of(sentence, items.column_names))
        for sentence in config.sentences
    ]
    used = sorted({field for _, fields in templates for field in fields})
    columns = [
        [_as_text(field, value, config) for value in items[field].to_pylist()]
        for field in used
    ]
    texts = []
    for row in range(items.num_rows):
        values = {f: column[row] for f, column in zip(used, columns, strict=True)}
        sentences = (
            sentence.format_map(values)
            for sentence, fields in templates
            if all(values[field] for field in fields)
        )
        texts.append(" ".join(" ".join(sentences).split()))
    return texts


def examine_texts(
    items: pa.Table, config: ItemTextConfig, naming: str | None = None
) -> list[str]:
    """Shows what will be embedded, and warns where it can't tell items apart.

    Args:
        naming: The flag by which the reader is told the title's column, if there is.

    Raises:
        InputError: As `build_item_texts`.
    """
    step = max(items.num_rows // _LOOKED_AT, 1)
    some = items.take(list(range(0, items.num_rows, step)))
    texts = build_item_texts(some, config)
    without_price = [s for s in config.sentences if "{price}" not in s]
    telling = build_item_texts(some, replace(config, sentences=tuple(without_price)))
    lines = []
    if longest := max(texts, key=len, default=""):
        item_id = some["item_id"][texts.index(longest)].as_py()
        lines.append(f"  text             of {item_id!r}: {longest[:300]}")
    if not any(texts):
        problem = "no item has a text"
    elif not any(telling):
        problem = "the items' texts hold nothing but a price"
    elif len(set(telling)) == 1 and len(telling) > 1:
        problem = "all items have the same text"
    elif (titles := "".join(some["title"].to_pylist())) and not any(
        map(str.isalpha, titles)
    ):
        problem = "the items' titles hold no letters"
    elif (empty := telling.count("")) > len(telling) / 2:
        problem = f"about {empty / len(telling):.0%} of the items have no text"
    else:
        return lines
    advice = "bring vectors with --embeddings"
    if naming:
        named = f"name the columns that do with {naming}, .brand or .categories"
        advice = f"{named}, or {advice}"
    return [
        *lines,
        f"WARNING: {problem}, by which a recommender can't tell them apart: {advice}",
    ]


def _fields_of(sentence: str, columns: list[str]) -> list[str]:
    """The fields in a template; only plain names, which reach nothing else."""
    try:
        parts = list(string.Formatter().parse(sentence))
    except ValueError as error:
        raise InputError(
            f"ItemTextConfig.sentences: {sentence!r} is malformed ({error}): write "
            "fields as {title}, and a brace that is meant as one twice"
        ) from error
    fields = [field for _, field, _, _ in parts if field is not None]
    for _, field, spec, conversion in parts:
        if field is not None and (field not in columns or spec or conversion):
            raise InputError(
                f"ItemTextConfig.sentences: {{{field}}} in {sentence!r} is no field of "
                f"the items (there are: {', '.join(columns)})"
            )
    return fields


def _as_text(field: str, value: Any, config: ItemTextConfig) -> str:
    if value is None:
        return ""
    if field == "categories":
        names = dict.fromkeys(name for path in value for name in path)
        return ", ".join(names)
    if field == "price":
        try:
            return config.price_format.format(value)
        except (ValueError, LookupError, AttributeError) as error:
            raise InputError(
                f"ItemTextConfig.price_format: {config.price_format!r} can't format a "
                f"number ({error}): write it as in "
                + flag("item_text.ItemTextConfig.price_format", "{:.2f}")
            ) from error
    return " ".join(str(value).split())
