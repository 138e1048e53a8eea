"""The plan of all runs, and the driver that makes them: what is run, shared, kept."""

import json
import sys

import gin
import pytest

from benchmarks import lib
from benchmarks.paper import __main__ as reproduce
from benchmarks.paper import analyses, plan
from tiger_jax import cli
from tiger_jax.errors import InputError, Preempted
from tiger_jax.stage_table import STAGES
from tiger_jax.workdir import artifacts

SHOP, OTHER = plan.Shop("shop"), plan.Shop("other")


def job(name, root, seed=0, budget=plan.FULL):
    return plan.Job(plan.RUNS[name], SHOP, seed, budget, root, OTHER)


def test_every_run_names_what_there_is(tmp_path):
    for name, run in plan.RUNS.items():
        assert run.table in ("", "results", *analyses.ABLATIONS)
        assert set(run.analyses) <= set(analyses.ANALYSES)
        assert set(job(name, tmp_path).stages) <= set(STAGES)
        for other, stages in job(name, tmp_path).before():
            assert stages, (name, other.name)
        if run.table in analyses.ABLATIONS:
            counterpart = plan.RUNS[plan.counterpart(run)]
            assert (counterpart.table, counterpart.recipe) == (run.table, run.recipe)
            assert set(run.seeds) <= set(counterpart.seeds)


@pytest.mark.parametrize("recipe", plan.RECIPES)
def test_the_bindings_of_a_recipe_are_taken_by_gin(recipe, tmp_path):
    names = [run.name for run in plan.RUNS.values() if run.recipe == recipe]
    for budget, name in [(plan.REDUCED, names[0]), *((plan.FULL, n) for n in names)]:
        one = job(name, tmp_path, budget=budget)
        bindings, rest = cli._take_gin_bindings(["run.py", *one.command()])
        given = cli._flags()
        assert given(rest) == ["run.py"]
        try:
            cli.parse_gin(given.gin_file, bindings)
            loop = gin.query_parameter("train_recommender.loop")
            if "train_recommender" in one.stages:  # the schedule's end, on any machine
                assert loop.scoped_configurable_fn().max_minutes is None
            assert gin.query_parameter("prepare_data.source") == "auto"
        finally:
            gin.clear_config()


def test_what_tells_most_comes_first_and_a_budget_is_kept(tmp_path):
    shops = [plan.Shop("beauty"), plan.Shop("sports", size=2.0)]
    jobs = plan.jobs_of(shops, plan.FULL, tmp_path)
    assert jobs[0].name == "beauty/two_level/0"
    assert [j.run.tier for j in jobs] == sorted(j.run.tier for j in jobs)
    some = plan.jobs_of(shops, "2", tmp_path)
    assert some == jobs[: len(some)]
    assert sum(j.minutes for j in some) <= 120 < sum(j.minutes for j in jobs)
    reduced = plan.jobs_of(shops, plan.REDUCED, tmp_path)
    assert {j.seed for j in reduced} == {0}
    assert sum(j.minutes for j in reduced) < 6 * 60
    # What isn't said to be of all shops is of the first.
    names = {j.run.name for j in jobs if j.shop.name == "sports"}
    assert names < {j.run.name for j in jobs if j.shop.name == "beauty"}
    with pytest.raises(InputError, match="--budget=soon"):
        plan.jobs_of(shops, "soon", tmp_path)
    with pytest.raises(InputError, match="'nothing' is none of two_level"):
        plan.jobs_of(shops, plan.FULL, tmp_path, ["nothing"])


def test_a_shop_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("TIGER_DATA", "")
    with pytest.raises(InputError, match="or --shops=demo for the generated shop"):
        plan.known_shops()
    assert [shop.data_dir for shop in plan.known_shops(["demo"])] == [None]
    with pytest.raises(InputError, match="'nowhere' is none of beauty"):
        plan.known_shops(["nowhere"])


@pytest.fixture
def made(monkeypatch):
    """Stages that make folders of a tiny shop instead of running; their calls."""
    calls = []

    def run_stages(words):
        given = dict(w.removeprefix("--").partition("=")[::2] for w in words)
        workdir = plan.Path(given["workdir"])
        calls.append((f"{workdir.parent.name}/{workdir.name}", given["stage"]))
        folders = [STAGES[stage].writes for stage in given["stage"].split(",")]
        for folder in folders:
            if not (workdir / folder).exists():
                run = artifacts.begin(workdir, folder, stage="x", config={})
                (run.folder / "file").write_text(folder)
                run.commit()

    monkeypatch.setattr(reproduce, "run_stages", run_stages)
    return calls


CODES = "prepare_data,embed_items,train_rqvae,assign_semantic_ids"


def test_codes_of_a_seed_are_made_once_and_linked(made, tmp_path):
    reproduce.make(job("short", tmp_path))
    whole = f"{CODES},train_recommender"
    assert made == [("two_level/0", CODES), ("short/0", whole)]
    theirs, ours = (
        job(name, tmp_path).workdir / "rqvae" / "file"
        for name in ("two_level", "short")
    )
    assert ours.samefile(theirs)
    reproduce.make(job("short", tmp_path, seed=1))
    assert made[2:] == [("two_level/1", CODES), ("short/1", whole)]


def test_a_job_that_is_whole_is_not_run_again(made, tmp_path):
    reproduce.make(job("two_level", tmp_path))
    reproduce.make(job("two_level", tmp_path))
    assert len(made) == 1
    state = job("two_level", tmp_path).workdir / reproduce.STATE
    state.write_text(state.read_text().replace("SEED=0", "SEED=7"))
    # Of other settings: run.py is asked, which knows by its fingerprints.
    reproduce.make(job("two_level", tmp_path))
    assert len(made) == 2
    reproduce.make(job("two_level", tmp_path, budget=plan.REDUCED))
    assert len(made) == 3  # in a folder of its own


def test_a_fusion_has_what_it_fuses_made_first(made, tmp_path):
    reproduce.make(job("fusion", tmp_path))
    names = [name for name, _ in made]
    assert names == ["two_level/0", "sasrec/0", "fusion/0"]
    assert (job("fusion", tmp_path).workdir / "sasrec" / "file").exists()


def test_a_failed_job_keeps_no_other_from_running(monkeypatch, tmp_path):
    made = []

    def make(one):
        made.append(one.run.name)
        if one.run.name == "sasrec":
            raise InputError("run.py ended with exit code 2")

    monkeypatch.setattr(reproduce, "make", make)
    monkeypatch.setattr(reproduce, "measure", lambda one, out: None)
    jobs = plan.jobs_of([SHOP], plan.FULL, tmp_path, ["two_level", "sasrec", "fusion"])
    assert reproduce.run_all(jobs[:3], tmp_path) == ["shop/sasrec/0"]
    assert made == ["two_level", "sasrec", "fusion"]


@pytest.mark.parametrize(
    ("code", "error"), [(2, InputError), (3, Preempted), (4, Preempted)]
)
def test_an_exit_code_says_whether_to_go_on(code, error, monkeypatch, tmp_path):
    (tmp_path / "run.py").write_text(f"raise SystemExit({code})")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    with pytest.raises(error):
        reproduce.run_stages([])
    (tmp_path / "run.py").write_text("import sys; sys.exit(sys.argv[1] != '--x')")
    reproduce.run_stages(["--x"])


def test_rows_are_measured_once_for_a_content(monkeypatch, tmp_path):
    asked = []

    def analyse(name, one):
        asked.append(name)
        return [{"data": "shop", "case": {"n": n}} for n in range(2)]

    one = job("short_random", tmp_path)
    one.workdir.mkdir(parents=True)
    state = {"state": {"made": ["a"]}, "cpu_minutes": 1.5}
    (one.workdir / reproduce.STATE).write_text(json.dumps(state))
    monkeypatch.setattr(reproduce, "_analyse", analyse)
    reproduce.measure(one, tmp_path)
    reproduce.measure(one, tmp_path)
    assert asked == ["two_level_experiments", "code_quality"]
    state["state"]["made"] = ["b"]
    (one.workdir / reproduce.STATE).write_text(json.dumps(state))
    reproduce.measure(one, tmp_path)
    rows = lib.read_rows(tmp_path / "code_quality.jsonl")
    assert len(rows) == 2  # in place of the former
    about = {k: rows[0][k] for k in ("run", "seed", "budget")}
    assert about == {"run": "short_random", "seed": 0, "budget": plan.FULL}


def test_tables_of_another_shop_hold_its_rows_alone(tmp_path):
    row = {"data": "shop", "run": "two_level", "seed": 0, "budget": "full"}
    row |= {"split": "validation", "users": 7, "device": "1 x cpu", "commit": "abc"}
    row |= {"case": {"vectors": "text"}, "metrics": {"recall@10": 0.125}}
    lib.write_rows(tmp_path / "vectors.jsonl", [row | {"intervals": {}}])
    reproduce.publish(tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert text.startswith("## vectors")
    assert "| text | .1250 |" in text
    assert "beauty" not in text


def test_the_documents_have_the_tables_of_their_rows():
    docs = lib.ROOT / "docs"
    text = (docs / "experiments.md").read_text(encoding="utf-8")
    for name in (*analyses.ABLATIONS, *analyses.ANALYSES):
        rows = lib.read_rows(docs / f"{name}.jsonl")
        if rows:
            order = list(plan.RUNS)
            rows.sort(key=lambda row: (*order, row["run"]).index(row["run"]))
            assert analyses.build_table(name, rows) in text, name


def test_the_minutes_of_a_stopped_start_count(made, monkeypatch, tmp_path):
    spent = iter([0.0, 2.0, 2.0, 5.0])
    monkeypatch.setattr(reproduce, "_cpu_minutes", lambda: next(spent))
    run_stages, one = reproduce.run_stages, job("two_level", tmp_path)

    def stop(words):
        raise Preempted("stopped")

    monkeypatch.setattr(reproduce, "run_stages", stop)
    with pytest.raises(Preempted):
        reproduce.make(one)
    monkeypatch.setattr(reproduce, "run_stages", run_stages)
    reproduce.make(one)
    done = json.loads((one.workdir / reproduce.STATE).read_text())
    assert done["cpu_minutes"] == 5
    assert done["state"] == one.state()


def test_rows_are_compared_with_the_committed_ones(tmp_path, capsys):
    ours = lib.read_rows(lib.ROOT / "docs" / "results.jsonl")[:2]
    low, high = ours[1]["intervals"]["recall@10"]
    ours[1]["intervals"]["recall@10"] = [low + 1, high + 1]
    lib.write_rows(tmp_path / "results.jsonl", ours)
    reproduce.compare(tmp_path)
    said = "".join(capsys.readouterr())
    assert "1 with intervals of recall@10 that meet, 1 without" in said


def test_a_dry_run_lists_and_runs_nothing(monkeypatch, tmp_path, capsys):
    words = ["--shops=demo", "--dry_run", f"--workdir={tmp_path / 'w'}", "--budget=1"]
    monkeypatch.setattr(sys, "argv", ["reproduce", *words])
    reproduce.main()
    said = "".join(capsys.readouterr())
    assert "demo/two_level/0" in said
    assert "CPU hours" in said
    assert not (tmp_path / "w").exists()
