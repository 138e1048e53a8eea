"""Rows of the ablations, each beside its counterpart user by user, and their picture.

All runs of a table are measured on the same validation users, with the users' own items
in the running and without; the test split stays unread.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper import plan
from benchmarks.paper.results_rows import command_of
from benchmarks.paper.study import Study, join, recall_facts
from tiger_jax.evaluation import bootstrap
from tiger_jax.workdir import artifacts

BOTH, MASKED, AGAINST = ("recall@10", "ndcg@10"), ", masked", "against its counterpart"
SHOWN = (
    *BOTH,
    *(f"{name}{MASKED}" for name in BOTH),
    *(AGAINST, "collisions", "parameters, M"),
)
MAX_USERS = 5000


def measure(job: plan.Job, max_users: int = MAX_USERS) -> list[Row]:
    """A job's row; its ranks are kept beside its work directory's stages."""
    study = Study(job.workdir, max_users=max_users, seed=0)
    ours, ranks, facts = study.load(study.num_beams), {}, []
    for suffix in ("", MASKED):
        what = f"{job.name}, validation{suffix}"
        found = study.evaluate(ours, 21, what, masked=bool(suffix))
        ranks[f"ranks{suffix}"] = found.ranks
        facts.append(recall_facts(found, 0, BOTH, suffix))
    np.savez(_ranks_file(job), users=study.users.user_numbers, **ranks)
    made = study.trained
    codes = artifacts.load_manifest(job.workdir / "rqvae", verify=False).summary
    counted = {
        "collisions": codes["collision_rate"],
        "parameters, M": made.summary["parameters"] / 1e6,
    }
    facts += [difference(job), {"metrics": counted}]
    return [
        {
            "case": {"of": job.run.group, "": job.run.title},
            **join(*facts),
            "against": plan.counterpart(job.run),
            **study.about,
            "config_hash": made.fingerprint[:12],
            "commit": made.made["commit"],
            "device": made.made["devices"],
            "minutes": round(made.summary["seconds"] / 60, 1),
            "updates": made.summary["steps"],
            "command": command_of(made.made),
        }
    ]


def _ranks_file(job: plan.Job) -> Path:
    return job.workdir / "ranks.npz"


def difference(job: plan.Job) -> Row:
    """How much masked recall@10 is above the counterpart's of the same seed."""
    run = plan.RUNS[plan.counterpart(job.run)]
    theirs_file = _ranks_file(dataclasses.replace(job, run=run))
    if run == job.run or not theirs_file.is_file():
        return {}
    ours, theirs = np.load(_ranks_file(job)), np.load(theirs_file)
    _, mine, other = np.intersect1d(ours["users"], theirs["users"], return_indices=True)
    ranks = ours[f"ranks{MASKED}"][mine], theirs[f"ranks{MASKED}"][other]
    mean, *ends = bootstrap.paired_difference(*ranks, BOTH[0], seed=0)
    return {"metrics": {AGAINST: mean}, "intervals": {AGAINST: ends}}


def draw(rows: Sequence[Row], file: Path) -> None:
    """The differences from the counterparts, a point for each seed; most rows' shop."""
    shops = [row["data"] for row in rows]
    shown = [r for r in rows if r["data"] == max(shops, key=shops.count)]
    titles = list(dict.fromkeys(row["case"][""] for row in shown))[::-1]
    groups = list(dict.fromkeys(row["case"]["of"] for row in shown))
    with lib.draw(file, figsize=(7.5, 1 + 0.28 * len(titles))) as (_, ((axes,),)):
        for row in shown:
            if AGAINST in row["metrics"]:
                at, colour = (
                    titles.index(row["case"][""]),
                    groups.index(row["case"]["of"]),
                )
                axes.plot(row["intervals"][AGAINST], [at, at], f"C{colour}", alpha=0.4)
                axes.plot(row["metrics"][AGAINST], at, "o", color=f"C{colour}")
        axes.set_yticks(range(len(titles)), titles)
        axes.axvline(0, color="0.5", linewidth=1)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("recall@10 above its counterpart's, validation")
