import json
import struct

from tiger_jax.training import metric_writers
from tiger_jax.training.metric_writers import MetricWriter


def read_records(path):
    """The records of an event file, their checksums verified."""
    data, records = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == metric_writers._masked_crc(data[:8])
        event = data[12 : 12 + length]
        assert data[12 + length : 16 + length] == metric_writers._masked_crc(event)
        records.append(event)
        data = data[16 + length :]
    return records


def test_the_checksum_is_crc_32c():
    # CRC-32C of "123456789" is 0xE3069283 (RFC 3720's check value), masked as
    # TFRecord does: rotated right by 15 bits, plus a constant.
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert metric_writers._masked_crc(b"123456789") == struct.pack("<I", masked)


def test_a_row_is_written_to_both_files(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(300, {"train/loss": 1.5, "train/rate": float("nan")})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 300, "train/loss": 1.5, "train/rate": None}
    (path,) = (tmp_path / "tensorboard").iterdir()
    version, scalars = read_records(path)
    assert b"brain.Event:2" in version
    # Step 300 as a varint is 0xAC 0x02; the tag and the float stand as they are.
    assert b"\x10\xac\x02" in scalars
    assert b"\x0a\x0atrain/loss\x15" + struct.pack("<f", 1.5) in scalars


def test_a_resumed_run_drops_the_rows_that_it_will_write_again(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": float(step)})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "train/lo')  # cut short by a kill
    MetricWriter(tmp_path, resume_from_step=20).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    last = sorted((tmp_path / "tensorboard").iterdir())[-1]
    # A session's start at step 21 (field 7: status 1) makes readers forget the rest.
    assert b"\x10\x15\x3a\x02\x08\x01" in b"".join(read_records(last))


def test_a_run_from_the_start_begins_a_new_file(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(10, {"train/loss": 1.0})
    writer.close()
    MetricWriter(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
