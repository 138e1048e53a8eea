"""The generated shop's shelf: departments, product lines, texts, what follows what.

A shop is made of product lines ("series"): one brand's line of one kind of
product, some ten items that differ in a step of a ladder (Starter, Basic, …,
Signature). Lines stand in categories, categories in departments, and a
department's categories are listed in the order in which people come to need
them: an espresso machine first, then a grinder, a portafilter, a jug.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int32, Int64

from tiger_jax.data.raw_shop import ITEM_COLUMNS


@dataclass(frozen=True)
class Department:
    """A department and its categories (name, product, usual price) in order of use.

    `section` stands between the department and its categories; where it is
    empty, category paths are two deep.
    """

    name: str
    section: str
    ladder: tuple[str, ...]
    categories: tuple[tuple[str, str, float], ...]


_WORDS = json.loads(
    (Path(__file__).parent / "synthetic_words.json").read_text(encoding="utf-8")
)
DEPARTMENTS = tuple(
    Department(
        department["name"],
        department["section"],
        tuple(_WORDS["ladders"][department["ladder"]].split()),
        tuple(map(tuple, department["categories"])),
    )
    for department in _WORDS["departments"]
)
CATEGORIES_PER_DEPARTMENT = 6
_REACH = 4  # places on a partner's ladder, up and down from the answering one

_BRAND_STARTS, _BRAND_ENDS, _LINE_NAMES, _COLORS = (
    tuple(_WORDS[kind].split())
    for kind in ("brand_starts", "brand_ends", "line_names", "colors")
)


@dataclass(frozen=True)
class Catalogue:
    """Items with their texts, and what the shop's customers will do with them.

    Attributes:
        popularity: How often an item is taken by those who follow nothing; sums to 1.
        launch: When the item comes to the shop, as a share of the shop's life; 0 for
            those there from the beginning.
        followers: Items that people take after this one, padded with -1.
        follower_probs: How likely each is; rows sum to 1, padding is 0.
    """

    items: pa.Table
    department: Int64[np.ndarray, " N"]
    popularity: Float64[np.ndarray, " N"]
    launch: Float64[np.ndarray, " N"]
    followers: Int32[np.ndarray, "N W"]
    follower_probs: Float64[np.ndarray, "N W"]


@dataclass(frozen=True)
class _Series:
    """Product lines P and where each of their items stands on its ladder."""

    of_item: Int64[np.ndarray, " N"]
    position: Int64[np.ndarray, " N"]
    first_item: Int64[np.ndarray, " P"]
    size: Int64[np.ndarray, " P"]
    category: Int64[np.ndarray, " P"]  # counted over all departments
    brand: Int64[np.ndarray, " P"]

    @property
    def department(self) -> Int64[np.ndarray, " P"]:
        return self.category // CATEGORIES_PER_DEPARTMENT


def build_catalogue(
    num_items: int,
    *,
    items_per_series: float,
    new_item_share: float,
    popularity_spread: float,
    step_share: float,
    same_brand_share: float,
    rng: np.random.Generator,
) -> Catalogue:
    """Draws a catalogue; `synthetic.SyntheticShopConfig` says what each number does."""
    series = _draw_series(num_items, items_per_series, rng)
    popularity = _draw_popularity(series, popularity_spread, rng)
    is_new = rng.random(num_items) < new_item_share
    launch = np.where(is_new, rng.uniform(0.05, 0.95, num_items), 0.0)
    followers, probs = _draw_followers(
        series, popularity, step_share, same_brand_share, rng
    )
    items = _write_texts(series, rng)
    # So far items stand line by line, which would give the structure away.
    order = rng.permutation(num_items)
    number = np.empty(num_items, np.int32)
    number[order] = np.arange(num_items, dtype=np.int32)
    renumbered = np.where(followers >= 0, number[followers], np.int32(-1))
    return Catalogue(
        items=items.take(order),
        department=series.department[series.of_item][order],
        popularity=(popularity / popularity.sum())[order],
        launch=launch[order],
        followers=renumbered[order],
        follower_probs=probs[order],
    )


def _draw_series(
    num_items: int, items_per_series: float, rng: np.random.Generator
) -> _Series:
    num_series = max(CATEGORIES_PER_DEPARTMENT, round(num_items / items_per_series))
    num_departments = min(len(DEPARTMENTS), num_series // CATEGORIES_PER_DEPARTMENT)
    shares = rng.gamma(8.0, size=num_series)
    size = 2 + rng.multinomial(num_items - 2 * num_series, shares / shares.sum())
    # Dealt out in turn: no category stays empty, so every ring below closes.
    num_categories = num_departments * CATEGORIES_PER_DEPARTMENT
    category = np.arange(num_series) % num_categories
    # A brand sells in one department, a few lines each; half the draws go to the
    # first third of its brands.
    brands = max(2, num_series // (num_departments * 5))
    within = np.minimum(
        (brands * rng.random(num_series) ** 1.6).astype(np.int64), brands - 1
    )
    first_item = np.cumsum(size) - size
    of_item = np.repeat(np.arange(num_series), size)
    return _Series(
        of_item=of_item,
        position=np.arange(num_items) - first_item[of_item],
        first_item=first_item,
        size=size,
        category=category,
        brand=(category // CATEGORIES_PER_DEPARTMENT) * brands + within,
    )


def _draw_popularity(
    series: _Series, spread: float, rng: np.random.Generator
) -> Float64[np.ndarray, " N"]:
    """Every category has its bestsellers; the categories themselves differ little."""
    weights = rng.lognormal(0.0, spread, len(series.size))[series.of_item]
    weights *= rng.lognormal(0.0, spread, len(series.of_item))
    category = series.category[series.of_item]
    of_category = np.bincount(category, weights=weights)
    share = rng.lognormal(0.0, 0.3, len(of_category))
    return weights * (share / of_category)[category]


def _draw_partners(
    series: _Series, ahead: int, same_brand_share: float, rng: np.random.Generator
) -> Int64[np.ndarray, " P"]:
    """For each line, one in the category `ahead` places on in its department's ring."""
    per_ring = CATEGORIES_PER_DEPARTMENT
    start = series.category - series.category % per_ring
    wanted = start + (series.category + ahead) % per_ring
    lines_of = [np.flatnonzero(series.category == c) for c in range(wanted.max() + 1)]
    partners = np.empty(len(series.size), np.int64)
    for line, category in enumerate(wanted):
        candidates = lines_of[category]
        same_brand = candidates[series.brand[candidates] == series.brand[line]]
        if len(same_brand) and rng.random() < same_brand_share:
            candidates = same_brand
        partners[line] = rng.choice(candidates)
    return partners


def _draw_followers(
    series: _Series,
    popularity: Float64[np.ndarray, " N"],
    step_share: float,
    same_brand_share: float,
    rng: np.random.Generator,
) -> tuple[Int32[np.ndarray, "N W"], Float64[np.ndarray, "N W"]]:
    """What people take after each item: a step up its line, or what goes with it.

    A share `step_share` takes the next or next but one of the same line. The rest
    turn to the line's two partners, one and two categories on, and there to the
    place on the ladder that answers to this item's, or one near it, the more popular
    the likelier. Where the ladder ends, only partners are left.
    """
    size, position, line = series.size, series.position, series.of_item
    columns: list[tuple[np.ndarray, np.ndarray]] = []  # (items [N], weights [N])
    for step, weight in ((1, 0.7), (2, 0.3)):
        exists = position + step < size[line]
        followers = np.where(exists, np.arange(len(line)) + step, -1)
        columns.append((followers, np.where(exists, weight * step_share, 0.0)))
    relative = position / (size[line] - 1)
    for ahead, share in ((1, 0.65), (2, 0.35)):
        partner = _draw_partners(series, ahead, same_brand_share, rng)[line]  # [N]
        centre = np.rint(relative * (size[partner] - 1)).astype(np.int64)
        near: list[tuple[np.ndarray, np.ndarray]] = []
        for offset in range(-_REACH, _REACH + 1):
            place = centre + offset
            exists = (place >= 0) & (place < size[partner])
            followers = np.where(exists, series.first_item[partner] + place, -1)
            weights = np.exp(-abs(offset) / 3) * popularity[followers]
            near.append((followers, np.where(exists, weights, 0.0)))
        total = np.sum([weights for _, weights in near], axis=0)
        scale = (1 - step_share) * share / total
        columns += [(followers, weights * scale) for followers, weights in near]
    probs = np.stack([weights for _, weights in columns], axis=1)  # [N, W]
    followers = np.stack([items for items, _ in columns], axis=1).astype(np.int32)
    return followers, probs / probs.sum(axis=1, keepdims=True)


def _write_texts(series: _Series, rng: np.random.Generator) -> pa.Table:
    """Titles, brands, prices and categories: true, but with something left out.

    The brand and the line tell lines apart, the ladder's word tells places apart;
    each is missing here and there, and a colour that means nothing is added. Which
    line goes with which stands nowhere.
    """
    num_items = len(series.of_item)
    names = [start + end for start in _BRAND_STARTS for end in _BRAND_ENDS]
    brands = rng.permutation(len(names))
    line_names = rng.integers(len(_LINE_NAMES), size=(len(series.size), 2))
    dearness = rng.lognormal(0.0, 0.35, len(series.size))
    drop = rng.random((num_items, 5))
    color = rng.integers(len(_COLORS), size=num_items)
    number = rng.choice(10 * num_items, size=num_items, replace=False)
    rows: dict[str, list] = {column: [] for column in ITEM_COLUMNS}
    for item, line in enumerate(series.of_item):
        department = DEPARTMENTS[series.department[line]]
        name, product, price = department.categories[
            series.category[line] % CATEGORIES_PER_DEPARTMENT
        ]
        round_, place = divmod(int(series.position[item]), len(department.ladder))
        brand = names[brands[series.brand[line] % len(brands)]]
        words = [
            brand if drop[item, 0] < 0.6 else "",
            _LINE_NAMES[line_names[line, 0]] if drop[item, 1] < 0.95 else "",
            _LINE_NAMES[line_names[line, 1]] if drop[item, 1] < 0.8 else "",
            product,
            f"{department.ladder[place]} Edition" if drop[item, 2] < 0.9 else "",
            str(round_ + 1) if round_ else "",
        ]
        title = " ".join(word for word in words if word)
        if drop[item, 3] < 0.4:
            title += f", {_COLORS[color[item]]}"
        ladder_factor = 0.7 + 0.6 * series.position[item] / series.size[line]
        price = price * dearness[line] * ladder_factor
        # As shops write it: two telling digits, and 99 cents.
        shelf_price = round(float(f"{price:.2g}") - 0.01, 2)
        rows["item_id"].append(f"P{number[item]:07d}")
        rows["title"].append(title)
        rows["brand"].append(brand if drop[item, 4] < 0.92 else "")
        rows["price"].append(shelf_price if drop[item, 3] < 0.88 else None)
        path = (department.name, department.section, name)
        rows["categories"].append([[step for step in path if step]])
    return pa.table(rows, schema=pa.schema(ITEM_COLUMNS))
