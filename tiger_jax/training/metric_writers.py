"""Training curves as JSON lines and as TensorBoard event files.

TensorBoard's format is small enough to write here, which spares the core a
dependency on TensorFlow or torch: a file of records, each a length, a checksum, a
protocol buffer and its checksum.
"""

import functools
import json
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import jax

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes scalars by step; in a multi-host run only process 0 does."""

    def __init__(self, folder: Path, *, resume_from_step: int | None = None) -> None:
        """Opens ``metrics.jsonl`` and ``tensorboard/`` in `folder`.

        Args:
            resume_from_step: Rows after this step, written by a run that was killed
                before it could save, are dropped: they will be written again.
        """
        self._is_open = jax.process_index() == 0
        if not self._is_open:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        _drop_rows_after(path, -1 if resume_from_step is None else resume_from_step)
        self._lines: IO[str] = open(path, "a", encoding="utf-8")
        self._events = _EventFile(folder / "tensorboard", resume_from_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row; what is not finite becomes null in JSON."""
        if not self._is_open:
            return
        row = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, **row}) + "\n")
        self._lines.flush()
        self._events.write_scalars(step, values)

    def close(self) -> None:
        """Closes both files."""
        if self._is_open:
            self._is_open = False
            self._lines.close()
            self._events.close()


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the line that the kill cut short, or one that was damaged
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(path)


class _EventFile:
    """One TensorBoard event file.

    Fields, as numbered in TensorBoard's event.proto and summary.proto: Event 1
    wall_time, 2 step, 3 file_version, 5 summary, 7 session_log; Summary 1 value;
    Value 1 tag, 2 simple_value; SessionLog 1 status (1 = start).
    """

    def __init__(self, folder: Path, resume_from_step: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / f"events.out.tfevents.{now}", "ab")
        self._write_event(0, _bytes_field(3, b"brain.Event:2"))
        if resume_from_step is not None:
            # Makes TensorBoard forget what an earlier file says of later steps.
            self._write_event(resume_from_step + 1, _bytes_field(7, _int_field(1, 1)))

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        summary = b"".join(
            _bytes_field(1, _bytes_field(1, tag.encode()) + _float_field(2, value))
            for tag, value in values.items()
        )
        self._write_event(step, _bytes_field(5, summary))

    def close(self) -> None:
        self._file.close()

    def _write_event(self, step: int, content: bytes) -> None:
        wall_time = b"\x09" + struct.pack("<d", time.time())
        event = wall_time + _int_field(2, step) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _float_field(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, rotated and offset as TFRecord files want it."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked)
