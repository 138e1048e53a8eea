"""A stage of four chunks whose work directory lies in a store."""

import contextlib
import shutil
import threading

import numpy as np

from tiger_jax.errors import LockedError, Preempted
from tiger_jax.workdir import artifacts, chunks, lease, remote, store
from tiger_jax.workdir.arrays import load_array, save_array


def work(workdir, value=1, *, stop_after=None):
    """A stage of four chunks; says which of them it had to compute."""
    run = artifacts.begin(
        workdir, "data", stage="prepare_data", config={"v": value}, resumable=True
    )
    computed = []
    for number in range(4 * (not run.is_current)):
        if chunks.load_chunk(run.folder, str(number)) is None:
            array = np.full(3, value + number)
            chunks.save_chunk(run.folder, str(number), array)
            computed.append(number)
        if number == stop_after:
            raise Preempted("stopped")
    if not run.is_current:
        chunks.remove_chunks(run.folder)
        (run.folder / "part").mkdir(exist_ok=True)
        for number in range(2):
            path = run.folder / "part" / f"{value}_{number}.npy"
            save_array(path, np.full(3, value))
        save_array(run.folder / "all.npy", np.full(3, value))
        run.commit()
    return computed


def run(url, value=1, *, then=lambda: None, **options):
    """Runs the stage on the store, and what comes next; says what it computed."""
    mirror = remote.RemoteWorkdir(url)
    mirror.local.mkdir(parents=True, exist_ok=True)
    artifacts.recover_all(mirror.local)
    with mirror.hold(), mirror.stage(mirror.local, "prepare_data"):
        computed = work(mirror.local, value, **options)
        then()
    return computed


def in_store(url):
    """The value that the store's folder holds for a reader, None if it has none."""
    reader = remote.RemoteWorkdir(url, is_reader=True)
    shutil.rmtree(reader.local, ignore_errors=True)
    folder = reader.fetch("data") / "data"
    if not folder.exists():
        return None
    artifacts.load_manifest(folder)
    return int(load_array(folder / "all.npy")[0])


def claim_at_once(url, count=6):
    """The claims of those that got one, of so many that come together."""
    taken, start = [], threading.Barrier(count)

    def claim(place):
        start.wait()
        with contextlib.suppress(LockedError):
            taken.append(lease.Lease(store.Store(url), place))

    threads = [threading.Thread(target=claim, args=(f"{n}",)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken
