import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import hash_of, run

from tiger_jax.errors import InputError, Preempted
from tiger_jax.training.loop import DivergedError, LoopConfig, may_grow
from tiger_jax.training.optimizers import OptimizerConfig

ONE = {"devices": jax.devices()[:1]}


def rows_of(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def interrupt_at(monkeypatch, step, how):
    """Calls `how` while the input draws the update after `step` updates."""
    make_input = tiny_run.make_input

    def make():
        input = make_input()
        draw = type(input).__next__

        class Interrupted(type(input)):
            def __next__(self):
                if self._drawn // 16 == step:
                    how()
                return draw(self)

        input.__class__ = Interrupted
        return input

    monkeypatch.setattr(tiny_run, "make_input", make)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, run(folder, **ONE)


def test_a_run_writes_its_curves(uninterrupted):
    folder, result = uninterrupted
    rows = rows_of(folder)
    training = {row["step"]: row for row in rows if "train/loss" in row}
    validation = {row["step"]: row for row in rows if "validation/loss" in row}
    assert (list(training), list(validation)) == ([5, 10, 15, 20], [10, 20])
    assert training[20]["train/loss"] < training[5]["train/loss"]
    for name in ("examples_per_s", "tokens_per_s", "gradient_norm"):
        assert training[20][f"train/{name}"] > 0
    assert result.step == 20
    assert result.best_metrics == {
        k.removeprefix("validation/"): v
        for k, v in validation[result.best_step].items()
        if k != "step"
    }


def test_sigterm_saves_and_the_same_command_goes_on_bit_for_bit(
    tmp_path, monkeypatch, uninterrupted
):
    whole_folder, whole = uninterrupted
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted, match="stopped by a signal after step 13"):
            run(tmp_path, **ONE)
    assert (tmp_path / "checkpoints" / "checkpoint_13").is_dir()
    result = run(tmp_path, **ONE)
    assert hash_of(result.state) == hash_of(whole.state)
    assert result.best_metrics == whole.best_metrics
    assert [r["step"] for r in rows_of(tmp_path)] == [
        r["step"] for r in rows_of(whole_folder)
    ]


@pytest.mark.parametrize("step", [3, 11, 19])
def test_a_crash_between_checkpoints_leaves_no_trace(
    tmp_path, monkeypatch, uninterrupted, step
):
    def crash():
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        interrupt_at(patch, step, crash)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tmp_path, **ONE)
    result = run(tmp_path, **ONE)
    whole_folder, whole = uninterrupted
    assert hash_of(result.state) == hash_of(whole.state)
    losses = [
        [(r["step"], r["train/loss"]) for r in rows_of(f) if "train/loss" in r]
        for f in (tmp_path, whole_folder)
    ]
    # Rows whose window began before the crash hold the mean since the restart.
    for (step, ours), (_, theirs) in zip(*losses, strict=True):
        assert step % 5 == 0
        np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_a_finished_run_is_not_trained_further(tmp_path, uninterrupted):
    folder, whole = uninterrupted
    again = run(folder, **ONE)
    assert hash_of(again.state) == hash_of(whole.state)
    assert (again.step, again.best_step) == (whole.step, whole.best_step)


def patch_evaluation(monkeypatch, values):
    """Makes the n-th evaluation give the n-th value."""
    values = iter(values)
    monkeypatch.setattr(
        tiny_run, "evaluate_fn", lambda params: {"recall@10": next(values)}
    )


def test_training_stops_when_validation_stops_rising(tmp_path, monkeypatch):
    """Training stops when validation has not risen for a while."""
    patch_evaluation(monkeypatch, [0.1, 0.3, 0.2, 0.25, 0.9])
    result = run(tmp_path, evaluate_every=2, patience=2, best_metric="recall@10", **ONE)
    assert (result.step, result.best_step) == (8, 4)
    assert result.stopped == "no better recall@10 in 2 evaluations"
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert {"checkpoint_4", "checkpoint_8"} <= kept  # the best and the last


def test_patience_is_remembered_over_a_restart(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch_evaluation(patch, [0.3, 0.2, 0.1])
        interrupt_at(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            run(tmp_path, evaluate_every=2, patience=2, best_metric="recall@10", **ONE)
    patch_evaluation(monkeypatch, [0.1])
    result = run(tmp_path, evaluate_every=2, patience=2, best_metric="recall@10", **ONE)
    assert (result.step, result.best_step) == (6, 2)


def test_a_tie_goes_to_the_smaller_loss(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0])
    monkeypatch.setattr(
        tiny_run, "evaluate_fn", lambda params: {"recall@10": 0.0, "loss": next(losses)}
    )
    result = run(tmp_path, evaluate_every=5, best_metric="recall@10", **ONE)
    assert result.best_step == 10


def test_the_time_limit_counts_what_an_earlier_start_used(tmp_path, monkeypatch):
    clock = {"now": 0.0}
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() * 1e-6 + clock["now"])

    def pass_40_seconds():
        clock["now"] += 40.0

    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, lambda: (pass_40_seconds(), os.kill(os.getpid(), 15)))
        with pytest.raises(Preempted):
            run(tmp_path, max_minutes=1.0, **ONE)
    clock["now"] += 1000.0  # time between two starts is nobody's
    interrupt_at(monkeypatch, 12, pass_40_seconds)
    result = run(tmp_path, max_minutes=1.0, **ONE)
    assert result.step == 13
    assert result.stopped == "time limit of 1 minutes"
    assert result.seconds == pytest.approx(80, abs=5)
    assert result.best_step in (10, 13)  # it ends with an evaluation


def test_more_time_goes_on_from_where_it_was_up(tmp_path):
    result = run(tmp_path, max_minutes=1e-9, **ONE)
    assert (result.step, result.stopped) == (1, "time limit of 1e-09 minutes")
    result = run(tmp_path, max_minutes=None, **ONE)
    assert (result.step, result.stopped) == (20, None)


def test_more_steps_end_as_if_there_had_always_been_so_many(tmp_path):
    steady = OptimizerConfig(name="adamw", schedule="constant", warmup_steps=5)
    cosine = dataclasses.replace(steady, schedule="cosine")
    assert "loop.total_steps" in may_grow(steady)
    assert "loop.total_steps" not in may_grow(cosine)
    settings = {"optimizer": steady, "evaluate_every": 5, **ONE}
    run(tmp_path / "short", total_steps=10, **settings)
    longer = run(tmp_path / "short", total_steps=20, **settings)
    whole = run(tmp_path / "whole", total_steps=20, **settings)
    assert hash_of(longer.state.params) == hash_of(whole.state.params)
    assert (longer.best_step, longer.best_metrics) == (
        whole.best_step,
        whole.best_metrics,
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    wild = OptimizerConfig(
        name="adamw", schedule="constant", learning_rate=1e30, warmup_steps=8
    )
    with pytest.raises(DivergedError) as error:
        run(tmp_path, optimizer=wild, checkpoint_every=1, **ONE)
    message = str(error.value)
    assert "at step" in message
    assert "nan" in message or "inf" in message or "rose" in message
    assert "learning_rate" in message
    assert f"{tmp_path}/checkpoints/checkpoint_" in message


def test_a_loss_that_climbs_stops_the_run(tmp_path):
    rising = OptimizerConfig(
        name="adamw", schedule="constant", learning_rate=2.0, warmup_steps=6
    )
    with pytest.raises(DivergedError, match="the training loss rose to .* from"):
        run(tmp_path, optimizer=rising, log_every=1, **ONE)


def test_several_updates_in_a_dispatch_pass_the_same_milestones(tmp_path):
    result = run(tmp_path, steps_per_dispatch=5, **ONE)
    assert [r["step"] for r in rows_of(tmp_path)] == [5, 10, 10, 15, 20, 20]
    assert result.step == 20


def test_a_run_resumes_on_another_mesh(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            run(tmp_path, mesh=tiny_run.MeshConfig(4, 2))
    result = run(tmp_path, mesh=tiny_run.MeshConfig(2, 1), devices=jax.devices()[:2])
    assert result.step == 20
    assert dict(result.state.params["wi"].sharding.mesh.shape) == {
        "data": 2,
        "model": 1,
    }


def test_a_profiler_trace_is_written_on_request(tmp_path):
    run(tmp_path, profile_at=7, profile_steps=2, **ONE)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_utilisation_is_logged_where_the_peak_is_known(tmp_path):
    run(tmp_path, peak_flops=1e12, **ONE)
    used = [r["train/flop_utilisation"] for r in rows_of(tmp_path) if "train/loss" in r]
    assert all(0 < share < 1 for share in used)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"log_every": 3, "steps_per_dispatch": 2}, "log_every = 3 must be a positive"),
        ({"evaluate_every": 0}, "evaluate_every = 0"),
    ],
)
def test_periods_that_do_not_fit_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        LoopConfig(**config)


def test_a_metric_that_no_evaluation_has_is_refused(tmp_path):
    with pytest.raises(InputError, match="'recall@7' is none of .*: loss, size"):
        run(tmp_path, best_metric="recall@7", evaluate_every=5, **ONE)
