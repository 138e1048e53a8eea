"""Every block of the documents is run, here or by a named test, or says why not.

A comment on the line before a block says `run by FILE` or `not run: REASON`; one that
begins `each block is run by FILE` holds for the whole document. Shell and Python blocks
without a comment are run here, in order, in a folder with a small shop.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from test_documents import DOCUMENTS, ROOT, read
from test_package import TINY_RUN

BLOCK = re.compile(
    r"^(?:[ ]*<!--[ ](?P<mark>[^\n]*)[ ]-->\n)?"
    r"(?P<indent>[ ]*)```(?P<kind>[^\n]*)\n(?P<body>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
WHOLE = re.compile(r"^<!-- each block is (run by \S+)[^\n]* -->$", re.MULTILINE)
NO_CODE = ("text", "bibtex", "csv")
# What all but the README, which does it, take for done.
GIVEN = """
python run.py
python run.py --data_dir=my_shop --workdir=runs/my_shop \\
  --gin_file=experiments/cpu_quick.gin
python run.py --stage=export --workdir=runs/my_shop
"""


def blocks(name):
    """Mark, kind and body of a document's blocks of code."""
    text = read(name)
    whole = WHOLE.search(text)
    for found in BLOCK.finditer(text):
        kind = found["kind"].partition(" ")[0]
        if kind not in NO_CODE:
            mark = found["mark"] or (whole[1] if whole else "")
            yield mark, kind, textwrap.dedent(found["body"])


TO_RUN = [name for name in DOCUMENTS if any(not mark for mark, _, _ in blocks(name))]


@pytest.mark.parametrize("name", [d for d in DOCUMENTS if BLOCK.search(read(d))])
def test_every_block_is_run_or_says_why_not(name):
    for mark, kind, body in blocks(name):
        assert kind, f"{name}: a block without a language: {body}"
        if mark.startswith("run by "):
            test = mark.split()[2].rstrip(",")
            assert Path(name).name in read(test), f"{name} isn't named in {test}"
        elif mark:
            assert re.match(r"not run: \w+ \w+", mark), f"{name}: {mark!r} of {body}"
        else:
            assert kind in ("sh", "python"), f"{name}: who runs {body}"


def test_the_commands_of_the_readme_are_run_here():
    assert "README.md" in TO_RUN
    assert len(TO_RUN) > 4


def _write_shop(folder):
    rng = np.random.default_rng(0)
    things = ("shampoo", "soap", "comb", "brush", "towel")
    items = ["item_id,title,categories"]
    items += [
        f"item {n},Red {things[n % 5]} no. {n},{things[n % 5]}" for n in range(60)
    ]
    events = ["user_id,item_id"]
    for user in range(90):
        steps = rng.choice((1, 2, 5), 9).cumsum()
        events += [f"user {user},item {(user + step) % 60}" for step in steps]
    folder.mkdir()
    (folder / "items.csv").write_text("\n".join(items))
    (folder / "interactions.csv").write_text("\n".join(events))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As a checkout is, with what the documents take for given beside it."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("run.py", "Makefile", "requirements", "setup.cfg"):
        (folder / name).symlink_to(ROOT / name)
    # This environment, with make's mark that nothing is left to install.
    prefix, made = Path(sys.prefix), folder / ".venv"
    (made / "bin").mkdir(parents=True)
    for path in (prefix / "lib", prefix / "pyvenv.cfg", *prefix.glob("bin/[!.]*")):
        (made / path.relative_to(prefix)).symlink_to(path)
    (made / "bin" / ".demo").touch()
    _write_shop(folder / "my_shop")
    (folder / "new_items.csv").write_text("item_id,title\nnew 1,Blue soap\n")
    return folder


def _serve(command, servers, **options):
    """Ends the server before, starts one and waits until it is ready."""
    servers.close()
    server = subprocess.Popen(["bash", "-c", f"exec {command}"], **options)
    servers.callback(_end, server)
    for line in server.stdout:
        if "ready" in line:
            return
    raise AssertionError(f"{command}: {server.wait()}")


def _end(server):
    server.send_signal(signal.SIGTERM)
    server.stdout.read()
    assert server.wait(90) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TO_RUN)
def test_the_blocks_of_a_document_run(name, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shrunk = f"{TINY_RUN}\nserve.port = {port}\nexport.batch_sizes = (1, 4)\n"
    shrunk += "train_rqvae.accept_poor_codebooks = True\n"
    # Enough for plan_semantic_ids: of 8 each, the third level says too little.
    shrunk += "quantizers.ResidualKMeans.codebook_sizes = (16, 16, 16)\n"
    options = {
        "cwd": folder,
        "env": {
            **os.environ,
            "PATH": path,
            "JAX_PLATFORMS": "cpu",
            "TIGER_GIN": shrunk,
        },
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }
    given = [] if name == "README.md" else [("", "sh", GIVEN)]
    with contextlib.ExitStack() as servers:
        for mark, kind, body in [*given, *blocks(name)]:
            if mark:
                continue
            code = body.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            parts = [code]
            if kind == "sh":
                joined = code.replace("\\\n", " ").splitlines()
                parts = [line for line in joined if line.strip()]
            for part in parts:
                if kind == "sh" and re.search(r"--stage=\S*\bserve\b", part):
                    _serve(part, servers, **options)
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
                        assert b"<html" in page.read()
                    continue
                shell = [sys.executable] if kind == "python" else ["bash", "-eu"]
                done = subprocess.run([*shell, "-c", part], timeout=1500, **options)
                assert done.returncode == 0, f"{part}\n{done.stdout[-3000:]}"
