import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tiger_jax.errors import InputError
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import (
    ADDED_LATER,
    canonical,
    read_json,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 3


def make(workdir, name="data", stage="prepare_data", value=1, size=3, **options):
    run = artifacts.begin(
        workdir, name, stage=stage, config={"config": Config(size)}, **options
    )
    if not run.is_current:
        np.save(run.folder / "values.npy", np.full(size, value))
        run.commit(summary={"value": value})
    return run


def test_a_finished_folder_is_current_and_untouched(tmp_path):
    make(tmp_path)
    before = (tmp_path / "data" / artifacts.MANIFEST).read_bytes()
    assert make(tmp_path, value=2).is_current
    assert (tmp_path / "data" / artifacts.MANIFEST).read_bytes() == before


def test_a_changed_config_builds_again_and_says_what_changed(tmp_path, capsys):
    make(tmp_path)
    assert not make(tmp_path, size=4).is_current
    assert "config.size was 3 and is 4" in capsys.readouterr().out
    assert np.load(tmp_path / "data" / "values.npy").shape == (4,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_a_changed_input_builds_again(tmp_path):
    make(tmp_path)
    child = {"name": "embeddings", "stage": "embed_items", "inputs": ["data"]}
    make(tmp_path, **child)
    assert make(tmp_path, **child).is_current
    make(tmp_path, size=5)
    assert not make(tmp_path, **child).is_current


def test_content_hash_ignores_time_and_logs_but_not_values(tmp_path):
    for name, value in ("a", 1), ("b", 1), ("c", 2):
        run = artifacts.begin(tmp_path, name, stage="s", config={})
        np.save(run.folder / "values.npy", np.full(3, value))
        (run.folder / "metrics.jsonl").write_text(f'{{"seconds": "{name}"}}')
        run.commit()
    a, b, c = (artifacts.load_manifest(tmp_path / n).content_hash for n in "abc")
    assert a == b != c


def test_a_missing_input_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="run --stage=prepare_data first"):
        make(tmp_path, name="embeddings", stage="embed_items", inputs=["data"])


def test_inputs_of_different_data_are_refused_with_hashes(tmp_path):
    """Inputs that do not belong together are refused with both hashes."""
    make(tmp_path)
    make(tmp_path, name="embeddings", stage="embed_items", inputs=["data"])
    old = artifacts.load_manifest(tmp_path / "data").content_hash
    make(tmp_path, size=7)
    new = artifacts.load_manifest(tmp_path / "data").content_hash
    with pytest.raises(InputError) as error:
        make(tmp_path, name="rqvae", stage="train_rqvae", inputs=["embeddings"])
    assert old[:12] in str(error.value)
    assert new[:12] in str(error.value)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_damage_is_found_and_named(tmp_path, damage):
    make(tmp_path)
    path = tmp_path / "data" / "values.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-5])
    elif damage == "remove":
        path.unlink()
    else:
        path = tmp_path / "data" / artifacts.MANIFEST
        path.write_text(path.read_text()[:-30])
    with pytest.raises(InputError, match=str(path)):
        artifacts.load_manifest(tmp_path / "data")


@pytest.mark.parametrize("field", ["value", "sha256", "bytes", "stage"])
def test_a_changed_manifest_is_refused(tmp_path, field):
    """A manifest that is JSON but not what was written is refused."""
    make(tmp_path)
    path = tmp_path / "data" / artifacts.MANIFEST
    lines = path.read_text().splitlines(keepends=True)
    (number,) = (n for n, line in enumerate(lines) if f'"{field}"' in line)
    letter = next(c for c in lines[number].split(":")[1] if c.isalnum())
    other = "7" if letter.isdigit() and letter != "7" else "5"
    head, colon, value = lines[number].partition(":")
    lines[number] = head + colon + value.replace(letter, other, 1)
    path.write_text("".join(lines))
    with pytest.raises(InputError, match=str(path)):
        artifacts.load_manifest(tmp_path / "data")


def test_a_manifest_lists_nothing_outside_its_folder(tmp_path):
    make(tmp_path)
    path = tmp_path / "data" / artifacts.MANIFEST
    fields = read_json(path)
    for name in ("../secret", "/etc/passwd", "a/../../b"):
        listed = {**fields["files"], name: {"sha256": "0", "bytes": 0}}
        changed = {**fields, "files": listed}
        write_json(path, {**changed, "seal": ""})
        with pytest.raises(InputError, match="isn't what was written"):
            artifacts.load_manifest(tmp_path / "data")
        write_json(path, {**changed, "seal": artifacts.seal(changed)})
        with pytest.raises(InputError, match="outside"):
            artifacts.load_manifest(tmp_path / "data")


def test_a_partial_folder_resumes_with_its_fingerprint_only(tmp_path):
    def begin(size):
        return artifacts.begin(
            tmp_path, "data", stage="s", config={"size": size}, resumable=True
        )

    (begin(1).folder / "chunk").write_text("half")
    assert (begin(1).folder / "chunk").exists()
    assert not (begin(2).folder / "chunk").exists()


def train_halfway(workdir, **changes):
    """Begins a training, and leaves a checkpoint if there is none."""
    settings = {"total_steps": 30, "max_minutes": 5.0, "batch_size": 32, **changes}
    loop = {k: settings.pop(k) for k in ("total_steps", "max_minutes")}
    run = artifacts.begin(
        workdir,
        "model",
        stage="train",
        config={"loop": loop, "inputs": [settings]},
        resumable=True,
        may_grow=("loop.total_steps", "loop.max_minutes"),
    )
    steps = [p.name for p in run.folder.glob("checkpoints/*")]
    if not steps:
        (run.folder / "checkpoints" / f"checkpoint_{settings['batch_size']}").mkdir(
            parents=True
        )
    return run.folder, steps


def test_unfinished_work_of_other_settings_is_put_aside(tmp_path, capsys):
    folder, _ = train_halfway(tmp_path)
    assert train_halfway(tmp_path, batch_size=64) == (folder, [])
    said = capsys.readouterr().out
    assert "inputs.0.batch_size was 32 and is 64" in said
    assert "saved at step 32" in said
    (aside,) = tmp_path.glob("model.partial-*")
    assert f"kept as {aside}" in said
    # Put back, it goes on; and what was begun in between is kept in its turn.
    assert train_halfway(tmp_path) == (folder, ["checkpoint_32"])
    assert not aside.exists()
    assert train_halfway(tmp_path, batch_size=64) == (folder, ["checkpoint_64"])


@pytest.mark.parametrize(
    ("changes", "resumes"),
    [
        ({"total_steps": 60}, True),
        ({"max_minutes": None}, True),
        ({"total_steps": 60, "max_minutes": 7.5}, True),
        ({"total_steps": 20}, False),
        ({"max_minutes": 4.0}, False),
        ({"total_steps": 60, "batch_size": 64}, False),
    ],
)
def test_some_settings_may_grow_in_the_middle(tmp_path, changes, resumes):
    train_halfway(tmp_path)
    _, steps = train_halfway(tmp_path, **changes)
    assert bool(steps) == resumes
    _, steps = train_halfway(tmp_path, **changes)
    assert steps  # it is these settings' now


def test_finished_work_may_grow_too(tmp_path):
    def begin(total_steps, batch_size=32):
        return artifacts.begin(
            tmp_path,
            "model",
            stage="train",
            config={"total_steps": total_steps, "batch_size": batch_size},
            resumable=True,
            may_grow=("total_steps",),
        )

    run = begin(30)
    (run.folder / "checkpoint").write_text("30 steps")
    run.commit()
    assert not (begin(60, batch_size=64).folder / "checkpoint").exists()
    assert not (begin(20).folder / "checkpoint").exists()
    run = begin(60)
    assert (run.folder / "checkpoint").read_text() == "30 steps"
    assert (run.final / "checkpoint").exists()
    run.commit()
    assert begin(60).is_current


def test_an_earlier_versions_unfinished_work_goes_on(tmp_path):
    folder, _ = train_halfway(tmp_path)
    record = read_json(folder / "fingerprint.json")
    write_json(folder / "fingerprint.json", record["fingerprint"])
    assert train_halfway(tmp_path)[1] == ["checkpoint_32"]
    write_json(folder / "fingerprint.json", record["fingerprint"])
    assert train_halfway(tmp_path, total_steps=60)[1] == []
    assert list(tmp_path.glob("model.partial-*"))


KILLED_WHILE_SWAPPING = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from tiger_jax.workdir import artifacts

    workdir, die_at = Path(sys.argv[1]), int(sys.argv[2])
    calls = 0

    def dying(function):
        def wrapped(*args, **kwargs):
            global calls
            calls += 1
            if calls > die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapped

    run = artifacts.begin(workdir, "data", stage="s", config={"new": 1})
    np.save(run.folder / "values.npy", np.ones(3))
    Path.rename = dying(Path.rename)
    Path.replace = dying(Path.replace)
    artifacts.shutil.rmtree = dying(artifacts.shutil.rmtree)
    run.commit()
    print("done")
"""


def test_a_kill_at_any_point_of_the_swap_leaves_a_whole_folder(tmp_path):
    script = textwrap.dedent(KILLED_WHILE_SWAPPING)
    outcomes = []
    for die_at in range(5):
        workdir = tmp_path / str(die_at)
        run = artifacts.begin(workdir, "data", stage="s", config={"new": 0})
        np.save(run.folder / "values.npy", np.zeros(3))
        run.commit()
        done = subprocess.run(
            [sys.executable, "-c", script, str(workdir), str(die_at)],
            capture_output=True,
            text=True,
            check=False,
        )
        artifacts.recover_all(workdir)
        manifest = artifacts.load_manifest(workdir / "data")
        values = np.load(workdir / "data" / "values.npy")
        assert (values == manifest.config["new"]).all()
        leftovers = {p.name for p in workdir.iterdir()} - {"data", "data.partial"}
        assert not leftovers
        outcomes.append((done.returncode, manifest.config["new"]))
    # Killed before the manifest stood: the old folder. From then on: the new one.
    assert outcomes[0] == (-signal.SIGKILL, 0)
    assert outcomes[1] == (-signal.SIGKILL, 1)
    assert outcomes[-1] == (0, 1)


def test_configs_with_arbitrary_objects_are_refused():
    with pytest.raises(TypeError, match="may not hold a object"):
        canonical({"x": object()})


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib\n"
            "from tiger_jax.workdir.lock import hold_workdir\n"
            "with hold_workdir(pathlib.Path(sys.argv[1])):\n"
            "    print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    from tiger_jax.errors import LockedError
    from tiger_jax.workdir.lock import hold_workdir

    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(LockedError, match=f"process {holder.pid} "),
        hold_workdir(tmp_path),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with hold_workdir(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_work_directory_that_vanished_is_named(tmp_path):
    """A work directory that vanished is named whatever broke first."""
    from tiger_jax.workdir.lock import hold_workdir

    def fail(workdir, *, renamed):
        with hold_workdir(workdir):
            if renamed:
                workdir.rename(tmp_path / "away")
                workdir.mkdir()  # as whoever writes next does
            raise ValueError("no checkpoint there")

    with pytest.raises(ValueError, match=r"^no checkpoint there$"):
        fail(tmp_path / "run", renamed=False)
    with pytest.raises(InputError, match="run was taken away.*no checkpoint there"):
        fail(tmp_path / "run", renamed=True)


def test_a_field_that_came_later_counts_once_it_is_set():
    @dataclasses.dataclass(frozen=True)
    class Config:
        old: int = 1
        new: int = dataclasses.field(default=2, metadata=ADDED_LATER)

    assert canonical(Config()) == {"class": "Config", "old": 1}
    assert canonical(Config(new=3)) == {"class": "Config", "old": 1, "new": 3}
