"""Embedding in chunks: once per text, and the same bytes after any interruption."""

import dataclasses
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tiger_jax.embedding.embed import embed_texts
from tiger_jax.errors import InputError


@dataclasses.dataclass
class FakeEncoder:
    """Vectors from the characters; counts what it is asked."""

    batch_size: int = 3
    texts_per_chunk: int | None = 5
    stop_after: int | None = None
    bad_text: str | None = None
    asked: list = dataclasses.field(default_factory=list)
    prepared: int = 0

    def describe(self):
        return "a fake"

    def hashes(self):
        return {}

    def prepare(self, texts, *, seed):
        self.prepared += 1

        def encode(batch):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked += batch
            vectors = np.array([[len(t), sum(map(ord, t)), seed] for t in batch])
            vectors = vectors.astype(np.float32)
            vectors[[t == self.bad_text for t in batch]] = np.nan
            return vectors

        return encode


def texts_of(n):
    return ["x" * (i % 7) + str(i) for i in range(n)]


def test_every_text_gets_its_own_vector_whatever_the_batches(tmp_path):
    texts = texts_of(23)
    vectors = embed_texts(texts, FakeEncoder(), tmp_path, seed=4)
    expected = [[len(t), sum(map(ord, t)), 4] for t in texts]
    np.testing.assert_array_equal(vectors, expected)


def test_identical_texts_are_embedded_once(tmp_path):
    encoder = FakeEncoder()
    texts = ["a", "b", "a", "c", "b", "a"] * 10
    vectors = embed_texts(texts, encoder, tmp_path)
    assert sorted(encoder.asked) == ["a", "b", "c"]
    assert vectors.shape == (60, 3)
    assert (vectors[0::6] == vectors[2::6]).all()


def test_an_interrupted_run_loses_at_most_a_chunk(tmp_path):
    texts = texts_of(23)
    first = FakeEncoder(stop_after=16)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts, first, tmp_path / "a")
    second = FakeEncoder()
    resumed = embed_texts(texts, second, tmp_path / "a")
    assert len(second.asked) == 23 - 15  # three whole chunks of five were kept
    whole = embed_texts(texts, FakeEncoder(), tmp_path / "b")
    assert resumed.tobytes() == whole.tobytes()


def test_a_damaged_chunk_is_embedded_again(tmp_path, capsys):
    texts = texts_of(12)
    whole = embed_texts(texts, FakeEncoder(), tmp_path)
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert embed_texts(texts, FakeEncoder(), tmp_path).tobytes() == whole.tobytes()
        assert f"{path} is damaged" in capsys.readouterr().out


def test_a_finished_run_asks_for_no_encoder(tmp_path):
    texts = texts_of(12)
    first = embed_texts(texts, FakeEncoder(), tmp_path)
    encoder = FakeEncoder()
    assert embed_texts(texts, encoder, tmp_path).tobytes() == first.tobytes()
    assert encoder.prepared == 0


def test_all_texts_are_one_chunk_where_the_encoder_says_so(tmp_path):
    embed_texts(texts_of(23), FakeEncoder(texts_per_chunk=None), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_starts_where_the_chunks_end(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts_of(23), FakeEncoder(stop_after=16), tmp_path)
    embed_texts(texts_of(23), FakeEncoder(), tmp_path)
    assert "Embedding texts: 23/23 texts" in capsys.readouterr().out


def test_what_is_no_vector_is_refused(tmp_path):
    with pytest.raises(InputError, match="NaN or infinity for the text 'xx2'"):
        embed_texts(texts_of(9), FakeEncoder(bad_text="xx2"), tmp_path)
    with pytest.raises(InputError, match="no items"):
        embed_texts([], FakeEncoder(), tmp_path)

    class Flat(FakeEncoder):
        def prepare(self, texts, *, seed):
            return lambda batch: np.zeros(len(batch), np.float32)

    with pytest.raises(InputError, match=r"shape \(3,\) for 3 texts"):
        embed_texts(texts_of(9), Flat(), tmp_path)


def test_killed_between_chunks_it_goes_on_to_the_same_bytes(tmp_path):
    """A process that kills itself by signal 9, again and again until it is done."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from tiger_jax.workdir.arrays import save_whole
        from tiger_jax.embedding.embed import embed_texts

        class Encoder:
            batch_size, texts_per_chunk, calls = 4, 8, 0

            def prepare(self, texts, *, seed):
                def encode(batch):
                    self.calls += 1
                    if self.calls > int(sys.argv[2]):
                        os.kill(os.getpid(), signal.SIGKILL)
                    return np.array(
                        [[len(t), sum(map(ord, t))] for t in batch], np.float32
                    )
                return encode

        folder = Path(sys.argv[1])
        texts = ["t" * (i % 9) + str(i) for i in range(50)]
        vectors = embed_texts(texts, Encoder(), folder / "chunks")
        save_whole(folder / "embeddings.npy", vectors)
        """
    )

    def run(folder, calls_to_live):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", script, str(folder), str(calls_to_live)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    codes = [run(tmp_path / "killed", 3) for _ in range(5)]
    # Six chunks of 2 calls and one of 1: each start but the last makes one chunk,
    # and is killed in the middle of the next.
    assert codes == [-signal.SIGKILL] * 5
    assert run(tmp_path / "killed", 3) == 0
    assert run(tmp_path / "whole", 1000) == 0
    whole, killed = (
        (tmp_path / name / "embeddings.npy").read_bytes()
        for name in ("whole", "killed")
    )
    assert whole == killed
