"""The same run under several seeds: what they share is made once.

``WORKDIR/seeds/N/`` is the work directory of seed N. The data and the items' vectors
stand in WORKDIR and are linked there, so only what is drawn differs: the quantizer, the
Semantic IDs, the recommender, and what is measured of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiger_jax.errors import InputError
from tiger_jax.evaluation.metrics import REPORTED
from tiger_jax.evaluation.record import read_record
from tiger_jax.progress import say
from tiger_jax.reporting.sections import SPLITS
from tiger_jax.reporting.tables import format_columns, format_mean, metric_title
from tiger_jax.stage_table import STAGES, names
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.json_files import write_json

FOLDER = "seeds"
SHARED = ("prepare_data", "embed_items")
_SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads ``0,1,2``; InputError if these are no seeds, or one comes twice."""
    try:
        seeds = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"--seeds={text} must read --seeds=0,1,2") from error
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 1 << 31 for seed in seeds):
        raise InputError(f"--seeds={text} must be different numbers from 0 on")
    return seeds


def plan(
    stages: Sequence[str], context: RunContext, seeds: Sequence[int]
) -> Iterator[tuple[tuple[str, ...], RunContext, list[str]]]:
    """What to run, one after the other: stages, where, and further bindings.

    Raises:
        InputError: A stage answers a request, and is not for several seeds.
    """
    for stage in stages:
        if stage not in names("pipeline", "comparison"):
            raise InputError(f"--stage={stage} is not for --seeds: name a --workdir")
    if shared := tuple(stage for stage in stages if stage in SHARED):
        yield shared, context, []
    own = tuple(stage for stage in stages if stage not in SHARED)
    for seed in seeds if own else ():
        workdir = context.workdir / FOLDER / str(seed)
        workdir.mkdir(parents=True, exist_ok=True)
        for stage in SHARED:
            link = workdir / str(STAGES[stage].writes)
            if not link.exists() and not link.is_symlink():
                link.symlink_to(Path("..", "..", link.name))
        say(f"seed {seed}: {workdir}")
        yield own, dataclasses.replace(context, workdir=workdir), [f"SEED = {seed}"]


def summarize(workdir: Path, seeds: Sequence[int]) -> None:
    """Prints each metric's mean over the seeds, and writes ``seeds/metrics.json``.

    Does nothing where no seed has been evaluated.
    """
    records = {
        seed: read_record(workdir / FOLDER / str(seed) / "evaluation") for seed in seeds
    }
    found = {seed: record for seed, record in records.items() if record is not None}
    if not found:
        return
    values: dict[str, Any] = {}
    rows = [["", *map(metric_title, _SHOWN)]]
    for split, (title, _) in SPLITS.items():
        values[split] = {
            metric: [record[split][metric] for record in found.values()]
            for metric in REPORTED
        }
        rows.append([title, *(format_mean(values[split][m]) for m in _SHOWN)])
    say(f"\nTIGER, mean of seeds {', '.join(map(str, found))} ± 95 % of the mean")
    say(format_columns(rows))
    summary: Mapping[str, Any] = {"seeds": list(found), "values": values}
    write_json(workdir / FOLDER / "metrics.json", summary)
