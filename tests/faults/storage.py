"""Storage that fails: damaged files, a full disk, a folder that can't be written."""

import functools
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from small_workdir import make_workdir
from tiny_run import OPTIMIZER, hash_of, init_fn, make_input

from faults import shop
from faults.campaign import FINE, Fault, Outcome
from tiger_jax.embedding.embed import embed_texts
from tiger_jax.embedding.encoders import Encoder
from tiger_jax.errors import InputError
from tiger_jax.models.rqvae import RqVaeConfig
from tiger_jax.quantizers.rqvae_training import RqVaeTraining
from tiger_jax.recommending.bundle import Bundle
from tiger_jax.stage_table import MADE_BY
from tiger_jax.training.checkpoints import Checkpointer
from tiger_jax.training.optimizers import make_optimizer
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.training.train_state import init_train_state
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.hashing import hash_arrays

_MANIFEST = artifacts.MANIFEST


def damage(path: Path, rng: random.Random) -> str:
    """Does something to a file that a disk could do; says what."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "truncate", "remove", "zeros", "append"])
    if kind == "remove":
        path.unlink()
        return f"{path.name} removed"
    if kind == "append" or not data:
        data += rng.randbytes(rng.randint(1, 600))
    elif kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[rng.randrange(len(data)) :]
    else:
        start = rng.randrange(len(data))
        length = min(rng.choice([1, 16, 512, 4096]), len(data) - start)
        data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return f"{path.name}: {kind}"


def _pick_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))


# --- Finished folders -------------------------------------------------------------


@functools.cache
def _small(folder: Path) -> Path:
    shutil.rmtree(folder / "work", ignore_errors=True)
    return make_workdir(folder / "work")


@functools.cache
def _copied(folder: Path) -> Path:
    shutil.rmtree(folder / "work", ignore_errors=True)
    return shutil.copytree(shop.whole_run(folder.parent).workdir, folder / "work")


def damage_small_artifact(number: int, folder: Path) -> Outcome:
    """As `damage_artifact`, of folders that no stage had to make."""
    return _damage_file(_small(folder), SMALL_ARTIFACT.random(number))


def damage_artifact(number: int, folder: Path) -> Outcome:
    """A damaged file of a finished folder is found and named, or does no harm."""
    return _damage_file(_copied(folder), ARTIFACT.random(number))


def _damage_file(workdir: Path, rng: random.Random) -> Outcome:
    target = rng.choice(sorted(p.parent for p in workdir.glob(f"*/{_MANIFEST}")))
    path = rng.choice([_pick_file(target, rng), target / _MANIFEST])
    before, was = path.read_bytes(), artifacts.load_manifest(target)
    done = damage(path, rng)
    try:
        now = artifacts.load_manifest(target)
        is_harmless = path.exists() and (path.read_bytes() == before or now == was)
        return FINE if is_harmless else Outcome(lost=1, note=f"unnoticed: {done}")
    except InputError as error:
        is_named = str(path) in str(error) or str(target) in str(error)
        return FINE if is_named else Outcome(wrong=1, note=f"not named: {error}")
    finally:
        path.write_bytes(before)


def damage_bundle(number: int, folder: Path) -> Outcome:
    """A damaged bundle isn't loaded."""
    bundle, rng = _copied(folder) / "bundle", BUNDLE.random(number)
    path = _pick_file(bundle, rng)
    before, manifest = path.read_bytes(), artifacts.load_manifest(bundle)
    done = damage(path, rng)
    try:
        Bundle.load(bundle)
        is_harmless = path.exists() and (
            path.read_bytes() == before or artifacts.load_manifest(bundle) == manifest
        )
        return FINE if is_harmless else Outcome(lost=1, note=f"unnoticed: {done}")
    except InputError:
        return FINE
    finally:
        path.write_bytes(before)


# --- Checkpoints ------------------------------------------------------------------

_OLD, _NEW = 3, 4


@functools.cache
def _saved(folder: Path) -> dict[int, str]:
    """Two checkpoints in ``checkpoints/``; the hash of each one's state, by step."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    checkpointer, hashes = Checkpointer(folder / "checkpoints"), {}
    for step in (_OLD, _NEW):
        state = _first_state(step)._replace(step=jax.device_put(np.int32(step)))
        input = make_input()
        for _ in range(step):
            next(input)
        checkpointer.save(state, input, {"seconds": float(step)})
        checkpointer.wait()
        hashes[step] = hash_of(state)
    checkpointer.close()
    return hashes


def _first_state(seed: int):
    optimizer = make_optimizer(OPTIMIZER, 100)
    key = jax.random.key(seed)
    return init_train_state(init_fn, optimizer, Partitioner(), key)


@functools.cache
def _like():
    return _first_state(9)


@functools.cache
def _batch_after(steps: int) -> str:
    input = make_input()
    for _ in range(steps):
        next(input)
    return hash_arrays(next(input).arrays)


def damage_checkpoint(number: int, folder: Path) -> Outcome:
    """Training goes on from the last whole checkpoint: state, position and memory."""
    hashes, rng = _saved(folder), CHECKPOINT.random(number)
    scratch = folder / "damaged"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder / "checkpoints", scratch)
    done = damage(_pick_file(scratch / f"checkpoint_{_NEW}", rng), rng)
    checkpointer, input = Checkpointer(scratch), make_input()
    try:
        restored = checkpointer.restore_newest(_like(), input)
    finally:
        checkpointer.close()
    assert restored is not None
    state, memory = restored
    step = int(state.step)
    is_right = (
        hash_of(state) == hashes.get(step)
        and memory == {"seconds": float(step)}
        and hash_arrays(next(input).arrays) == _batch_after(step)
    )
    return FINE if is_right else Outcome(lost=1, note=f"{done}, taken at step {step}")


_RQVAE = RqVaeTraining(
    model=RqVaeConfig(codebook_sizes=(4, 4), hidden_sizes=(8,), latent_size=4),
    num_steps=40,
    batch_size=16,
    steps_per_dispatch=10,
)


@functools.cache
def _rqvae(folder: Path) -> tuple[np.ndarray, str]:
    """Embeddings, with two checkpoints of a training on them, and what it ends in."""
    shutil.rmtree(folder, ignore_errors=True)
    embeddings = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    whole = _RQVAE.fit_in(folder / "whole", embeddings, seed=0, checkpoint_seconds=0.0)
    (folder / "cut").mkdir()
    shutil.copytree(folder / "whole" / "checkpoints", folder / "cut" / "checkpoints")
    return embeddings, hash_arrays(whole.to_arrays())


def damage_rqvae_checkpoint(number: int, folder: Path) -> Outcome:
    """The RQ-VAE's training ends in the same quantizer."""
    embeddings, expected = _rqvae(folder)
    rng, scratch = RQVAE_CHECKPOINT.random(number), folder / "damaged"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder / "cut", scratch)
    newest = max((scratch / "checkpoints").iterdir(), key=lambda p: int(p.name[11:]))
    done = damage(_pick_file(newest, rng), rng)
    fitted = _RQVAE.fit_in(scratch, embeddings, seed=0)
    if hash_arrays(fitted.to_arrays()) == expected:
        return FINE
    return Outcome(lost=1, note=f"another quantizer after {done}")


class _Lengths(Encoder):
    """Embeds a text as two numbers."""

    batch_size, texts_per_chunk = 4, 8

    def prepare(self, texts, *, seed):
        return lambda batch: np.array(
            [[len(text), sum(map(ord, text))] for text in batch], np.float32
        )


def damage_chunk(number: int, folder: Path) -> Outcome:
    """A chunk of embeddings that a killed run left behind is embedded again."""
    rng, chunks = CHUNK.random(number), folder / "chunks"
    texts = [f"text {rng.random()}" for _ in range(30)]
    shutil.rmtree(chunks, ignore_errors=True)
    whole = embed_texts(texts, _Lengths(), chunks)
    done = damage(_pick_file(chunks, rng), rng)
    again = embed_texts(texts, _Lengths(), chunks)
    if again.tobytes() == whole.tobytes():
        return FINE
    return Outcome(lost=1, note=f"unnoticed: {done}")


# --- Whole stages, in processes of their own ----------------------------------------


def damage_input(number: int, folder: Path) -> Outcome:
    """The command refuses a damaged input, names it, and rebuilds it as it says."""
    stages = [s for s in shop.FOLDERS if s not in ("prepare_data", shop.UPDATE)]
    rng, stage = INPUT.random(number), stages[number % len(stages)]
    whole, workdir = shop.whole_run(folder.parent, stage), folder / "work"
    shop.copy_before(stage, whole, workdir)
    manifest = artifacts.load_manifest(whole.workdir / shop.FOLDERS[stage])
    damaged = rng.choice(sorted(manifest.inputs))
    path = _pick_file(workdir / damaged, rng)
    done = damage(path, rng)
    refused = shop.run_stage(stage, workdir)
    if refused.code == 0:
        problems = shop.wrong_folders(workdir, whole, made_whole=stage)
        return Outcome(lost=1, note=f"{done}: {problems}") if problems else FINE
    if refused.complaint:
        return Outcome(wrong=1, note=f"{stage}, {done}: {refused.complaint}")
    if str(workdir / damaged) not in refused.output:
        return Outcome(wrong=1, note=f"{stage} doesn't name {done}: {refused.output}")
    shutil.rmtree(workdir / damaged)
    for again in (MADE_BY[damaged], stage):
        ended = shop.run_stage(again, workdir)
        if ended.code:
            return Outcome(lost=1, note=f"{again} after {done}: {ended.output[-500:]}")
    problems = shop.wrong_folders(workdir, whole, made_whole=stage, made_again=True)
    return Outcome(lost=1, note=f"{done}: {problems}") if problems else FINE


def _stage_of(number: int) -> str:
    """The stages take turns."""
    return list(shop.FOLDERS)[number % len(shop.FOLDERS)]


def _go_on(stage: str, workdir: Path, whole: shop.Whole) -> Outcome:
    """Runs a stage where nothing stands in its way any more."""
    # The same items can't be added to a catalogue twice.
    if stage != shop.UPDATE or not (workdir / shop.FOLDERS[stage]).exists():
        ended = shop.run_stage(stage, workdir)
        if ended.code:
            return Outcome(lost=1, note=f"{stage} didn't go on: {ended.output[-500:]}")
    problems = shop.wrong_folders(workdir, whole, made_whole=stage)
    return Outcome(lost=1, note=f"{stage}: {problems}") if problems else FINE


def fill_disk(number: int, folder: Path) -> Outcome:
    """No space left at some moment of a stage; with space, it goes on."""
    rng, stage = FULL.random(number), _stage_of(number)
    whole = shop.whole_run(folder.parent, stage)
    with shop.small_disk(folder / "disk", 64 << 20) as disk:
        workdir = disk / "work"
        shop.copy_before(stage, whole, workdir)
        used = shutil.disk_usage(disk).used
        made = _size(whole.workdir / shop.FOLDERS[stage])
        # Checkpoints on the way take more than what is left in the end.
        room = int(rng.uniform(0, 1.5) * made) + 8192
        shop.remount(disk, f"size={used + room}")
        ended = shop.run_stage(stage, workdir)
        if ended.code and (ended.complaint or "No space left" not in ended.output):
            why = ended.complaint or ended.output[-300:]
            return Outcome(wrong=1, note=f"{stage}, {room} bytes left: {why}")
        if problems := shop.wrong_folders(workdir, whole):
            return Outcome(lost=1, note=f"{stage}, disk full: {problems}")
        shop.remount(disk, f"size={64 << 20}")
        return _go_on(stage, workdir, whole)


def forbid_writing(number: int, folder: Path) -> Outcome:
    """The work directory is read-only; when it no longer is, the stage runs."""
    stage = _stage_of(number)
    whole = shop.whole_run(folder.parent, stage)
    with shop.small_disk(folder / "disk", 64 << 20) as disk:
        workdir = disk / "work"
        shop.copy_before(stage, whole, workdir)
        shop.remount(disk, "ro")
        ended = shop.run_stage(stage, workdir)
        if ended.complaint or "Read-only file system" not in ended.output:
            why = ended.complaint or ended.output[-300:]
            return Outcome(wrong=1, note=f"{stage}, read-only: {why}")
        shop.remount(disk, "rw")
        return _go_on(stage, workdir, whole)


def take_folder_away(number: int, folder: Path) -> Outcome:
    """The work directory vanishes while a stage runs; put back, it goes on."""
    rng, stage = VANISHED.random(number), _stage_of(number)
    whole = shop.whole_run(folder.parent, stage)
    workdir, away = folder / "work", folder / "away"
    shutil.rmtree(away, ignore_errors=True)
    shop.copy_before(stage, whole, workdir)
    running = shop.Stage(stage, workdir)
    time.sleep(rng.uniform(0, whole.seconds[stage]))
    workdir.rename(away)
    ended = running.end()
    if ended.code and ended.complaint:
        return Outcome(wrong=1, note=f"{stage}, folder gone: {ended.complaint}")
    shutil.rmtree(workdir, ignore_errors=True)  # what it made of itself meanwhile
    away.rename(workdir)
    if problems := shop.wrong_folders(workdir, whole):
        return Outcome(lost=1, note=f"{stage}, folder gone: {problems}")
    return _go_on(stage, workdir, whole)


def _size(folder: Path) -> int:
    # A tmpfs counts in pages.
    sizes = (p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return sum(-(-size // 4096) * 4096 for size in sizes)


def _fault(name: str, asked: int, attempt: Callable, **options) -> Fault:
    return Fault(f"storage: {name}", asked, attempt, **options)


SMALL_ARTIFACT = _fault(
    "damaged file of a finished folder",
    10_000,
    damage_small_artifact,
    quick=100,
    tries_per_row=500,
)
ARTIFACT = _fault(
    "damaged file of each stage's folder", 2000, damage_artifact, tries_per_row=100
)
CHUNK = _fault(
    "damaged chunk of embeddings", 2000, damage_chunk, quick=20, tries_per_row=200
)
CHECKPOINT = _fault(
    "damaged training checkpoint", 500, damage_checkpoint, quick=4, tries_per_row=20
)
RQVAE_CHECKPOINT = _fault(
    "damaged RQ-VAE checkpoint", 100, damage_rqvae_checkpoint, tries_per_row=5
)
BUNDLE = _fault("damaged file of a bundle", 10_000, damage_bundle, tries_per_row=500)
INPUT = _fault("damaged input of a stage, refused, rebuilt", 50, damage_input)
FULL = _fault(
    "no space left during a stage", 60, fill_disk, unavailable=shop.why_no_mounts
)
READ_ONLY = _fault(
    "read-only work directory", 28, forbid_writing, unavailable=shop.why_no_mounts
)
VANISHED = _fault("work directory vanishes during a stage", 40, take_folder_away)
FAULTS = [
    SMALL_ARTIFACT,
    ARTIFACT,
    CHUNK,
    CHECKPOINT,
    RQVAE_CHECKPOINT,
    BUNDLE,
    INPUT,
    FULL,
    READ_ONLY,
    VANISHED,
]
