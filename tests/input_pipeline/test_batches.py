import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_workdir import CODEBOOK_SIZES, make_workdir

from tasks.tiger import register_tiger_mixture, register_tiger_task
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.semantic_ids.token_ids import TokenLayout

CONFIG = SeqioConfig("tiger_batches", batch_size=32)
EPOCH = 850  # examples
KEYS = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
)


@pytest.fixture(scope="module", autouse=True)
def shop(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("batches") / "work")
    register_tiger_task("tiger_batches", str(workdir))
    return seqio.TaskRegistry.get("tiger_batches").source.shop


def _take(stream, count):
    return [next(stream) for _ in range(count)]


def _equal(left, right) -> bool:
    return all(
        np.array_equal(one[key], other[key])
        for one, other in zip(left, right, strict=True)
        for key in KEYS
    )


def test_batches_have_the_converters_keys_and_shapes():
    stream = SeqioBatches(CONFIG, seed=0)
    assert (stream.num_examples, stream.max_length) == (EPOCH, 81)
    batch = next(stream)
    assert set(batch) == set(KEYS)
    assert batch["encoder_input_tokens"].shape == (32, 81)
    targets = batch["decoder_target_tokens"]
    assert np.array_equal(batch["decoder_input_tokens"][:, 1:], targets[:, :-1])
    assert (batch["decoder_input_tokens"][:, 0] == 0).all()
    assert (batch["decoder_loss_weights"] == 1).all()
    assert all(array.dtype == np.int32 for array in batch.values())


def test_a_seed_decides_the_stream():
    first = _take(SeqioBatches(CONFIG, seed=1), 40)  # into the second epoch
    assert _equal(first, _take(SeqioBatches(CONFIG, seed=1), 40))
    assert not _equal(first, _take(SeqioBatches(CONFIG, seed=2), 40))


@pytest.mark.parametrize("consumed", [0, 1, 7, EPOCH // 32 + 2])
def test_a_restored_stream_goes_on_with_the_very_next_batch(tmp_path, consumed):
    tmp_path = tmp_path / "lr=[1]"  # no pattern to anyone
    tmp_path.mkdir()
    stream = SeqioBatches(CONFIG, seed=3)
    _take(stream, consumed)
    stream.save(tmp_path)
    following = _take(stream, 30)
    other = SeqioBatches(CONFIG, seed=3)
    _take(other, 2)  # a position that restoring must forget
    other.restore(tmp_path)
    assert _equal(following, _take(other, 30))


@pytest.mark.slow
def test_another_process_can_restore(tmp_path, shop):
    stream = SeqioBatches(CONFIG, seed=3)
    _take(stream, 30)
    stream.save(tmp_path)
    expected = [batch["encoder_input_tokens"].tolist() for batch in _take(stream, 2)]
    code = f"""
import json
from tasks.tiger import register_tiger_mixture, register_tiger_task
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
register_tiger_task("tiger_batches", {str(shop.workdir)!r})
stream = SeqioBatches(SeqioConfig("tiger_batches", batch_size=32), seed=3)
stream.restore({str(tmp_path)!r})
print(json.dumps([next(stream)["encoder_input_tokens"].tolist() for _ in range(2)]))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == expected


def test_a_mixture_is_a_stream_like_any_other(tmp_path, shop):
    register_tiger_task("tiger_twin", str(shop.workdir))
    register_tiger_mixture("tiger_twins", {"tiger_batches": 3, "tiger_twin": 1})
    config = SeqioConfig("tiger_twins", batch_size=32)
    stream = SeqioBatches(config, seed=1)
    first = _take(stream, 10)
    stream.save(tmp_path)
    other = SeqioBatches(config, seed=1)
    assert _equal(first, _take(other, 10))
    other.restore(tmp_path)
    assert _equal(_take(stream, 40), _take(other, 40))


def test_the_position_lies_where_t5x_puts_it(tmp_path):
    stream = SeqioBatches(CONFIG, seed=3, shard_index=0, num_shards=1)
    stream.save(tmp_path)
    assert (tmp_path / "train_ds-000-of-001.index").exists()
    dataset = seqio.get_dataset(  # as t5x's get_dataset calls it
        mixture_or_task_name=seqio.get_mixture_or_task("tiger_batches"),
        task_feature_lengths={"inputs": 81, "targets": 4},
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(
            pack=False, use_custom_packing_ops=False
        ),
        shard_info=seqio.ShardInfo(index=0, num_shards=1),
        use_cached=False,
        seed=3,
        trim_output_features=True,
        batch_size=32,
    )
    _take(stream, 5)
    stream.save(tmp_path)
    iterator = iter(dataset)
    checkpoint = tf.train.Checkpoint(ds=iterator)
    checkpoint.read(str(tmp_path / "train_ds-000-of-001")).assert_consumed()
    theirs = [
        {key: array.numpy() for key, array in next(iterator).items()} for _ in range(30)
    ]
    assert _equal(_take(stream, 30), theirs)
    checkpoint.write(str(tmp_path / "train_ds-000-of-001"))
    (tmp_path / "seqio_stream.json").unlink()  # which t5x does not write
    ours = SeqioBatches(CONFIG, seed=3)
    ours.restore(tmp_path)
    assert _equal(_take(ours, 3), _take(stream, 3))


def test_hosts_share_an_epoch():
    def examples(index, count):
        stream = SeqioBatches(CONFIG, seed=5, shard_index=index, num_shards=count)
        rows = [
            tuple(row)
            for batch in _take(stream, EPOCH // 32)
            for row in batch["encoder_input_tokens"].tolist()
        ]
        return rows

    shares = [examples(index, 2) for index in range(2)]
    assert len(shares[0]) == len(shares[1]) == EPOCH // 32 * 16
    # Each host's examples are those of its own half of the permutation.
    assert len(set(shares[0] + shares[1])) > 0.95 * len(shares[0] + shares[1])


@pytest.mark.parametrize(
    ("change", "seed", "name"),
    [
        ({"batch_size": 16}, 3, "batch_size"),
        ({}, 4, "seed"),
        ({"max_items": 9}, 3, "max"),
    ],
)
def test_a_position_of_another_stream_is_refused(tmp_path, change, seed, name):
    SeqioBatches(CONFIG, seed=3).save(tmp_path)
    config = SeqioConfig(**{"task": "tiger_batches", "batch_size": 32, **change})
    with pytest.raises(InputError, match=f"whose {name}"):
        SeqioBatches(config, seed=seed).restore(tmp_path)


def test_a_missing_position_starts_from_the_first_and_says_so(tmp_path, capsys):
    first = _take(SeqioBatches(CONFIG, seed=3), 2)
    stream = SeqioBatches(CONFIG, seed=3)
    _take(stream, 4)
    stream.restore(tmp_path)
    assert _equal(first, _take(stream, 2))
    assert "start from the first" in capsys.readouterr().out
    SeqioBatches(CONFIG, seed=3, shard_index=0, num_shards=2).save(tmp_path)
    stream.restore(tmp_path)
    assert "but train_ds-000-of-002" in capsys.readouterr().out


def test_an_unknown_task_and_an_uneven_batch_are_one_line():
    with pytest.raises(InputError, match="no seqio task is called 'tiger_nothing'"):
        SeqioBatches(SeqioConfig("tiger_nothing"), seed=0)
    with pytest.raises(InputError, match="can't be shared by 3 processes"):
        SeqioBatches(CONFIG, seed=0, shard_index=0, num_shards=3)


def test_buckets_split_a_draw_and_lose_nothing():
    plain, stream = SeqioBatches(CONFIG, seed=6), SeqioBatches(CONFIG, seed=6)
    config = BucketConfig(microbatch_size=8, lengths=(21, 41))
    bucketed = BucketedBatches(stream, config, max_length=stream.max_length)
    for _ in range(5):
        batch, update = next(plain), next(bucketed)
        found = [
            tuple(map(int, np.trim_zeros(row, "b")))
            for piece, bucket in enumerate(update.buckets)
            for row in update.arrays["encoder_input_tokens"][piece][
                :, : bucketed.buckets[bucket]
            ]
        ]
        rows = batch["encoder_input_tokens"]
        expected = [tuple(map(int, np.trim_zeros(row, "b"))) for row in rows]
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("num_user_tokens", [0, 2000])
def test_stream_and_resident_input_have_the_same_examples(shop, num_user_tokens):
    register_tiger_task("tiger_same", str(shop.workdir), num_user_tokens)
    layout = TokenLayout(CODEBOOK_SIZES, num_user_tokens)
    resident = ResidentInput(
        shop.train,
        shop.table.codes,
        layout,
        ResidentConfig(batch_size=EPOCH // 10, microbatch_size=EPOCH // 10),
        user_hashes=shop.user_hashes,
    )
    theirs = []
    for _ in range(10):
        update = next(resident)
        arrays = jax.device_put({k: array[0] for k, array in update.arrays.items()})
        batch = resident.make_batch(
            jax.device_put(resident.constants), arrays, int(update.buckets[0])
        )
        theirs += _rows(batch)
    stream = SeqioBatches(SeqioConfig("tiger_same", EPOCH // 10), seed=0)
    ours = [row for batch in _take(stream, 10) for row in _rows(batch)]
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == EPOCH


def _rows(batch) -> list[tuple]:
    """Each example as one tuple, without the encoder's padding."""
    arrays = [np.asarray(batch[key]) for key in KEYS]
    return [
        (tuple(np.trim_zeros(inputs, "b").tolist()), *(tuple(x.tolist()) for x in rest))
        for inputs, *rest in zip(*arrays, strict=True)
    ]
