"""A few users with the titles of what they had, got and took."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tiger_jax.data.prepared import PreparedData
from tiger_jax.reporting import tables
from tiger_jax.reporting.workdir_parts import WorkdirParts

NUM_RANDOM_SAMPLES, NUM_FOUND_SAMPLES = 4, 2
HISTORY_SHOWN, RECOMMENDED_SHOWN = 6, 10


def choose_samples(parts: WorkdirParts, seed: int) -> list[dict[str, Any]]:
    """A few users: their last items, what was recommended, and what they took.

    Most are drawn at random; a couple more are drawn from those whose item was
    found, and say so.
    """
    if parts.data is None or not parts.predictions:
        return []
    key = np.random.default_rng(seed)
    order = [parts.predictions[i] for i in key.permutation(len(parts.predictions))]
    at_random, others = order[:NUM_RANDOM_SAMPLES], order[NUM_RANDOM_SAMPLES:]
    hits = [p for p in others if p["rank"] is not None and p["rank"] < 10]
    titles = dict(zip(parts.data.item_ids, describe_items(parts.data), strict=True))
    chosen = [(p, "drawn at random") for p in at_random]
    chosen += [(p, "drawn from the hits") for p in hits[:NUM_FOUND_SAMPLES]]
    return [_sample(prediction, how, titles) for prediction, how in chosen]


def _sample(
    prediction: Mapping[str, Any], how: str, titles: Mapping[str, dict[str, str]]
) -> dict[str, Any]:
    history = prediction["history"]
    target = prediction["target"]
    recommended = [
        {**titles[entry["item_id"]], "is_hit": entry["item_id"] == target}
        for entry in prediction["recommended"][:RECOMMENDED_SHOWN]
    ]
    return {
        "user": prediction["user"],
        "how": how,
        "num_earlier": max(0, len(history) - HISTORY_SHOWN),
        "history": [titles[item] for item in history[-HISTORY_SHOWN:]],
        "target": titles[target],
        "place": None if prediction["rank"] is None else prediction["rank"] + 1,
        "recommended": recommended,
    }


def describe_items(data: PreparedData) -> list[dict[str, str]]:
    """A title to show and a category, by item number."""
    categories = data.category_of_items()
    return [
        {
            "title": tables.shorten(title or f"(no title) {item_id}", 90),
            "category": category,
        }
        for item_id, title, category in zip(
            data.item_ids, data.items["title"].to_pylist(), categories, strict=True
        )
    ]
