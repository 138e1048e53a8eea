"""Recommendations on request: printed, or written to a file of the user's choice."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.progress import Progress, say
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.histories_wanted import (
    Wanted,
    draw_test_users,
    read_histories,
    search_titles,
)
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Answer, Request
from tiger_jax.recommending.result_files import write_recommendations
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.reporting.tables import display_width, shorten
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import make_shapes, read_parts
from tiger_jax.workdir import artifacts

OUTPUTS = ("table", "jsonl")
BATCH_SIZES, MAX_EXCLUDED = (1, 31), 64
# Requests answered between two looks at the progress.
AT_A_TIME = 310
HISTORY_SHOWN = 5
TITLE_WIDTH = 70


@gin.configurable(module="stages")
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
    bundle: str | None = None,
    filter: Any = None,
    epsilon: float | None = None,
    temperature: float | None = None,
) -> None:
    """Recommends for histories from a file, for titles, or for test users.

    Unknown items are left out of a history and reported. Where nothing is left,
    the most popular items are recommended instead, and the output says so.

    Args:
        seed: Of the choice of test users, and of draws at a temperature.
        histories: A file of histories: JSON lines (a list of item ids a line, or
            {"user": ..., "history": [...]}) or CSV (item_id, and user_id if there
            are several users), oldest item first.
        title: Words of an item's title, to be continued; several by semicolons.
        k: Items a user.
        output: "table" to read, "jsonl" to process; or a file to write, whose ending
            is .parquet, or .inter for RecBole's form.
        num_users: Test users to show where neither is given.
        exclude_seen: Leave out what the history holds.
        search: How the recommender finds its items in a work directory; of a
            bundle, only `method` counts.
        bundle: Recommend from this bundle and the newest version of its catalogue,
            rather than from the work directory.
        filter: Fields and values that items must have, as in
            {"category": ["Shampoo"], "price": {"max": 20}}.
        epsilon: Share of each list that is kept for items the training hasn't seen.
        temperature: Draw items rather than take the best.

    Raises:
        InputError: There is no trained recommender, or the request can't be read.
    """
    if histories is not None and title is not None:
        raise InputError("give recommend.histories or recommend.title, not both")
    if k < 1:
        raise InputError(f"recommend.k is {k}: it must be positive")
    is_file = Path(output).suffix in (".parquet", ".inter")
    if not is_file and output not in OUTPUTS:
        raise InputError(
            f"recommend.output is {output!r}: choose one of {', '.join(OUTPUTS)}, or a "
            "file that ends in .parquet or .inter"
        )
    search = search or SearchConfig()
    recommender, data = _load(context.workdir, bundle, search)
    catalogue = recommender.catalogue
    if histories is not None:
        wanted = read_histories(Path(histories).expanduser())
    elif title is not None:
        wanted = [search_titles(title, catalogue)]
    elif data is not None:
        wanted = draw_test_users(data, num_users, seed)
    else:
        raise InputError(
            "a bundle has no test users: give recommend.histories or recommend.title"
        )
    requests = [
        Request(
            one.history,
            k,
            user=one.user_id,
            exclude_history=exclude_seen,
            exact=search.method == "exact",
            filter=filter,
            epsilon=epsilon,
            temperature=temperature,
            seed=(seed + number) % (1 << 32),
        )
        for number, one in enumerate(wanted)
    ]
    answers = _answer(recommender, requests)
    if is_file:
        write_recommendations(Path(output).expanduser(), wanted, answers)
        say(f"recommend: {len(wanted):,} lists in {output}")
        return
    for one, answer in zip(wanted, answers, strict=True):
        if output == "jsonl":
            say(json.dumps(_as_json(one, answer), ensure_ascii=False))
        else:
            say(_as_table(one, answer, catalogue) + "\n")


def _load(
    workdir: Path, bundle: str | None, search: SearchConfig
) -> tuple[Recommender, PreparedData | None]:
    """A bundle's recommender, or the one that it would hold, compiled for this."""
    if bundle is not None:
        return Recommender.load(Path(bundle).expanduser()), None
    for name in ("data", "semantic_ids", "recommender"):
        artifacts.load_manifest(workdir / name, needed_by="recommend")
    parts = read_parts(workdir)
    shapes = make_shapes(parts, search, BATCH_SIZES, MAX_EXCLUDED)
    data = PreparedData.load(workdir / "data")
    return Recommender.of_parts(parts, shapes), data


def _answer(recommender: Recommender, requests: Sequence[Request]) -> list[Answer]:
    if len(requests) <= AT_A_TIME:
        return recommender.answer(requests)
    answers: list[Answer] = []
    with Progress(len(requests), "Recommending", unit="history") as bar:
        for start in range(0, len(requests), AT_A_TIME):
            part = requests[start : start + AT_A_TIME]
            answers += recommender.answer(part)
            bar.advance(len(part))
    return answers


def _as_json(wanted: Wanted, answer: Answer) -> dict[str, Any]:
    unknown = set(answer.unknown_items)
    line: dict[str, Any] = {
        "user": wanted.user,
        "history": [item_id for item_id in wanted.history if item_id not in unknown],
        "recommended": [
            {
                "item_id": item.item_id,
                "title": item.title,
                "score": round(item.score, 4),
                "semantic_id": item.semantic_id,
            }
            for item in answer.items
        ],
        "unknown_items": list(answer.unknown_items),
        "by": answer.by,
        "version": answer.version,
    }
    if wanted.target is not None:
        line["target"] = wanted.target
    return line


def _as_table(wanted: Wanted, answer: Answer, catalogue: Catalogue) -> str:
    """One user as a block of lines that fit a terminal."""

    def show(item_id: str) -> str:
        number = catalogue.number_of[item_id]
        title = shorten(catalogue.titles[number], TITLE_WIDTH)
        category = catalogue.categories[number]
        if not category:
            return title
        gap = " " * (TITLE_WIDTH - display_width(title))
        return f"{title}{gap}  {shorten(category, 24)}"

    lines = [shorten(wanted.user, TITLE_WIDTH)]
    lines += [f"  note: {note}" for note in wanted.notes]
    if answer.unknown_items:
        shown = ", ".join(shorten(i, 20) for i in answer.unknown_items[:5])
        more = len(answer.unknown_items) - 5
        lines.append(
            f"  left out: {len(answer.unknown_items)} items that are not in the "
            f"catalogue ({shown}{f', and {more} more' if more > 0 else ''})"
        )
    had = [item_id for item_id in wanted.history if item_id in catalogue.number_of]
    earlier = len(had) - HISTORY_SHOWN
    if had:
        lines.append(
            "  had" + (f" {earlier} earlier items, then" if earlier > 0 else "")
        )
        lines += [f"         {show(item_id)}" for item_id in had[-HISTORY_SHOWN:]]
        lines.append("  TIGER recommends")
    else:
        lines.append("  no known item in the history: the most popular items instead")
    for place, item in enumerate(answer.items, 1):
        mark = "✓" if item.item_id == wanted.target else " "
        mark = "+" if item.is_new and mark == " " else mark
        lines.append(f"  {place:4d} {mark} {show(item.item_id)}")
    if any(item.is_new for item in answer.items):
        lines.append("  + an item that the training hasn't seen")
    if wanted.target is not None:
        found = any(item.item_id == wanted.target for item in answer.items)
        lines.append("  took next" + (" (found)" if found else " (not found)"))
        lines.append(f"         {show(wanted.target)}")
    return "\n".join(line.rstrip() for line in lines)
