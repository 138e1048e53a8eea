import json

from tiger_jax.training import metric_writers
from tiger_jax.training.metric_writers import MetricWriter


def read_events(folder):
    """The events of a TensorBoard folder, in the order in which they were written."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            body = data[12 : 12 + length]
            crc = int.from_bytes(data[12 + length : 16 + length], "little")
            assert crc == masked_crc32c(body)
            events.append(Event.FromString(body))
            data = data[16 + length :]
    return events


def test_a_row_is_written_to_both_files(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(300, {"train/loss": 1.5, "train/rate": float("nan")})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 300, "train/loss": 1.5, "train/rate": None}
    version, loss, rate = read_events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (loss.step, rate.step) == (300, 300)
    (value,) = loss.summary.value
    assert (value.tag, value.simple_value) == ("train/loss", 1.5)


def test_a_resumed_run_drops_the_rows_that_it_will_write_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"train/loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "train/lo')  # cut short by a kill
    MetricWriter(tmp_path, resume_from_step=20).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    events = read_events(tmp_path / "tensorboard")
    # A session's start at step 21 makes readers forget the rest.
    starts = [e.step for e in events if e.session_log.status == 1]
    assert starts == [21]


def test_a_run_from_the_start_begins_a_new_file(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(10, {"train/loss": 1.0})
    MetricWriter(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_without_tensorboardx_json_lines_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metric_writers.importlib.util, "find_spec", lambda name: None)
    with MetricWriter(tmp_path) as writer:
        writer.write(10, {"train/loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] == 1.0
    assert not (tmp_path / "tensorboard").exists()
    assert capsys.readouterr().out.count("tensorboardX is not installed") == 1
