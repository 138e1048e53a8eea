"""Makes every row, table and picture of docs/results.md and docs/experiments.md.

    python -m benchmarks.paper --dry_run          # what would run, and for how long
    python -m benchmarks.paper --budget=3         # what fits into three hours
    python -m benchmarks.paper --budget=reduced   # nearly everything, smaller, one seed
    python -m benchmarks.paper --data_dir=my_shop # the same of a shop of one's own

`plan.json` says what is run; the rows that tell most come first. Killed, the same
command goes on: finished stages are skipped, an unfinished training is resumed, and
what was measured stands in the rows. Rows, tables and pictures go into --out, by
default a folder in the work directory; --out=docs writes into the documents.
"""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lib
from benchmarks.lib import ROOT, Row
from benchmarks.paper import analyses, experiments, results_table
from benchmarks.paper.analyses import ABLATIONS
from benchmarks.paper.plan import FULL, REDUCED, RUNS, Job, Shop, jobs_of, known_shops
from benchmarks.paper.results_rows import KEY, collect_rows
from tiger_jax.errors import InputError, Preempted
from tiger_jax.progress import say
from tiger_jax.workdir.hashing import hash_json
from tiger_jax.workdir.json_files import read_json, write_json

STATE = "reproduced.json"  # in a job's work directory, once it is whole
RAN_ELSEWHERE, STOPPED = 3, 4  # exit codes of run.py that are no fault of the job
REDUCED_USERS = 1000


def make(job: Job, stages: Sequence[str] = ()) -> None:
    """Runs a job's stages, or some of them, after those whose folders it takes."""
    state = job.state(stages)
    done = job.workdir / STATE
    if state and (stages or (done.is_file() and read_json(done)["state"] == state)):
        return
    for other, needed in job.before():
        make(other, needed)
    job.workdir.mkdir(parents=True, exist_ok=True)
    job.link()
    spent = _cpu_minutes()
    if not stages and done.is_file() and read_json(done)["state"] is None:
        spent -= read_json(done)["cpu_minutes"]  # of a start that was stopped
    is_whole = False
    try:
        run_stages(job.command(stages))
        is_whole = True
    finally:
        if not stages:
            minutes = round(_cpu_minutes() - spent, 1)
            state = job.state() if is_whole else None
            write_json(done, {"state": state, "cpu_minutes": minutes})


def _cpu_minutes() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def run_stages(words: Sequence[str]) -> None:
    """Runs run.py, which ends with this process; raises what its exit code says."""
    say(f"python run.py {' '.join(words)}")
    child = subprocess.Popen([sys.executable, "run.py", *words], cwd=ROOT)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (RAN_ELSEWHERE, STOPPED) or code < 0:
        raise Preempted("stopped: the same command goes on")
    if code:
        raise InputError(f"run.py ended with exit code {code}, and said why above")


def measure(job: Job, out: Path) -> None:
    """Appends the rows of a job that are not there yet, or of other content."""
    done = read_json(job.workdir / STATE)
    work = hash_json(done["state"]["made"])[:12]
    about = {"run": job.run.name, "seed": job.seed, "budget": job.budget, "work": work}
    for name in filter(None, (job.run.table, *job.run.analyses)):
        file = out / f"{name}.jsonl"
        known = lib.read_rows(file)
        if any((r.get("work"), r.get("run")) == (work, job.run.name) for r in known):
            continue
        if name == "results":
            label = job.run.name + f", {REDUCED}" * (job.budget == REDUCED)
            found = collect_rows(job.workdir, label, job.run.methods)
            rows = [about | {"cpu_minutes": done["cpu_minutes"]} | row for row in found]
            key: tuple[str, ...] = KEY
        else:
            key = ("data", "run", "seed", "budget")
            rows = [row | about for row in _analyse(name, job)]
        for row in rows:
            lib.report(row)
        lib.write_rows(file, lib.merge_rows(known, rows, *key))


def _analyse(name: str, job: Job) -> list[Row]:
    is_small = job.budget == REDUCED
    if name in ABLATIONS:
        users = REDUCED_USERS if is_small else experiments.MAX_USERS
        return experiments.measure(job, users)
    users = analyses.ANALYSES[name].users
    limit = min(users, REDUCED_USERS) if is_small else users
    return analyses.measure(name, job.workdir, 0, limit)


def publish(out: Path) -> None:
    """Writes tables and pictures of all rows: between marks of docs/, or tables.md."""
    is_ours, order, found = out == ROOT / "docs", list(RUNS), []
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for name in ("results", *ABLATIONS, *analyses.ANALYSES):
        rows = lib.read_rows(out / f"{name}.jsonl")
        if name == "results":
            table = results_table.build_results(rows) if rows else ""
        else:
            rows.sort(key=lambda row: (*order, row["run"]).index(row["run"]))
            table = analyses.build_table(name, rows) if rows else "*not run yet*"
        if rows and f"({name}.png)" in text:
            analyses.draw(name, rows, out / f"{name}.png")
        if is_ours and name == "results":
            lib.write_between(out / "results.md", name, table)
            headline = results_table.build_headline(rows)
            lib.write_between(ROOT / "README.md", name, headline)
        elif is_ours and f"<!-- {name} -->" in text:
            lib.write_between(out / "experiments.md", name, table)
        elif rows:
            found.append(f"## {name}\n\n{table}\n")
    if not is_ours:
        (out / "tables.md").write_text("\n".join(found), encoding="utf-8")


def compare(out: Path) -> None:
    """Says how these rows stand beside the committed ones of the same name."""
    inside, outside = 0, []
    for file in sorted(out.glob("*.jsonl")):
        names = (*KEY, "run", "budget", "case")
        theirs = {_key(r, names): r for r in lib.read_rows(ROOT / "docs" / file.name)}
        for row in lib.read_rows(file):
            other = theirs.get(_key(row, names))
            ends = [
                r.get("intervals", {}).get("recall@10") for r in (row, other or row)
            ]
            if other is None or not all(ends):
                continue
            (low, high), (least, most) = ends
            inside += max(low, least) <= min(high, most)
            if max(low, least) > min(high, most):
                outside.append(f"{file.stem} {row.get('run', row.get('method'))}")
    if inside or outside:
        which = ", ".join(dict.fromkeys(outside)) or "none"
        say(
            f"beside the committed rows: {inside} with intervals of recall@10 that "
            f"meet, {len(outside)} without ({which})"
        )


def _key(row: Row, names: Sequence[str]) -> str:
    return hash_json({name: row.get(name) for name in names})


def listed(jobs: Sequence[Job]) -> str:
    """The jobs in order, with minutes."""
    lines = [
        f"{job.minutes:6.0f}  {job.name:32} {job.run.table or job.run.analyses[0]:22} "
        f"{job.run.title}"
        for job in jobs
    ]
    hours = sum(job.minutes for job in jobs) / 60
    total = f"{len(jobs)} trainings, {hours:.1f} CPU hours on a machine like the rows'"
    return "\n".join(["CPU minutes", *lines, total])


def run_all(jobs: Sequence[Job], out: Path) -> list[str]:
    """Makes and measures every job; returns what failed, after the others have run."""
    failed, planned, started = [], 0.0, time.perf_counter()
    for at, job in enumerate(jobs):
        left = sum(other.minutes for other in jobs[at:])
        spent = (time.perf_counter() - started) / 60
        # As long as this machine has taken for what it did, beside the plan.
        hours = left / 60 * (spent / planned if planned > 5 else 1)
        place = f"[{at + 1}/{len(jobs)}] {job.name}"
        say(f"{place}: {job.run.title}; {hours:.1f} hours left")
        begun = time.perf_counter()
        try:
            make(job)
            measure(job, out)
        except InputError as error:
            say(f"{job.name} failed: {error}")
            failed.append(job.name)
        if time.perf_counter() - begun > 60:  # what was done before says nothing
            planned += job.minutes
        else:
            started += time.perf_counter() - begun
    return failed


def main() -> None:
    """Runs what is missing of the plan, and writes the tables."""
    parser = lib.make_parser(__doc__)
    add: Callable[..., Any] = parser.add_argument
    add("--workdir", type=Path, default=ROOT / "runs" / "reproduce")
    add("--out", type=Path, help="where rows, tables and pictures go")
    add("--shops", type=lib.words, default=(), help="of $TIGER_DATA, the first in full")
    add("--data_dir", type=Path, help="another shop, in place of these")
    add("--embeddings", type=Path, help="its ready vectors; else its text by TF-IDF")
    add("--only", type=lib.words, default=(), help=f"runs: {', '.join(RUNS)}")
    add("--budget", default=FULL, help=f"hours, {REDUCED} or {FULL}")
    add("--dry_run", action="store_true", help="list what would run, and end")
    options = parser.parse_args()
    shops = known_shops(options.shops)
    if options.data_dir:
        paths = options.data_dir, options.embeddings
        found = [p and lib.find_data(p, "", "a path that is there") for p in paths]
        found = [path and path.resolve() for path in found]
        shops = [Shop(options.data_dir.resolve().name, *found)]
    root = options.workdir.resolve()
    jobs = jobs_of(shops, options.budget, root, options.only)
    say(listed(jobs))
    if options.dry_run:
        return
    out = (options.out or root / "tables").resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        failed = run_all(jobs, out)
    finally:
        publish(out)
    if out != ROOT / "docs":
        compare(out)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    lib.run(main)
