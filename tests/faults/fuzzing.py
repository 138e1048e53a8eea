"""Hostile input for every reader: property-based, and coverage-guided."""

import contextlib
import functools
import importlib.util
import io
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from faults.campaign import REPOSITORY, Fault, Outcome
from faults.readers import READERS, Reader

ASKED = 10_000
INPUTS_PER_TRY = 50
# Drawing an input costs Hypothesis many times what a reader takes to read it.
_RELATIVES = 24
# Opening a file anew on a disk costs ten times what most readers take.
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
# Pieces that break readers, whatever the format.
TOKENS = (
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xe9",
    b"\xed\xa0\x80",
    "\u202e\u0301\U0001f9db".encode(),
    "é,\n".encode("utf-16"),
    b"\\ud800",
    b"\\u0000",
    b"\r",
    b"\n",
    b"\r\n",
    b"\x0b\x0c\x1c\x85",
    b"\xe2\x80\xa8",
    b'"',
    b'""',
    b"'",
    b",",
    b"\t",
    b"|",
    b">",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"0x10",
    b"1_000",
    b"\xd9\xa3",  # a digit three, to Python's int()
    b"9" * 400,
    b"9" * 5000,
    b"0." + b"3" * 3000,
    b"2014-07-01 12:30:00",
    b"9999-99-99",
    b"2014-07-01T00:00:00+25:00",
    b"../../../../etc/passwd",
    b"C:\\windows\\..",
    b"/dev/zero",
    b"=HYPERLINK(1)",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"(" * 300,
    b"a" * 70_000,
    b"item_id",
    b"timestamp",
)


def hostile(reader: Reader) -> st.SearchStrategy[bytes]:
    """Right contents with a few things done to them, and any bytes at all."""
    pieces = st.one_of(
        st.sampled_from(TOKENS + reader.tokens), st.binary(max_size=6), _TEXT
    )
    place = st.integers(0, 2**16)
    change = st.tuples(st.sampled_from("ioocdtsb"), place, place, pieces)
    # Mostly few changes: what is right but for one thing gets furthest.
    changes = st.one_of(*(st.lists(change, max_size=size) for size in (1, 1, 2, 6)))
    changed = st.builds(_changed, st.sampled_from(reader.seeds), changes)
    return st.one_of(changed, changed, changed, st.binary(max_size=200))


_TEXT = st.text(max_size=6).map(lambda t: t.encode("utf-8", "surrogatepass"))


def _relative(content: bytes, reader: Reader, rng: random.Random) -> bytes:
    """The same, or what is right, with one or two things more done to it."""
    if rng.random() < 0.7:  # most of what has been changed already is refused
        content = rng.choice(reader.seeds)
    pieces = rng.choice([_HARMLESS, _HARMLESS, (*TOKENS, *reader.tokens)])
    # Long pieces rarely: after a few the content is nothing else.
    weights = [1 / (1 + len(piece) // 100) for piece in pieces]
    kinds = "ioocdtsb" if pieces is not _HARMLESS else "iioocdsb"
    changes = [
        (rng.choice(kinds), rng.getrandbits(16), rng.getrandbits(16), piece)
        for piece in rng.choices(pieces, weights, k=rng.choice([1, 1, 2]))
    ]
    return _changed(content, changes)


_HARMLESS = (b"7", b"0", b"x", b"u", b" ", b"a", b"b", b"c", "é".encode(), b".5", b"A")


def _changed(seed: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    data = bytearray(seed)
    for kind, first, second, piece in changes:
        a, b = sorted((first % (len(data) + 1), second % (len(data) + 1)))
        match kind:
            case "i":  # insert
                data[a:a] = piece
            case "o":  # overwrite
                data[a : a + len(piece)] = piece
            case "c":  # copy a part to another place
                data[b:b] = data[a:b][:5000]
            case "d":  # delete a part, mostly a short one
                data[a : min(b, a + 1 + second % 9)] = b""
            case "t":  # cut off
                del data[b:]
            case "s":  # exchange two lines
                lines = bytes(data).splitlines(keepends=True) or [b""]
                one, other = first % len(lines), second % len(lines)
                lines[one], lines[other] = lines[other], lines[one]
                data = bytearray(b"".join(lines))
            case "b" if data:  # flip a bit
                data[a % len(data)] ^= 1 << second % 8
    return bytes(data)


def _fuzz(reader: Reader, number: int, folder: Path) -> Outcome:
    del folder
    with tempfile.TemporaryDirectory(dir=_MEMORY) as made:
        return _fuzz_in(Path(made), reader, number)


def _fuzz_in(folder: Path, reader: Reader, number: int) -> Outcome:
    reader.prepare(folder)
    problems: list[str] = []

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=INPUTS_PER_TRY // (1 + _RELATIVES),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(hostile(reader), st.randoms(use_true_random=True))
    def read(content: bytes, rng: random.Random) -> None:
        relatives = (_relative(content, reader, rng) for _ in range(_RELATIVES))
        for one in (content, *relatives):
            if problem := reader.problem(folder, one):
                problems.append(problem)

    with contextlib.redirect_stdout(io.StringIO()):
        read()
    note = f"{len(problems)} of tries from {number}: {problems[0]}" if problems else ""
    return Outcome(wrong=len(problems), note=note, count=INPUTS_PER_TRY)


# --- Coverage-guided ----------------------------------------------------------------

_RUNS = 5000


def _fuzz_guided(reader: Reader, number: int, folder: Path) -> Outcome:
    """A process of Atheris's; what it finds new is kept for the next one."""
    corpus = folder / "corpus"
    reader.prepare(folder)
    if not corpus.exists():
        corpus.mkdir()
        for index, seed in enumerate(reader.seeds):
            (corpus / f"seed_{index}").write_bytes(seed)
        words = (f'"{_escaped(t)}"' for t in TOKENS + reader.tokens if len(t) < 60)
        (folder / "words").write_text("\n".join(words) + "\n")
    place, runs = READERS.index(reader), min(_RUNS, max(ASKED - number, 1))
    command = [sys.executable, "-m", "faults.guided", str(place), str(folder)]
    options = [f"-runs={runs}", f"-seed={number + 1}", "-max_len=2000", "-timeout=60"]
    options += [f"-dict={folder / 'words'}", "-rss_limit_mb=6000", str(corpus)]
    paths = [str(REPOSITORY), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [*command, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *sys.path[1:]])},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        note = " ".join(done.stderr.split())[-600:]
        return Outcome(wrong=1, note=f"try {number}: {note}", count=runs)
    return Outcome(count=runs)


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def why_not_guided() -> str:
    """Why there is no coverage-guided fuzzing here, or ""."""
    found = importlib.util.find_spec("atheris")
    return "" if found else "atheris is not installed (pip install atheris)"


FAULTS = [
    Fault(
        f"input: {reader.name}",
        ASKED,
        functools.partial(_fuzz, reader),
        quick=0 if reader.name.startswith("gin") else INPUTS_PER_TRY,
        tries_per_row=1000,
        gigabytes=8,
    )
    for reader in READERS
]
GUIDED_FAULTS = [
    Fault(
        f"input, coverage-guided: {reader.name}",
        ASKED,
        functools.partial(_fuzz_guided, reader),
        seconds=1200,
        unavailable=why_not_guided,
    )
    for reader in READERS
]
