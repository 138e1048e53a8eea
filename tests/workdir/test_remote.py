"""A work directory on a store: whatever fails or is killed, nothing is lost."""

import contextlib
import os
import shutil
import threading
import time

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stored_runs import claim_at_once, in_store, run, work

from tiger_jax.errors import InputError, LockedError, Preempted
from tiger_jax.workdir import artifacts, lease, remote, store
from tiger_jax.workdir.arrays import load_array, save_array
from tiger_jax.workdir.json_files import read_json

URL = "memory://bucket/run"
_REQUESTS = "cat_file pipe_file put_file get_file rm_file find ls".split()


class Killed(BaseException):
    """The process dies; no request of it is made after that."""


class Requests:
    """Counts the requests to the store in memory, and fails some of them."""

    def __init__(self):
        self.count, self.fail, self._inside = 0, None, threading.local()
        self._lock = threading.Lock()

    def wrap(self, do):
        def ask(*args, **kwargs):
            if getattr(self._inside, "is_set", False):  # a part of another
                return do(*args, **kwargs)
            with self._lock:
                self.count += 1
                number = self.count
            self._inside.is_set = True
            try:
                if self.fail is not None:
                    return self.fail(number, lambda: do(*args, **kwargs))
                return do(*args, **kwargs)
            finally:
                self._inside.is_set = False

        return ask

    def fail_with(self, error, *, only=lambda number: True):
        def fail(number, do):
            if only(number):
                raise error
            return do()

        self.fail = fail

    def kill_at(self, which, *, after=False):
        """Dies at a request from now on: before it has come there, or after."""
        first = self.count + which

        def fail(number, do):
            if number == first and after:
                do()
            if number >= first:
                raise Killed
            return do()

        self.fail = fail


@pytest.fixture
def requests(monkeypatch, tmp_path):
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "one machine"))
    monkeypatch.setattr(store, "_FIRST_WAIT", 0.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of files
    # One after the other, so that the number of a request says what it is.
    monkeypatch.setattr(store, "_AT_ONCE", 1)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    found = Requests()
    for name in _REQUESTS:
        do = getattr(MemoryFileSystem, name)
        monkeypatch.setattr(MemoryFileSystem, name, found.wrap(do))
    return found


@pytest.fixture
def other_machine(monkeypatch, tmp_path):
    """Goes to another machine, after the claim of a dead one has run out."""

    def go():
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "other"))
        monkeypatch.setattr(lease, "SECONDS", 0.0)

    return go


def names():
    return sorted(MemoryFileSystem.store)


def test_a_stage_is_sent_whole_and_found_on_another_machine(requests, other_machine):
    assert run(URL) == [0, 1, 2, 3]
    expected = "all.npy manifest.json part/1_0.npy part/1_1.npy".split()
    stored = [name for name in names() if "/.lock/" not in name]
    assert stored == [f"/bucket/run/data/{name}" for name in expected]
    other_machine()
    assert run(URL) == []
    assert in_store(URL) == 1


def test_what_another_machine_made_anew_replaces_the_copy(requests, monkeypatch):
    run(URL, 1)
    first = remote.RemoteWorkdir(URL).local
    monkeypatch.setenv("TIGER_CACHE", str(first.parent / "other"))
    run(URL, 2)
    monkeypatch.setenv("TIGER_CACHE", str(first.parent))
    assert int(load_array(first / "data" / "all.npy")[0]) == 1
    assert run(URL, 2) == []
    assert int(load_array(first / "data" / "all.npy")[0]) == 2
    assert not [name for name in names() if "1_0" in name or "partial" in name]


def test_unfinished_work_goes_on_where_the_disk_is_gone(requests, other_machine):
    with pytest.raises(Preempted):
        run(URL, stop_after=1)
    assert in_store(URL) is None
    other_machine()
    assert run(URL) == [2, 3]
    assert not [name for name in names() if "partial" in name]


def test_unfinished_work_is_sent_while_a_stage_runs(requests, monkeypatch):
    monkeypatch.setattr(remote, "_SECONDS_BETWEEN_SNAPSHOTS", 0.01)
    mirror = remote.RemoteWorkdir(URL)
    with mirror.hold(), mirror.stage(mirror.local, "prepare_data"):
        with contextlib.suppress(Preempted):
            work(mirror.local, stop_after=1)
        deadline = time.monotonic() + 60
        while "/bucket/run/data.partial/index.json" not in names():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        work(mirror.local)
    assert in_store(URL) == 1


def test_other_settings_leave_unfinished_work_aside_in_the_store(
    requests, other_machine
):
    with pytest.raises(Preempted):
        run(URL, 1, stop_after=1)
    with pytest.raises(Preempted):
        run(URL, 5, stop_after=0)
    other_machine()
    assert run(URL, 1) == [2, 3]
    assert run(URL, 5) == [1, 2, 3]


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("is_other", [False, True], ids=["same", "other machine"])
@pytest.mark.parametrize("had", ["nothing", "unfinished", "another"])
def test_killed_at_any_request_nothing_is_lost(
    requests, other_machine, monkeypatch, tmp_path, had, is_other, is_after, step
):
    """Killed at each request in turn; the same command ends in the same."""
    for which in range(1, 200, step):
        requests.fail = None
        MemoryFileSystem.store.clear()
        shutil.rmtree(tmp_path / "one machine", ignore_errors=True)
        monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "one machine"))
        monkeypatch.setattr(lease, "SECONDS", 120.0)
        if had == "unfinished":
            with pytest.raises(Preempted):
                run(URL, 2, stop_after=1)
        elif had == "another":
            run(URL, 1)
        requests.kill_at(which, after=is_after)
        try:
            run(URL, 2)
        except Killed:
            was_killed = True
        else:
            was_killed = False
        requests.fail = None
        if had == "another":
            assert in_store(URL) in (1, 2), which
        if is_other:
            other_machine()
        computed = run(URL, 2)
        if had == "unfinished":
            assert not {0, 1} & {*computed}, which
        assert in_store(URL) == 2, which
        assert not [name for name in names() if "partial" in name], which
        if not was_killed:
            break
    assert not was_killed
    assert which > 10


def test_each_request_that_fails_once_is_made_again(requests):
    error = ConnectionResetError("reset by peer")
    requests.fail_with(error, only=lambda number: number % 2)
    run(URL, 1)
    run(URL, 2)
    requests.fail = None
    assert in_store(URL) == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("bucket"),
        PermissionError("Forbidden"),
        ConnectionRefusedError("refused"),
        RuntimeError("a library's own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_store_that_is_lost_is_one_line_and_nothing_more(requests, error):
    """The bucket vanishes, or the rights, while a stage works; then they are back."""
    with pytest.raises(InputError, match="memory://bucket/run") as raised:
        run(URL, then=lambda: requests.fail_with(error))
    assert "\n" not in str(raised.value)
    assert type(error).__name__ in str(raised.value)
    requests.fail = None
    assert run(URL) == []  # it was finished here
    assert in_store(URL) == 1


def test_a_stage_goes_on_while_the_store_is_away(requests, monkeypatch, capsys):
    monkeypatch.setattr(remote, "_SECONDS_BETWEEN_SNAPSHOTS", 0.01)
    mirror = remote.RemoteWorkdir(URL)
    with mirror.hold(), mirror.stage(mirror.local, "prepare_data"):
        requests.fail_with(PermissionError("Forbidden"))
        with contextlib.suppress(Preempted):
            work(mirror.local, stop_after=1)
        deadline, said = time.monotonic() + 60, ""
        while "was not sent" not in said:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            said += capsys.readouterr().out
        requests.fail = None
        assert work(mirror.local) == [2, 3]
    assert in_store(URL) == 1


def test_a_bucket_that_is_not_there_is_one_line(requests):
    requests.fail_with(FileNotFoundError("no such bucket"))
    with pytest.raises(InputError, match="see to the bucket"):
        run(URL)


def test_two_writers_the_second_is_told_of_the_first(requests, monkeypatch, tmp_path):
    first = remote.RemoteWorkdir(URL)
    with first.hold():
        monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "other"))
        with pytest.raises(LockedError, match="in use by process .* ends in 1.. s"):
            run(URL)
    assert run(URL) == [0, 1, 2, 3]


def test_of_many_that_come_at_once_one_gets_the_claim(requests):
    for _ in range(5):
        taken = claim_at_once(URL)
        assert len(taken) == 1
        taken[0].release()


def test_who_lost_the_claim_sends_nothing(requests, monkeypatch, tmp_path):
    def another_runs():
        monkeypatch.setattr(lease, "SECONDS", 0.0)
        monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "other"))
        run(URL, 2)

    with pytest.raises(LockedError):
        run(URL, 1, then=another_runs)
    assert in_store(URL) == 2


def test_a_claim_that_ran_out_is_claimed_anew_or_lost(requests, monkeypatch):
    held = lease.Lease(store.Store(URL), "here")
    monkeypatch.setattr(lease, "_TRUSTED_SECONDS", -1.0)
    monkeypatch.setattr(lease, "SECONDS", 0.0)
    held.check()
    assert names() == ["/bucket/run/.lock/000002"]
    lease.Lease(store.Store(URL), "elsewhere")
    with pytest.raises(LockedError, match="has taken it over"):
        held.check()


def test_a_claim_ends_with_its_run_or_its_place(requests):
    held = lease.Lease(store.Store(URL), "here")
    with pytest.raises(LockedError, match="its claim ends in 1.. s"):
        lease.Lease(store.Store(URL), "elsewhere")
    again = lease.Lease(store.Store(URL), "here")  # the first one's process is gone
    again.release()
    lease.Lease(store.Store(URL), "elsewhere")
    with pytest.raises(LockedError):
        held.renew()


def test_both_sides_made_anew_is_refused(requests, monkeypatch, tmp_path):
    run(URL, 1)
    mirror = remote.RemoteWorkdir(URL)
    work(mirror.local, 3)  # and killed before it was sent
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "other"))
    run(URL, 2)
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "one machine"))
    with pytest.raises(InputError, match="both made anew"):
        run(URL, 3)
    assert in_store(URL) == 2
    assert int(load_array(mirror.local / "data" / "all.npy")[0]) == 3


def test_what_the_store_damaged_is_found(requests, other_machine):
    run(URL)
    name = "/bucket/run/data/part/1_0.npy"
    fsspec.filesystem("memory").pipe_file(name, b"something else")
    other_machine()
    with pytest.raises(InputError, match=r"data/part/1_0.npy isn't what was written"):
        run(URL)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"files": {"../x": {}}}'])
def test_a_manifest_that_leads_outside_is_refused(requests, other_machine, text):
    run(URL)
    fsspec.filesystem("memory").pipe_file("/bucket/run/data/manifest.json", text)
    other_machine()
    with pytest.raises(InputError, match=r"data/manifest.json is damaged"):
        run(URL)


def test_a_stage_of_pipelines_is_refused(requests):
    mirror = remote.RemoteWorkdir(URL)
    with pytest.raises(InputError, match="file system that they share"):
        with mirror.stage(mirror.local, "prepare_shards"):
            pass


def test_versions_of_a_catalogue_travel_with_their_bundle(requests, other_machine):
    mirror = remote.RemoteWorkdir(URL)
    mirror.local.mkdir(parents=True)
    made = artifacts.begin(mirror.local, "bundle", stage="export", config={})
    save_array(made.folder / "x.npy", np.zeros(2))
    made.commit()
    with mirror.hold():
        with mirror.stage(mirror.local, "export"):
            pass
        with mirror.stage(mirror.local, "update_catalogue"):
            version = mirror.local / "bundle.catalogue" / "version_000001"
            version.mkdir(parents=True)
            (version / "version.json").write_text("{}")
    other_machine()
    bundle = remote.fetch_bundle(f"{URL}/bundle")
    assert load_array(bundle / "x.npy").shape == (2,)
    beside = bundle.with_name("bundle.catalogue")
    assert (beside / "version_000001" / "version.json").read_text() == "{}"
    with pytest.raises(InputError, match="no whole folder"):
        remote.fetch_bundle(f"{URL}/other")


def test_files_are_fetched_again_once_they_changed(requests):
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/shop/items.csv", b"a")
    files.pipe_file("/bucket/shop/more/x.csv", b"b")
    folder = remote.fetch_files("memory://bucket/shop")
    assert folder.name == "shop"
    assert (folder / "more" / "x.csv").read_bytes() == b"b"
    before = requests.count
    remote.fetch_files("memory://bucket/shop")
    assert requests.count == before + 1
    files.pipe_file("/bucket/shop/items.csv", b"new")
    files.rm_file("/bucket/shop/more/x.csv")
    folder = remote.fetch_files("memory://bucket/shop")
    assert (folder / "items.csv").read_bytes() == b"new"
    assert not (folder / "more").exists()
    one = remote.fetch_files("memory://bucket/shop/items.csv")
    assert one.read_bytes() == b"new"
    with pytest.raises(InputError, match="holds nothing"):
        remote.fetch_files("memory://bucket/nothing")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://bucket/run", "can't be opened"),
        ("memory://", "names no folder"),
        ("https://somewhere/run", "names no folder"),
        ("abfs://somewhere/run", "storage"),
    ],
)
def test_a_url_that_nothing_can_open_is_one_line(url, message):
    with pytest.raises(InputError, match=message) as raised:
        remote.RemoteWorkdir(url)
    assert "\n" not in str(raised.value)


def test_the_record_says_what_the_store_holds(requests):
    run(URL)
    mirror = remote.RemoteWorkdir(URL)
    manifest = (mirror.local / "data" / "manifest.json").read_bytes()
    assert read_json(mirror.local / ".store.json")["sent"] == {
        "data": remote._hash(manifest)
    }
