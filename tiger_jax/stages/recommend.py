"""Recommendations on request: printed, or written to a file of the user's choice."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.errors import InputError
from tiger_jax.progress import Progress, say, say_json
from tiger_jax.recommending import histories_wanted
from tiger_jax.recommending.hub import bundle_at
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Answer, Request
from tiger_jax.recommending.result_files import to_json, write_recommendations
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.reporting.answer_table import format_answer
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.reading import path_of

OUTPUTS = ("table", "jsonl")
# Requests answered between two looks at the progress.
AT_A_TIME = 310


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
    files: FilesConfig = FilesConfig(),
) -> None:
    """Recommends for histories from a file, for titles, or for test users.

    Unknown items are left out of a history and reported. Where nothing is left,
    the most popular items are recommended instead, and the output says so.

    Args:
        seed: Of the choice of test users, and of draws at a temperature.
        histories: A file of histories: JSON lines (a list of item ids per line, or
            {"user": ..., "history": [...]}), oldest item first, or a table of
            interactions, as in a shop's folder (item_id, and user_id if there are
            several users).
        title: Words of an item's title, to be continued; several by semicolons.
        output: "table" to read, "jsonl" to process; or a file to write, whose ending
            is .parquet, or .inter for RecBole's form.
        num_users: Test users to show where neither is given.
        exclude_seen: Leave out what the history holds.
        search: How the recommender finds its items in a work directory; of a
            bundle, only `method` counts.
        bundle: Recommend from its newest catalogue, not from the work directory.
        filter: Fields and values that items must have, as in
            {"category": ["Shampoo"], "price": {"max": 20}}.
        epsilon: Share of each list that is kept for items the training hasn't seen.
        temperature: Draw items rather than take the best.
        files: How a table of interactions is read.
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
        wanted = histories_wanted.read_histories(path_of(histories), files)
    elif title is not None:
        wanted = [histories_wanted.search_titles(title, catalogue)]
    elif data is not None:
        wanted = histories_wanted.draw_test_users(data, num_users, seed)
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
    answers = _answer(recommender, requests, is_shown=output != "jsonl")
    notes = [note for one in wanted for note in one.notes] * is_file
    notes += histories_wanted.tell_unknown(wanted, catalogue)
    for note in notes if output != "jsonl" else ():  # each line has its own there
        say(f"note: {note}")
    if is_file:
        write_recommendations(path_of(output), wanted, answers)
        say(f"recommend: {len(wanted):,} lists in {output}")
        return
    for one, answer in zip(wanted, answers, strict=True):
        if output == "jsonl":
            say_json(to_json(one, answer))
        else:
            say(format_answer(one, answer, catalogue) + "\n")


def _load(
    workdir: Path, bundle: str | None, search: SearchConfig
) -> tuple[Recommender, PreparedData | None]:
    """A bundle's recommender, or the one that it would hold, compiled for this."""
    if bundle is not None:
        return Recommender.load(bundle_at(bundle)), None
    for name in ("data", "semantic_ids", "recommender"):
        artifacts.load_manifest(workdir / name, needed_by="recommend")
    recommender = Recommender.of_workdir(workdir, search)
    return recommender, PreparedData.load(workdir / "data")


def _answer(
    recommender: Recommender, requests: Sequence[Request], *, is_shown: bool
) -> list[Answer]:
    answers: list[Answer] = []
    bar = Progress(len(requests), "Recommending", unit="list")
    is_shown &= len(requests) > AT_A_TIME
    with bar if is_shown else contextlib.nullcontext():
        for start in range(0, len(requests), AT_A_TIME):
            answers += recommender.answer(requests[start : start + AT_A_TIME])
            if is_shown:
                bar.advance(len(answers) - start)
    return answers
