"""What each section of the report says, as plain values for the template."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation.record import title_of
from tiger_jax.reporting import paper_rows, tables
from tiger_jax.reporting.workdir_parts import WorkdirParts
from tiger_jax.semantic_ids.code_tree import pack_tree
from tiger_jax.semantic_ids.quality import MINIMUM_USE
from tiger_jax.semantic_ids.table import SemanticIdTable

# Title, and what it means.
SPLITS = {
    "test": (
        "Test",
        "The headline. Every item of the catalogue competes, also those the user "
        "already has.",
    ),
    "test_masked": (
        "Test, seen items masked",
        "Items that the user already has are taken out of the running.",
    ),
    "validation": (
        "Validation",
        "The item before the last, by which the checkpoint was chosen.",
    ),
}
NUM_RANDOM_SAMPLES, NUM_FOUND_SAMPLES, NUM_SAMPLES = 4, 2, 60
HISTORY_SHOWN, RECOMMENDED_SHOWN = 6, 10


def result_tables(parts: WorkdirParts) -> list[dict[str, Any]]:
    """One table per split, each a title, what it means, and its rows."""
    if parts.metrics is None:
        return []
    _, published = paper_rows.recognise_data(parts.data)
    intervals = (parts.details or {}).get("baseline_intervals", {})
    found = []
    for split, (title, meaning) in SPLITS.items():
        if split not in parts.metrics:
            continue
        quoted = published if split != "validation" else ()
        rows = tables.build_result_rows(
            parts.metrics,
            split,
            baseline_intervals=intervals,
            published=quoted,
            fusion=parts.fusion,
        )
        found.append(
            {
                "split": split,
                "title": title,
                "meaning": meaning,
                "columns": tables.columns_of(rows),
                "rows": rows,
                "is_published": bool(quoted),
            }
        )
    return found


def headline(parts: WorkdirParts) -> dict[str, Any] | None:
    """The one sentence and the few numbers that a hurried reader should take away."""
    if parts.metrics is None:
        return None
    test, intervals = parts.metrics["test"], parts.metrics["intervals"].get("test", {})
    ours = test["recall@10"]
    baselines = {
        name: splits["test"]["recall@10"]
        for name, splits in parts.metrics["baselines"].items()
        if "test" in splits
    }
    ceiling = (parts.metrics.get("ceiling") or {}).get("recall@10")
    cards = []
    for metric in ("recall@10", "ndcg@10"):
        note = ""
        if metric in intervals:
            note = f"95 % interval {tables.format_interval(intervals[metric])}"
        cards.append((tables.metric_title(metric), tables.short(test[metric]), note))
    for title, other, form in (
        ("against popularity", baselines.get("popularity"), "{:.1f} ×"),
        ("of the best possible", ceiling, "{:.0%}"),
    ):
        if other:
            note = f"whose Recall@10 is {tables.short(other)}"
            cards.append((title, form.format(ours / other), note))
    sentence = (
        f"For {ours:.1%} of users the item they took next is among the ten that TIGER "
        "recommends from the whole catalogue."
    )
    if comparison := _compare(parts, ours, baselines):
        sentence += f" {comparison}"
    names = ("title", "value", "note")
    named = [dict(zip(names, card, strict=True)) for card in cards]
    return {"sentence": sentence, "cards": named}


def warnings(parts: WorkdirParts, quality: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know before believing any number on the page."""
    found = [
        guard["explanation"]
        for guard in (parts.details or {}).get("guards", ())
        if not guard["is_fine"]
    ]
    for level in quality["levels"] if quality else ():
        if level["use"] < MINIMUM_USE:
            found.append(
                f"level {level['level']} of the Semantic IDs uses "
                f"{level['codewords_used']} of {level['codebook_size']} codewords: "
                "the codebook has collapsed"
            )
    if parts.metrics and parts.metrics["invalid_ids"]:
        found.append(f"{parts.metrics['invalid_ids']:,} recommendations are no items")
    return found


def pack_tree_of(parts: WorkdirParts) -> str | None:
    """The tree of Semantic IDs for the page, as base64; None without data and codes."""
    table, data = parts.table, parts.data
    if table is None or data is None or data.num_items != table.num_items:
        return None
    titles = data.items["title"].to_pylist()
    packed = pack_tree(
        table.codes,
        table.num_levels,
        table.codebook_sizes,
        item_ids=data.item_ids,
        titles=[
            title or f"(no title) {item}"
            for title, item in zip(titles, data.item_ids, strict=True)
        ],
        categories=data.category_of_items(),
        counts=np.bincount(data.histories.items, minlength=data.num_items),
        vectors=parts.vectors,
    )
    return base64.b64encode(packed).decode()


def next_step(parts: WorkdirParts) -> str | None:
    """What to try where a simple method does better; None where none does."""
    if parts.metrics is None:
        return None
    better = [
        title_of(parts.metrics, row["baseline"])
        for row in (parts.details or {}).get("differences", ())
        if row["split"] == "test" and row["high"] < 0
    ]
    if not better:
        return None
    tried = parts.fusion is not None
    advice = (
        "the fusion in the table above is what both find together"
        if tried
        else "--stage=list_candidates, then --stage=fuse sums their lists with weights "
        "from validation"
    )
    names = _join([in_a_sentence(name) for name in better])
    return (
        f"{names} {'does' if len(better) == 1 else 'do'} better here: {advice}. If the "
        "curve on validation still rises at its end, train longer: more "
        "train_recommender.epochs, or loop.LoopConfig.total_steps where there are "
        "none; where data is scarce, codes that know what is taken together help "
        "(--gin_file=experiments/own_data_best.gin)."
    )


def describe_table(
    table: SemanticIdTable, data: PreparedData | None, seed: int = 0
) -> dict[str, Any]:
    """`describe_codes` of a table, with category purity where categories are known."""
    categories = None
    if data is not None and data.num_items == table.num_items:
        categories = data.category_of_items()
    return table.describe(categories, seed)


def choose_samples(parts: WorkdirParts, seed: int) -> list[dict[str, Any]]:
    """Some users: their last items, what was recommended, and what they took.

    The first few are drawn at random, a couple more from those whose item was found,
    and say so; the others, which a reader has to search for, are drawn at random too.
    """
    if parts.data is None or not parts.predictions:
        return []
    key = np.random.default_rng(seed)
    order = [parts.predictions[i] for i in key.permutation(len(parts.predictions))]
    at_random, others = order[:NUM_RANDOM_SAMPLES], order[NUM_RANDOM_SAMPLES:]
    hits = [p for p in others if p["rank"] is not None and p["rank"] < 10]
    hits = hits[:NUM_FOUND_SAMPLES]
    shown = {id(p) for p in hits}
    others = [p for p in others if id(p) not in shown]
    items = describe_items(parts.data)
    chosen = [(prediction, "drawn at random") for prediction in at_random]
    chosen += [(prediction, "drawn from the hits") for prediction in hits]
    chosen += [(prediction, "drawn at random") for prediction in others]
    return [
        {
            "user": prediction["user"],
            "how": how,
            "num_earlier": max(0, len(prediction["history"]) - HISTORY_SHOWN),
            "history": [items[i] for i in prediction["history"][-HISTORY_SHOWN:]],
            "target": items[prediction["target"]],
            "place": None if prediction["rank"] is None else prediction["rank"] + 1,
            "recommended": [
                items[one["item_id"]]
                | {"is_hit": one["item_id"] == prediction["target"]}
                for one in prediction["recommended"][:RECOMMENDED_SHOWN]
            ],
        }
        for prediction, how in chosen[:NUM_SAMPLES]
    ]


def describe_items(data: PreparedData) -> dict[str, dict[str, Any]]:
    """A title to show and a category, by item id."""
    titles = data.items["title"].to_pylist()
    described = zip(data.item_ids, titles, data.category_of_items(), strict=True)
    found = {}
    for item_id, title, category in described:
        shown = tables.shorten(title or f"(no title) {item_id}", 90)
        found[item_id] = {"title": shown, "category": category}
    return found


def in_a_sentence(title: str) -> str:
    """A title without what follows its comma, small unless it holds a proper name.

    Examples:
        >>> in_a_sentence("Item co-occurrence"), in_a_sentence("SASRec, full softmax")
        ('item co-occurrence', 'SASRec')
    """
    short = title.partition(",")[0]
    return short if short[1:] != short[1:].lower() else short.lower()


def _compare(parts: WorkdirParts, ours: float, baselines: Mapping[str, float]) -> str:
    """Says what does better, worse, or no different within the interval."""
    draws = {
        row["baseline"]
        for row in (parts.details or {}).get("differences", ())
        if row["split"] == "test" and row["low"] <= 0 <= row["high"]
    }
    groups: dict[str, list[str]] = {"more than": [], "as much as": [], "less than": []}
    for key, theirs in baselines.items():
        title = title_of(parts.metrics or {}, key)
        if title in draws:
            relation = "as much as"
        else:
            relation = "more than" if ours > theirs else "less than"
        groups[relation].append(in_a_sentence(title))
    said = [f"{relation} {_join(names)}" for relation, names in groups.items() if names]
    if len(said) > 1:
        said = [", ".join(said[:-1]), said[-1]]
    return f"That is {', and '.join(said)}." if said else ""


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
