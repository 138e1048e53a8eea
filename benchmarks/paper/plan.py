"""What `make reproduce` runs: `plan.json` as jobs, in the order of what they tell.

A run of the plan is trained under several seeds on one or more shops; a job is one of
these. Its command line makes its work directory from the raw data up, so that it can be
given by hand too; what other runs of its seed have made already is linked there first.
"""

import dataclasses
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lib
from tiger_jax.cli import GIN_CONFIGS
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.stage_table import PIPELINE, STAGES
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

TRAINED = PIPELINE[: PIPELINE.index("train_recommender") + 1]
FULL, REDUCED = "full", "reduced"
# What a run takes over from another of the same seed, by what the plan calls it.
_FOLDERS = {"data": ("data", "embeddings"), "rival": ("sasrec",)}
_FOLDERS["codes"] = (*_FOLDERS["data"], "rqvae", "semantic_ids")
_FOLDERS["model"] = (*_FOLDERS["codes"], "recommender", "evaluation")


@dataclasses.dataclass(frozen=True)
class Shop:
    """A shop, and how long its runs take beside Beauty's."""

    name: str
    data_dir: Path | None = None
    embeddings: Path | None = None
    bindings: tuple[str, ...] = ()
    size: float = 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """A row of a table.

    Attributes:
        files: Gin files in place of the recipe's.
        recipe: Gin files and bindings that runs share, and what is bound over these
            for a reduced round.
        table: Which table it is a row of, by the name of its rows and marks.
        tier: Lower ones tell more, and run first.
        minutes: CPU minutes of one seed on Beauty, all stages.
        reduced: The same of a reduced round; 0 leaves it out there.
        takes: What of which other runs is taken over, as ``codes:two_level``.
        methods: Whose rows are kept, where a stage measures several.
        analyses: What else is measured of the work directory (`analyses.ANALYSES`).
        against: The run of its table that it is compared with; else the first.
        own_text: Embeds the items' text by TF-IDF, also where vectors are given.
        is_combined: Its quantizer is also fitted to the next shop's items.
    """

    name: str
    title: str
    tier: int
    minutes: float
    reduced: float
    recipe: str = ""
    files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    table: str = ""
    group: str = ""
    shops: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    takes: str = ""
    methods: tuple[str, ...] = ()
    analyses: tuple[str, ...] = ()
    against: str = ""
    own_text: bool = False
    is_combined: bool = False


def _read_run(fields: dict[str, Any]) -> Run:
    fields |= {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return Run(**{"recipe": fields["name"], **fields})


# Its bindings undo what the files of one data set say of where data come from; those
# called "reduced" come last in a reduced round.
PLAN = read_json(Path(__file__).with_name("plan.json"))
_SHOPS, RECIPES = PLAN["shops"], PLAN["recipes"]
RUNS = {fields["name"]: _read_run(fields) for fields in PLAN["runs"]}


def runs_of(table: str) -> list[Run]:
    """The rows of a table, in order."""
    return [run for run in RUNS.values() if run.table == table]


def counterpart(run: Run) -> str:
    """The name of the run that a row is compared with."""
    return run.against or runs_of(run.table)[0].name


def known_shops(names: Sequence[str] = ()) -> list[Shop]:
    """Shops of the plan; without names, the first and those others that are there.

    Raises:
        InputError: One is unknown, or its data don't lie in $TIGER_DATA.
    """
    shops = []
    for at, name in enumerate(names or _SHOPS):
        if name not in _SHOPS:
            raise InputError(f"--shops: {name!r} is none of {', '.join(_SHOPS)}")
        fields = dict(_SHOPS[name])
        fields["bindings"] = tuple(fields.get("bindings", ()))
        paths = {"data_dir": fields.pop("data", None)}
        paths["embeddings"] = fields.pop("embeddings", None)
        instead = "TIGER_DATA, or --shops=demo for the generated shop"
        try:
            found = {
                k: path and lib.find_data(None, path, instead).resolve()
                for k, path in paths.items()
            }
        except InputError as error:
            if names or at == 0:
                raise
            say(f"{name} is left out: {error}")
            continue
        shops.append(Shop(name, **fields, **found))
    return shops


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, shop and seed, and where it is made."""

    run: Run
    shop: Shop
    seed: int
    budget: str
    root: Path
    other: Shop | None = None

    @property
    def name(self) -> str:
        """As messages have it."""
        return f"{self.shop.name}/{self.run.name}/{self.seed}"

    @property
    def workdir(self) -> Path:
        root = self.root / REDUCED if self.budget == REDUCED else self.root
        return root / self.shop.name / self.run.name / str(self.seed)

    @property
    def minutes(self) -> float:
        """CPU minutes, by the plan."""
        run = self.run
        minutes = run.reduced if self.budget == REDUCED else run.minutes
        return minutes * (self.shop.size if self.budget == FULL else 1)

    @property
    def stages(self) -> tuple[str, ...]:
        """What it runs, in order."""
        is_tested = self.run.table == "results"
        return self.run.stages or (*TRAINED, *["evaluate"] * is_tested)

    def command(self, stages: Sequence[str] = ()) -> list[str]:
        """The arguments of run.py; InputError if it needs another shop.

        Args:
            stages: Some of its own alone.
        """
        recipe = RECIPES[self.run.recipe]
        files = recipe.get(self.shop.name, self.run.files or recipe["files"])
        bound = [*PLAN["bindings"], *recipe.get("bindings", ())]
        bound += [*self.run.bindings, *self.shop.bindings]
        words = [f"--gin_file={file}" for file in files]
        if self.shop.data_dir is not None:
            words.append(f"--data_dir={self.shop.data_dir}")
        if self.shop.embeddings is None or self.run.own_text:
            bound.append("embed_items.encoder=@encoders.TfidfEncoder()")
        else:
            words.append(f"--embeddings={self.shop.embeddings}")
        if self.run.is_combined:
            if self.other is None:
                raise InputError(f"{self.name} needs a second shop")
            bound.append(f"train_rqvae.also_fitted_to=('{self._other().workdir}',)")
        if self.run.table == "results":
            bound.append("evaluate.EvaluateConfig.baselines=()")
        if self.budget == REDUCED:
            bound += [*recipe.get("reduced", ()), *PLAN["reduced"]]
        words += [
            f"--workdir={self.workdir}",
            f"--stage={','.join(stages or self.stages)}",
        ]
        return [*words, f"--gin.SEED={self.seed}", *(f"--gin.{b}" for b in bound)]

    def _other(self) -> "Job":
        assert self.other is not None
        shop = self.other
        return dataclasses.replace(self, run=RUNS["two_level"], shop=shop, other=None)

    def needs(self) -> Iterator[tuple["Job", tuple[str, ...]]]:
        """The jobs that something is taken from, and which folders."""
        for word in self.run.takes.split():
            what, _, name = word.partition(":")
            yield dataclasses.replace(self, run=RUNS[name]), _FOLDERS[what]

    def before(self) -> Iterator[tuple["Job", tuple[str, ...]]]:
        """Jobs, and stages of theirs, that have to have run before this one."""
        if self.run.is_combined:
            self.command()
            yield self._other(), ("prepare_data", "embed_items")
        for job, folders in self.needs():
            made = {STAGES[stage].writes for stage in job.stages}
            names = [n for n in folders if n in made]
            yield job, tuple(s for s in job.stages if STAGES[s].writes in names)

    def link(self) -> None:
        """Takes over what others have made, by links; a stage that differs replaces it.

        A stage's files are never written into once its folder is whole.
        """
        for job, folders in self.needs():
            for name in folders:
                theirs, ours = job.workdir / name, self.workdir / name
                if (theirs / artifacts.MANIFEST).is_file() and not ours.exists():
                    partial = ours.with_name(f".{name}.linked")
                    shutil.rmtree(partial, ignore_errors=True)
                    shutil.copytree(theirs, partial, copy_function=os.link)
                    partial.rename(ours)

    def state(self, stages: Sequence[str] = ()) -> dict[str, Any] | None:
        """What its stages were made by, if all of their folders are there."""
        folders = [self.workdir / str(STAGES[s].writes) for s in stages or self.stages]
        if not all((folder / artifacts.MANIFEST).is_file() for folder in folders):
            return None
        made = [artifacts.load_manifest(folder, verify=False) for folder in folders]
        configs = hashlib.sha256()
        for path in sorted(GIN_CONFIGS.rglob("*.gin")):
            configs.update(path.read_bytes())
        return {
            "command": self.command(stages),
            "gin_configs": configs.hexdigest(),
            "made": [manifest.content_hash for manifest in made],
        }


def jobs_of(
    shops: Sequence[Shop], budget: str, root: Path, only: Sequence[str] = ()
) -> list[Job]:
    """The jobs of a round, those that tell most first.

    A run that says nothing of shops is of the first; with a budget of hours, full-size
    jobs are taken until they are spent, and a reduced round has one seed.

    Raises:
        InputError: `only` names no run, or the budget is none.
    """
    for name in only:
        if name not in RUNS:
            raise InputError(f"--only: {name!r} is none of {', '.join(RUNS)}")
    jobs = []
    for at, shop in enumerate(shops):
        other = shops[at + 1] if at + 1 < len(shops) else None
        for run in RUNS.values():
            where = ("first",) if at == 0 else ()
            wanted = {*(run.shops or ("first",))} & {"all", shop.name, *where}
            is_left_out = budget == REDUCED and not run.reduced
            if not wanted or is_left_out or (only and run.name not in only):
                continue
            seeds = run.seeds[:1] if budget == REDUCED else run.seeds
            size = REDUCED if budget == REDUCED else FULL
            jobs += [Job(run, shop, seed, size, root, other) for seed in seeds]
    # The first seed of what tells most on every shop, then its other seeds.
    jobs.sort(key=lambda job: (job.run.tier, job.seed, shops.index(job.shop)))
    if budget in (FULL, REDUCED):
        return jobs
    try:
        left = float(budget) * 60
    except ValueError as error:
        raise InputError(
            f"--budget={budget} must be a number of hours, {REDUCED} or {FULL}"
        ) from error
    until = itertools.accumulate(job.minutes for job in jobs)
    return [job for job, total in zip(jobs, until, strict=True) if total <= left]
