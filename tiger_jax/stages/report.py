"""Everything in a work directory to one page: the folder `report/`."""

import gin

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.recommending.trained_model import ModelCard
from tiger_jax.reporting.page import build_report, write_report
from tiger_jax.reporting.workdir_parts import finished_folders, read_parts
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts

USUAL_ITEMS = 20  # of a history, where no recommender has been trained


@gin.configurable(module="stages")
def report(context: RunContext, *, seed: int = 0) -> None:
    """Writes ``index.html``, which needs nothing but itself, and its plots as SVG.

    Stages that haven't run are named on the page as not run.

    Args:
        seed: Of the choice of sample users.
    """
    workdir = context.workdir
    folders = finished_folders(workdir)
    if not folders:
        raise InputError(
            f"{workdir} holds nothing to report: run --stage=prepare_data first, or "
            "leave --stage out to run everything"
        )
    run = artifacts.begin(
        workdir,
        "report",
        stage="report",
        inputs=folders,
        config={"seed": seed},
        opaque=("*.svg",),
    )
    if run.is_current:
        return
    parts = read_parts(workdir, run.inputs, seed=seed)
    shown_items = USUAL_ITEMS
    if "recommender" in folders:
        shown_items = ModelCard.load(workdir / "recommender").max_items
    page = build_report(parts, shown_items=shown_items, seed=seed)
    write_report(page, run.folder)
    run.commit(summary={"shows": list(folders), "pictures": len(page.pictures)})
    say(f"report: open {run.final / 'index.html'}")
