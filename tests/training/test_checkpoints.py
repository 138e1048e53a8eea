import asyncio
import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from orbax.checkpoint._src.serialization import ocdbt_utils
from tiny_run import OPTIMIZER, hash_of, init_fn, make_input

from tiger_jax.errors import InputError
from tiger_jax.training.checkpoints import Checkpointer, restore_params
from tiger_jax.training.optimizers import make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.training.train_state import init_train_state

ADAMW = make_optimizer(OPTIMIZER, 100)


def make_state(mesh=(8, 1), optimizer=ADAMW, seed=0, init=init_fn):
    partitioner = Partitioner(MeshConfig(*mesh))
    return init_train_state(init, optimizer, partitioner, jax.random.key(seed))


def save(folder, *steps, keep=2, best=None):
    """Saves a state with other values at each step; returns them by step."""
    states = {}
    checkpointer = Checkpointer(folder, keep=keep, best_step=best)
    for step in steps:
        state = make_state(seed=step)._replace(step=np.int32(step))
        state = state._replace(step=jax.device_put(state.step))
        input = make_input()
        for _ in range(step):
            next(input)
        checkpointer.save(state, input, {"seconds": float(step)})
        checkpointer.wait()
        states[step] = state
    checkpointer.close()
    return states


def restore(folder, like=None):
    checkpointer = Checkpointer(folder)
    try:
        input = make_input()
        restored = checkpointer.restore_newest(like or make_state(), input)
        return restored, input, checkpointer.steps()
    finally:
        checkpointer.close()


def test_a_checkpoint_has_t5x_s_names(tmp_path):
    save(tmp_path, 3)
    root = tmp_path / "checkpoint_3"
    leaves = json.loads((root / "state" / "_METADATA").read_text())["tree_metadata"]
    paths = {"/".join(eval_keys(key)) for key in leaves}
    assert {
        "target/embeddings",
        "target/wi",
        "target/wo",
        "state/step",
        "state/param_states/0/mu/wi",
        "state/param_states/0/nu/wi",
        "state/param_states/0/count",
    } <= paths
    assert (root / "dataset" / "position.json").is_file()


def eval_keys(key):
    """Orbax writes a path as the text of a tuple of strings."""
    return [part.strip(" '") for part in key.strip("()").split(",") if part.strip()]


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4), (1, 8)])
def test_a_checkpoint_is_restored_exactly_onto_any_mesh(tmp_path, mesh):
    saved = save(tmp_path, 3)[3]
    like = make_state(mesh, seed=9)
    (state, loop_state), input, _ = restore(tmp_path, like)
    assert hash_of(state) == hash_of(saved)
    assert state.params["wi"].sharding == like.params["wi"].sharding
    assert loop_state == {"seconds": 3.0}
    expected = make_input()
    for _ in range(3):
        next(expected)
    np.testing.assert_array_equal(
        next(input).arrays["target"], next(expected).arrays["target"]
    )


@pytest.mark.parametrize("name", ["lr=[1]", "a*", "what?", "**", "[", "~", "ü ' #"])
def test_any_folders_name_will_do(tmp_path, name):
    others = tmp_path / "a1"  # what some of these would match, as patterns
    save(others, 1)
    saved = save(tmp_path / name, 2)[2]
    (state, _), input, steps = restore(tmp_path / name)
    assert steps == [2]
    assert hash_of(state.params) == hash_of(saved.params)
    assert input.save(tmp_path) is None


def test_a_checkpoint_is_read_back_after_the_first_save(tmp_path, monkeypatch):
    async def lose(*args, **kwargs):
        pass

    monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", lose)
    with pytest.raises(InputError, match="checkpoint_1 was written, but can't be read"):
        save(tmp_path, 1, 2)


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, best=2)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["checkpoint_2", "checkpoint_4", "checkpoint_5"]


def test_parameters_alone_can_be_restored(tmp_path):
    saved = save(tmp_path, 3)[3]
    like = make_state((1, 8), seed=9).params
    params = restore_params(tmp_path / "checkpoint_3", like)
    assert hash_of(params) == hash_of(saved.params)
    assert params["wi"].sharding == like["wi"].sharding


def test_a_checkpoint_that_does_not_fit_names_the_leaf(tmp_path):
    save(tmp_path, 3)

    def wider(key):
        from tiny_run import Bag

        tokens = np.ones((1, 4), np.int32)
        return Bag(hidden=24).init(key, tokens, is_training=False)["params"]

    with pytest.raises(
        InputError, match=r"target/wi is \[8, 16\] in it and \[8, 24\] in the model"
    ):
        restore(tmp_path, make_state(init=wider))
    with pytest.raises(InputError, match=r"param_states/0/mu/embeddings is in it, but"):
        restore(tmp_path, make_state(optimizer=optax.sgd(0.1)))
    with pytest.raises(InputError, match=r"target/more is missing from it"):
        restore_params(
            tmp_path / "checkpoint_3", {**make_state().params, "more": np.ones(3)}
        )
    with pytest.raises(InputError, match="not a checkpoint"):
        restore_params(tmp_path / "nowhere", {})


def flip_a_bit(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_digit(path: Path, after: str = ""):
    """Leaves JSON what it is, but for a number."""
    text = path.read_text()
    start = text.index(after)
    place = next(i for i in range(start, len(text)) if text[i].isdigit())
    path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")


def rename_field(path: Path):
    path.write_text(path.read_text().replace("init_timestamp", "init_timestomp"))


def largest_data_file(folder: Path) -> Path:
    return max((folder / "state" / "d").iterdir(), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: largest_data_file(folder).write_bytes(b""),
        lambda folder: largest_data_file(folder).unlink(),
        lambda folder: flip_a_bit(largest_data_file(folder)),
        lambda folder: (folder / "state" / "_METADATA").write_text("{"),
        lambda folder: (folder / "dataset" / "position.json").write_text("{"),
        lambda folder: replace_digit(folder / "dataset" / "position.json"),
        lambda folder: replace_digit(folder / "_CHECKPOINT_METADATA", after="loop"),
        lambda folder: rename_field(folder / "_CHECKPOINT_METADATA"),
        lambda folder: replace_digit(folder / "state" / "_METADATA"),
        lambda folder: (folder / "files.json").write_text("[]"),
    ],
    ids=[
        "emptied",
        "removed",
        "flipped bit",
        "metadata",
        "position",
        "another position",
        "another memory",
        "unreadable record",
        "another shape",
        "list of files",
    ],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path, damage, capsys
):
    saved = save(tmp_path, 3, 4)
    damage(tmp_path / "checkpoint_4")
    (state, loop_state), input, steps = restore(tmp_path)
    assert hash_of(state) == hash_of(saved[3])
    assert loop_state == {"seconds": 3.0}
    assert steps == [3]
    assert "checkpoint_4 is damaged" in capsys.readouterr().out
    expected = make_input()
    for _ in range(3):
        next(expected)
    np.testing.assert_array_equal(
        next(input).arrays["target"], next(expected).arrays["target"]
    )


def test_if_all_are_damaged_nothing_is_lost_silently(tmp_path):
    save(tmp_path, 3)
    largest_data_file(tmp_path / "checkpoint_3").unlink()
    with pytest.raises(InputError, match="every checkpoint in .* is damaged"):
        restore(tmp_path)
    assert (tmp_path / "checkpoint_3").exists()


def test_what_orbax_raises_it_does_not_log_with_a_traceback_too(tmp_path):
    Checkpointer(tmp_path).close()
    failure = (OSError, OSError("full"), None)

    def is_shown(path, exc_info):
        record = logging.LogRecord("absl", logging.ERROR, path, 1, "x", (), exc_info)
        return bool(logging.getLogger("absl").filter(record))

    assert not is_shown("/lib/orbax/checkpoint/async.py", failure)
    assert is_shown("/lib/orbax/checkpoint/async.py", None)
    assert is_shown("/lib/other.py", failure)


def test_writes_that_end_after_a_failed_one_say_nothing(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    Checkpointer(tmp_path / "run").close()
    loop = asyncio.new_event_loop()
    loop.close()
    for late in (
        lambda: loop.call_soon_threadsafe(print),
        lambda: json.loads("no JSON"),
    ):
        try:
            late()
        except Exception as error:
            sys.unraisablehook(_Unraisable(error))
    assert [type(unraisable.exc_value) for unraisable in said] == [json.JSONDecodeError]


class _Unraisable:
    """What the interpreter gives its hook, of a call that no Python made."""

    err_msg = object = None

    def __init__(self, error):
        self.exc_type, self.exc_value = type(error), error
        self.exc_traceback = error.__traceback__.tb_next.tb_next


def test_an_unfinished_checkpoint_is_not_seen(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "checkpoint_9.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoint_9.orbax-checkpoint-tmp" / "state").mkdir()
    (state, _), _, steps = restore(tmp_path)
    assert int(state.step) == 3
    assert steps == [3]
