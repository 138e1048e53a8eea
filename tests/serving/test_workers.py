"""The command as it is run: several processes, and signals at any moment."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiger_jax.errors import InputError
from tiger_jax.serving import workers

ROOT = Path(__file__).resolve().parents[2]
AS_FIRST = ("unshare", "--pid", "--fork", "--kill-child")
TOKEN = "a-token-of-some-length"


class Command:
    """`run.py --stage=serve`, and what it says."""

    def __init__(self, bundle, tmp_path, before=(), **options):
        bound = {"bundle": f"'{bundle}'", "port": 0, "log_format": "'json'", **options}
        self.log = open(tmp_path / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [*before, sys.executable, "run.py", "--stage=serve"]
            + [f"--workdir={tmp_path}"]
            + [f"--gin.serve.{name}={value}" for name, value in bound.items()],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "TIGER_SERVE_TOKEN": TOKEN},
        )

    @property
    def said(self):
        return Path(self.log.name).read_text(encoding="utf-8")

    def children(self):
        parent = self.process.pid
        return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()

    def wait_for(self, text, seconds=240.0):
        end = time.monotonic() + seconds
        while not (found := re.findall(text, self.said)):
            assert time.monotonic() < end, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        return found

    def ask(self, method, path, body=None):
        (port, *_) = self.wait_for(r"http://127.0.0.1:(\d+)")
        one = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        headers |= {"Content-Type": "application/json"} if body else {}
        with contextlib.closing(one):
            one.request(method, path, body and json.dumps(body), headers)
            reply = one.getresponse()
            return reply.status, reply.read().decode()


@pytest.mark.slow  # starts five processes
def test_workers_share_a_listener_and_follow_each_other(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "bundle")
    served = Command(own, tmp_path, workers=2, poll_seconds=0.2)
    try:
        while len(served.wait_for("serve: ready")) < 2:
            time.sleep(0.2)
        question = {"history": ["item-1"], "k": 3}
        answers = [served.ask("POST", "/recommend", question) for _ in range(20)]
        assert {status for status, _ in answers} == {200}
        text = served.ask("GET", "/metrics")[1]
        counted = r'tiger_requests_total{path="/recommend",status="200"} (\d+)'
        assert re.findall(counted, text) == ["20"]
        (used,) = re.findall(r"^tiger_resident_bytes (\S+)", text, re.M)
        each = [f"/proc/{child}/statm" for child in served.children()]
        pages = [int(Path(name).read_text().split()[1]) for name in each]
        size = os.sysconf("SC_PAGE_SIZE")
        assert 0.7 * size * sum(pages) < float(used) < 1.4 * size * sum(pages)
        assert served.ask("DELETE", "/catalogue/items/item-7")[0] == 200
        time.sleep(1.0)
        gone = [served.ask("GET", "/items/item-7")[0] for _ in range(20)]
        assert set(gone) == {404}
        os.kill(int(served.children()[0]), signal.SIGKILL)
        served.wait_for("worker . ended with -9")
        while len(served.wait_for("serve: ready")) < 3:
            time.sleep(0.2)
        served.process.send_signal(signal.SIGHUP)
        statuses = set()
        while len(served.wait_for("serve: ready")) < 5:
            statuses.add(served.ask("POST", "/recommend", question)[0])
        assert statuses == {200}
        served.process.terminate()
        assert served.process.wait(60) == 0
        assert "Traceback" not in served.said
    finally:
        served.process.kill()


def can_connect(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow  # starts two processes
def test_workers_end_with_the_first_process(folder, tmp_path):
    """However it ended; else they would keep the port from its successor."""
    served = Command(folder, tmp_path, workers=2)
    while len(served.wait_for("serve: ready")) < 2:
        time.sleep(0.2)
    (port, *_) = served.wait_for(r"http://127.0.0.1:(\d+)")
    served.process.kill()
    end = time.monotonic() + 60
    while can_connect(int(port)):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow  # starts a process twice
def test_a_signal_ends_it_at_once_while_it_compiles(folder, tmp_path):
    for moment in ("compiling the searches", "http://"):
        served = Command(folder, tmp_path)
        try:
            served.wait_for(moment)
            start = time.monotonic()
            served.process.terminate()
            assert served.process.wait(30) == 0
            assert time.monotonic() - start < 2
        finally:
            served.process.kill()


@pytest.mark.slow  # starts a process
def test_a_reload_while_it_compiles_is_done_when_it_is_ready(folder, tmp_path):
    """As `systemctl reload` asks right after a start: by default, SIGHUP kills."""
    served = Command(folder, tmp_path)
    try:
        served.wait_for("compiling the searches")
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("serve: ready")
        served.wait_for("serving {'bundle")
        served.process.terminate()
        assert served.process.wait(60) == 0
    finally:
        served.process.kill()


def _why_not_first():
    try:
        subprocess.run([*AS_FIRST, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no namespace of processes can be made: {error}"
    return ""


@pytest.mark.slow  # starts a process for each
@pytest.mark.skipif(bool(_why_not_first()), reason=_why_not_first())
@pytest.mark.parametrize(
    ("workers", "moment"),
    [(1, "compiling the searches"), (1, "http://"), (1, "ready"), (2, "ready")],
)
def test_as_process_1_it_obeys_sigterm(folder, tmp_path, workers, moment):
    """The kernel spares process 1 of a container the signals without a handler."""
    served = Command(folder, tmp_path, AS_FIRST, workers=workers)
    try:
        served.wait_for(moment)
        (first,) = served.children()
        os.kill(int(first), signal.SIGTERM)
        assert served.process.wait(30) == 0
        assert "Traceback" not in served.said
    finally:
        served.process.kill()


@pytest.mark.skipif(bool(_why_not_first()), reason=_why_not_first())
def test_as_process_1_it_obeys_sigterm_from_the_beginning():
    """Before the imports, which take seconds."""
    command = [*AS_FIRST, sys.executable, "run.py", "--help"]
    # Set, so that it isn't started again for the sake of the allocator.
    own = {**os.environ, "GLIBC_TUNABLES": ""}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=own)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def handles_sigterm():
        first = children.read_text().split()
        status = Path(f"/proc/{first[0]}/status").read_text() if first else ""
        caught = re.search(r"SigCgt:\s*(\w+)", status)
        return caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1

    while not handles_sigterm():
        assert process.poll() is None
        time.sleep(0.01)
    (first,) = children.read_text().split()
    assert "jaxlib" not in Path(f"/proc/{first}/maps").read_text()
    os.kill(int(first), signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM


def test_each_worker_has_an_accelerator_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = [workers._device_of(n, 2)["CUDA_VISIBLE_DEVICES"] for n in range(2)]
    assert found == ["3", "5"]
    with pytest.raises(InputError, match="serve.workers is 3, and there are 2"):
        workers._device_of(2, 3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert workers._device_of(2, 3) == {}
