"""Embeds many texts: each distinct text once, in chunks that outlive a kill."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tiger_jax.embedding.encoders import EncodeFn, Encoder
from tiger_jax.errors import InputError
from tiger_jax.progress import Progress
from tiger_jax.workdir.chunks import load_chunk, save_chunk


def embed_texts(
    texts: Sequence[str], encoder: Encoder, chunks_folder: Path, *, seed: int = 0
) -> Float32[np.ndarray, "N E"]:
    """Embeds texts, going on where an earlier call with the same arguments stopped.

    Distinct texts are embedded in order of first appearance, chunk by chunk, and
    each finished chunk is a file. A chunk's bytes depend on its texts alone, so an
    interrupted run ends with the same array as one that never stopped.

    Args:
        encoder: Not even loaded if all chunks are there.
        chunks_folder: Where chunks are kept; the caller deletes it in the end, and
            must not offer chunks that other texts or another encoder left there.

    Raises:
        InputError: There are no texts, or the encoder returns something that isn't a
            finite vector for each.
    """
    if not texts:
        raise InputError("there are no items to embed")
    distinct = list(dict.fromkeys(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    size = encoder.texts_per_chunk or len(distinct)
    starts = range(0, len(distinct), size)
    chunks_folder.mkdir(parents=True, exist_ok=True)
    parts = {start: load_chunk(chunks_folder, f"{start:010}") for start in starts}
    missing = [start for start, part in parts.items() if part is None]
    done = len(distinct) - sum(len(distinct[s : s + size]) for s in missing)
    if missing:
        encode = encoder.prepare(distinct, seed=seed)
        with Progress(len(distinct), "Embedding texts", unit="text", start=done) as bar:
            for start in missing:
                chunk = distinct[start : start + size]
                vectors = embed_chunk(chunk, encode, encoder.batch_size, bar.advance)
                parts[start] = vectors
                save_chunk(chunks_folder, f"{start:010}", vectors)
    rows = [row_of[text] for text in texts]
    return np.concatenate([part for part in parts.values() if part is not None])[rows]


def embed_chunk(
    chunk: Sequence[str],
    encode: EncodeFn,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Float32[np.ndarray, "n E"]:
    """Embeds one text or more, in batches of like length: less padding.

    Args:
        advance: Told how many more are done.

    Raises:
        InputError: The encoder returns something that isn't a finite vector for each.
    """
    order = np.argsort([len(text) for text in chunk], kind="stable")
    batches: list[np.ndarray] = []
    for start in range(0, len(chunk), batch_size):
        texts = [chunk[row] for row in order[start : start + batch_size]]
        batches.append(encode(texts))
        _check(batches[-1], texts, batches[0].shape[1:])
        advance(len(texts))
    vectors = np.concatenate(batches)
    whole = np.empty(vectors.shape, np.float32)
    whole[order] = vectors
    return whole


def _check(batch: np.ndarray, texts: list[str], dims: tuple[int, ...]) -> None:
    if len(dims) != 1 or batch.shape != (len(texts), *dims):
        raise InputError(
            f"the encoder gave an array of shape {batch.shape} for {len(texts)} texts: "
            "it must give one vector per text, always of the same size"
        )
    is_bad = ~np.isfinite(batch).all(axis=1)
    if is_bad.any():
        raise InputError(
            "the encoder gave NaN or infinity for the text "
            f"{texts[int(is_bad.argmax())][:80]!r}: use another model or device"
        )
