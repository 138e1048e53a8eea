"""The page of `compare`: several runs side by side."""

from collections.abc import Sequence

from tiger_jax.reporting import compared_runs, tables
from tiger_jax.reporting.compared_runs import ComparedRun
from tiger_jax.reporting.page import Report, inline_script, make_environment
from tiger_jax.reporting.result_pictures import compare_curves, difference_picture
from tiger_jax.reporting.sections import SPLITS, describe_table


def build_comparison(runs: Sequence[ComparedRun], *, seed: int) -> Report:
    """Fills in the page.

    Args:
        runs: The first is the one that the others are compared with.
        seed: Of the bootstrap, and of shuffled categories.
    """
    curves = {run.name: run.parts.recommender_curves for run in runs}
    differences = compared_runs.differences(runs, seed)
    pictures = [difference_picture(differences), *compare_curves(curves)]
    rows = [
        {
            "name": run.name,
            "splits": {
                split: tables.ResultRow(
                    run.name,
                    "ours",
                    metrics[split],
                    metrics["intervals"].get(split, {}),
                )
                for split in compared_runs.SPLITS
            },
            "quality": run.parts.table
            and describe_table(run.parts.table, run.parts.data, seed),
        }
        for run in runs
        if (metrics := run.parts.metrics) is not None
    ]
    environment = make_environment()
    script, digest = inline_script(environment, "report.js")
    html = environment.get_template("compare.html").render(
        script=script,
        script_hash=digest,
        runs=rows,
        columns=tables.COLUMNS,
        splits={split: SPLITS[split] for split in compared_runs.SPLITS},
        num_users=len(runs[0].rows),
        differences=differences,
        groups=compared_runs.groups(runs, seed),
        changed=[
            {"name": run.name, "items": compared_runs.changed_items(runs[0], run)}
            for run in runs[1:]
        ],
        configs=compared_runs.config_differences(runs),
        pictures={picture.name: picture for picture in pictures},
    )
    return Report(html, tuple(pictures))
