"""Recommendations on request, printed: the stage that writes no folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp

from tiger_jax import artifacts
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.reporting.sample_users import describe_items
from tiger_jax.reporting.tables import display_width, shorten
from tiger_jax.serving import requests as serving
from tiger_jax.serving.programs import JittedPrograms
from tiger_jax.serving.recommender import Engine, Recommender
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import make_shapes, read_parts
from tiger_jax.stages.recommend_requests import (
    Request,
    draw_test_users,
    read_requests,
    search_titles,
)
from tiger_jax.stages.recommendation import SearchConfig

OUTPUTS = ("table", "jsonl")
BATCH_SIZES, MAX_EXCLUDED = (1, 31), 64
HISTORY_SHOWN = 5
TITLE_WIDTH = 70


@gin.configurable
def recommend(
    context: RunContext,
    *,
    seed: int = 0,
    histories: str | None = None,
    title: str | None = None,
    k: int = 10,
    output: str = "table",
    num_users: int = 3,
    exclude_seen: bool = True,
    search: SearchConfig | None = None,
) -> None:
    """Prints recommendations for histories from a file, for titles, or test users.

    Unknown items are left out of a history and reported. Where nothing is left,
    the most popular items are recommended instead, and the output says so.

    Args:
        seed: Of the choice of test users.
        histories: A file of histories: JSON lines (a list of item ids a line, or
            {"user": ..., "history": [...]}) or CSV (item_id, and user_id if there
            are several users), oldest item first.
        title: Words of an item's title, to be continued; several by semicolons.
        k: Items a user.
        output: "table" to read, "jsonl" to process.
        num_users: Test users to show where neither is given.
        exclude_seen: Leave out what the history holds.
        search: How the recommender finds its items.

    Raises:
        InputError: The work directory holds no trained recommender, or the request
            can't be read.
    """
    if output not in OUTPUTS:
        raise InputError(
            f"recommend.output is {output!r}: choose one of {', '.join(OUTPUTS)}"
        )
    if histories is not None and title is not None:
        raise InputError("give recommend.histories or recommend.title, not both")
    if k < 1:
        raise InputError(f"recommend.k is {k}: it must be positive")
    workdir = context.workdir
    for name in ("data", "semantic_ids", "recommender"):
        artifacts.load_manifest(workdir / name, needed_by="recommend")
    data = PreparedData.load(workdir / "data")
    if histories is not None:
        requests = read_requests(Path(histories).expanduser(), data)
    elif title is not None:
        requests = [search_titles(title, data)]
    else:
        requests = draw_test_users(data, num_users, seed)
    search = search or SearchConfig()
    recommender = _load(workdir, search)
    answers = recommender.answer(
        [
            serving.Request(
                [data.item_ids[i] for i in request.item_numbers],
                k,
                user=request.user if request.user_number >= 0 else None,
                exclude_history=exclude_seen,
                exact=search.method == "exact",
            )
            for request in requests
        ]
    )
    number_of = recommender.catalogue.number_of
    listed = [
        [(number_of[item.item_id], item.score) for item in answer.items]
        for answer in answers
    ]
    items = describe_items(data)
    for request, entries in zip(requests, listed, strict=True):
        if output == "jsonl":
            say(json.dumps(_as_json(request, entries, data), ensure_ascii=False))
        else:
            say(_as_table(request, entries, items) + "\n")


def _load(workdir: Path, search: SearchConfig) -> Recommender:
    """The recommender that a bundle would hold, compiled for what is asked."""
    parts = read_parts(workdir)
    shapes = make_shapes(parts, search, BATCH_SIZES, MAX_EXCLUDED)
    engine = Engine(
        model=parts.model,
        params=jax.tree.map(jnp.asarray, parts.params),
        max_items=parts.max_items,
        user_hashes=parts.user_hashes,
        programs=JittedPrograms(parts.model, shapes),
        shapes=shapes,
        coder=parts.coder(),
    )
    return Recommender(engine, parts.catalogue())


def _as_json(
    request: Request, entries: Sequence[tuple[int, float]], data: PreparedData
) -> dict[str, Any]:
    titles = data.items["title"]
    line: dict[str, Any] = {
        "user": request.user,
        "history": [data.item_ids[i] for i in request.item_numbers],
        "recommended": [
            {
                "item_id": data.item_ids[item],
                "title": titles[item].as_py(),
                "score": round(score, 4),
            }
            for item, score in entries
        ],
        "unknown_items": list(request.unknown_items),
        "by": "tiger" if request.item_numbers else "popularity",
    }
    if request.target is not None:
        line["target"] = data.item_ids[request.target]
    return line


def _as_table(
    request: Request,
    entries: Sequence[tuple[int, float]],
    items: Sequence[dict[str, str]],
) -> str:
    """One user as a block of lines that fit a terminal."""

    def show(number: int) -> str:
        title = shorten(items[number]["title"], TITLE_WIDTH)
        category = items[number]["category"]
        if not category:
            return title
        gap = " " * (TITLE_WIDTH - display_width(title))
        return f"{title}{gap}  {shorten(category, 24)}"

    lines = [shorten(request.user, TITLE_WIDTH)]
    lines += [f"  note: {note}" for note in request.notes]
    if request.unknown_items:
        shown = ", ".join(shorten(i, 20) for i in request.unknown_items[:5])
        more = len(request.unknown_items) - 5
        lines.append(
            f"  left out: {len(request.unknown_items)} items that are not in the "
            f"catalogue ({shown}{f', and {more} more' if more > 0 else ''})"
        )
    earlier = len(request.item_numbers) - HISTORY_SHOWN
    if request.item_numbers:
        lines.append(
            "  had" + (f" {earlier} earlier items, then" if earlier > 0 else "")
        )
        lines += [f"         {show(i)}" for i in request.item_numbers[-HISTORY_SHOWN:]]
        lines.append("  TIGER recommends")
    else:
        lines.append("  no known item in the history: the most popular items instead")
    for place, (item, _) in enumerate(entries, 1):
        mark = "✓" if item == request.target else " "
        lines.append(f"  {place:4d} {mark} {show(item)}")
    if request.target is not None:
        found = any(item == request.target for item, _ in entries)
        lines.append("  took next" + (" (found)" if found else " (not found)"))
        lines.append(f"         {show(request.target)}")
    return "\n".join(line.rstrip() for line in lines)
