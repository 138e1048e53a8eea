"""Stage `compare`: several work directories on one page, `compare/`."""

from pathlib import Path

import gin

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.reporting.compared_runs import load_runs
from tiger_jax.reporting.comparison_page import build_comparison
from tiger_jax.reporting.page import write_report
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts


@gin.configurable(module="stages")
def compare(context: RunContext, *, seed: int = 0) -> None:
    """Writes ``index.html``: metrics, differences, curves, codes, users, configs.

    Users are matched by their ids: runs may have numbered them differently. The others
    are compared with the first run.

    Args:
        seed: Of the bootstrap.

    Raises:
        InputError: Fewer than two runs are named, one has no evaluation, or they are of
            different data.
    """
    if len(context.runs) < 2:
        raise InputError(
            "compare needs two work directories or more: --runs=runs/a,runs/b"
        )
    runs = load_runs(context.runs, seed)
    run = artifacts.begin(
        context.workdir,
        "compare",
        stage="compare",
        config={"seed": seed},
        external={
            f"{one.name}/{folder}": manifest.content_hash
            for one in runs
            for folder, manifest in one.parts.manifests.items()
        },
        opaque=("*.svg",),
    )
    if run.is_current:
        return
    page = build_comparison(runs, seed=seed)
    write_report(page, Path(run.folder))
    run.commit(summary={"runs": [str(path) for path in context.runs]})
    say(f"compare: open {run.final / 'index.html'}")
