"""Curves reach the trackers that are wanted, and go on where they stopped."""

import sys
import types

import pytest

from tiger_jax.errors import InputError
from tiger_jax.training import trackers
from tiger_jax.training.metric_writers import MetricWriter


@pytest.fixture
def stand_in(monkeypatch):
    """A tracker's package, of which only what is called is there."""
    told = []

    class Run:
        def __init__(self, run_id):
            self.id = run_id
            self.info = types.SimpleNamespace(run_id=run_id)

        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    def init(**options):
        told.append(options.get("id"))
        return Run(options.get("id") or "made-1")

    def start_run(run_id, run_name):
        told.append(run_id or run_name)
        return Run(run_id or "made-2")

    wandb = types.SimpleNamespace(init=init)
    mlflow = types.SimpleNamespace(
        start_run=start_run,
        log_text=lambda text, name: told.append(name),
        log_metrics=lambda values, step: told.append((step, values)),
        end_run=lambda: told.append("ended"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return told


def test_wandb_is_told_and_a_resumed_run_goes_on(tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv(trackers.VARIABLE, "wandb")
    with MetricWriter(tmp_path / "recommender.partial") as writer:
        writer.write(10, {"validation/recall@10": 0.1, "train/loss": float("nan")})
    with MetricWriter(tmp_path / "recommender.partial", resume_from_step=10):
        pass
    expected = [None, (10, {"validation/recall@10": 0.1}), "finished"]
    assert stand_in == [*expected, "made-1", "finished"]


def test_mlflow_is_told_by_names_that_it_takes(tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv(trackers.VARIABLE, "mlflow")
    work = tmp_path / "work"
    with MetricWriter(work / "recommender.partial") as writer:
        writer.write(5, {"validation/recall@10": 0.1})
    told = ["work/recommender", "config.gin", (5, {"validation/recall_at_10": 0.1})]
    assert stand_in == [*told, "ended"]
    # A training that begins anew has an entry of its own.
    stand_in.clear()
    MetricWriter(work / "recommender.partial").close()
    assert stand_in[0] == "work/recommender"


@pytest.mark.parametrize(
    ("names", "message"),
    [("abacus", "choose from wandb, mlflow"), ("wandb", "pip install wandb")],
)
def test_what_is_not_there_is_one_line(tmp_path, monkeypatch, names, message):
    monkeypatch.setenv(trackers.VARIABLE, names)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=message):
        MetricWriter(tmp_path)


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv(trackers.VARIABLE, "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with MetricWriter(tmp_path / "recommender") as writer:
        writer.write(10, {"train/loss": 2.0})
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_mlflow_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv(trackers.VARIABLE, "mlflow")
    monkeypatch.chdir(tmp_path)  # its files lie where it runs
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with MetricWriter(tmp_path / "recommender") as writer:
        writer.write(10, {"validation/recall@10": 0.25})
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.metrics["validation/recall_at_10"] == 0.25
