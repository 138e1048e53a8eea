import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.errors import InputError
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.semantic_ids.token_ids import TokenLayout

NUM_ITEMS, MAX_ITEMS = 11, 3
WITH_USERS = TokenLayout((4, 4), num_user_tokens=5)
WITHOUT_USERS = TokenLayout((4, 4))
CODES = np.stack(np.divmod(np.arange(NUM_ITEMS), 4), axis=1).astype(np.int32)
LISTS = [[3, 1, 4, 1, 5], [9], [], [2, 6], [5, 3, 5, 8, 10, 7, 9]]
HASHES = np.array([17, 4, 8, 25, 11], np.uint32)


def make_input(lists=LISTS, layout=WITH_USERS, seed=0, **config):
    settings = {"batch_size": 4, "microbatch_size": 2, "max_items": MAX_ITEMS}
    return ResidentInput(
        Histories.from_lists(lists),
        CODES,
        layout,
        ResidentConfig(**{**settings, "bucket_items": (1, 2), **config}),
        user_hashes=np.resize(HASHES, len(lists)),
        seed=seed,
    )


def reference_examples(lists, layout) -> Counter:
    """All (encoder tokens, target tokens), written as the definition reads."""
    examples = Counter()
    for user, history in enumerate(lists):
        for j in range(1, len(history)):
            tokens = []
            if layout.num_user_tokens:
                first = 1 + sum(layout.codebook_sizes)
                token = int(np.resize(HASHES, len(lists))[user])
                tokens.append(first + token % layout.num_user_tokens)
            for item in history[max(0, j - MAX_ITEMS) : j]:
                tokens += [1 + int(CODES[item][0]), 5 + int(CODES[item][1])]
            target = history[j]
            targets = (1 + int(CODES[target][0]), 5 + int(CODES[target][1]))
            examples[tuple(tokens), targets] += 1
    return examples


def examples_of(input, update) -> list:
    """The examples that a compiled step would see, padding taken off."""
    make_batch = jax.jit(input.make_batch, static_argnums=2)
    found = []
    for number, bucket in enumerate(update.buckets):
        arrays = {k: jnp.asarray(v[number]) for k, v in update.arrays.items()}
        batch = jax.device_get(make_batch(input.constants, arrays, int(bucket)))
        inputs = batch["encoder_input_tokens"]
        has_user = "user_token" in update.arrays
        assert inputs.shape[1] == 2 * input.buckets[bucket] + has_user
        targets = batch["decoder_target_tokens"]
        np.testing.assert_array_equal(batch["decoder_input_tokens"][:, 0], 0)
        np.testing.assert_array_equal(
            batch["decoder_input_tokens"][:, 1:], targets[:, :-1]
        )
        assert (batch["decoder_loss_weights"] == 1).all()
        for row, target in zip(inputs, targets, strict=True):
            length = int((row != 0).sum())
            assert (row[length:] == 0).all()  # padding stands on the right alone
            found.append((tuple(row[:length].tolist()), tuple(target.tolist())))
    return found


@pytest.mark.parametrize("layout", [WITH_USERS, WITHOUT_USERS])
def test_an_epoch_holds_every_prefix_and_next_item_once(layout):
    input = make_input(layout=layout, batch_size=11, microbatch_size=1)
    assert input.num_examples == 11  # 4 + 0 + 0 + 1 + 6
    for _ in range(2):  # and so does the next one
        assert Counter(examples_of(input, next(input))) == reference_examples(
            LISTS, layout
        )


def test_the_longest_prefix_alone_is_one_example_a_history():
    input = ResidentInput(
        Histories.from_lists(LISTS),
        CODES,
        WITHOUT_USERS,
        ResidentConfig(batch_size=3, microbatch_size=3, max_items=MAX_ITEMS),
        only_last=True,
    )
    assert input.num_examples == 3
    longest = [[h[:-1], [h[-1]]] for h in LISTS if len(h) > 1]
    expected = Counter(
        tuple(
            tuple(
                int(token) for i in part for token in (1 + CODES[i][0], 5 + CODES[i][1])
            )
            for part in (history[-MAX_ITEMS:], target)
        )
        for history, target in longest
    )
    assert Counter(examples_of(input, next(input))) == expected


@given(
    lists=st.lists(
        st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9), min_size=1, max_size=6
    ).filter(lambda lists: any(len(h) > 1 for h in lists)),
    seed=st.integers(0, 3),
)
def test_the_sequence_runs_through_all_pairs_epoch_after_epoch(lists, seed):
    # Judged by the index arrays: (position of the target, items before it).
    input = make_input(lists, seed=seed)
    offsets = np.cumsum([0] + [len(h) for h in lists])
    expected = Counter(
        (int(offsets[u]) + j, min(j, MAX_ITEMS))
        for u, h in enumerate(lists)
        for j in range(1, len(h))
    )
    # As many updates as pairs are four whole epochs.
    drawn = Counter()
    for _ in range(input.num_examples):
        arrays = next(input).arrays
        drawn.update(zip(arrays["target"].flat, arrays["num_items"].flat, strict=True))
    assert drawn == Counter({pair: 4 for pair in expected})
    assert input.epochs == 4


def test_epochs_are_shuffled_by_seed():
    orders = [
        make_input(seed=s, batch_size=11, microbatch_size=11)._draw(22).tolist()
        for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:11] != orders[0][11:]


def test_a_microbatch_takes_the_smallest_bucket_that_holds_it():
    input = make_input()
    for _ in range(8):
        update = next(input)
        longest = update.arrays["num_items"].max(axis=1)
        smallest = [min(n for n in input.buckets if n >= most) for most in longest]
        assert [input.buckets[b] for b in update.buckets] == smallest
        assert update.num_examples == 4
        sizes = [len(tokens) + 2 for tokens, _ in examples_of(input, update)]
        assert update.num_tokens == sum(sizes)


@pytest.mark.parametrize("updates_before", [0, 1, 7])
def test_a_restored_input_goes_on_as_if_never_stopped(tmp_path, updates_before):
    first = make_input()
    for _ in range(updates_before):
        next(first)
    first.save(tmp_path)
    second = make_input()
    next(second)
    second.restore(tmp_path)
    for _ in range(5):
        mine, theirs = next(first), next(second)
        for name in mine.arrays:
            np.testing.assert_array_equal(mine.arrays[name], theirs.arrays[name])


def test_a_position_among_other_examples_is_refused(tmp_path):
    make_input().save(tmp_path)
    with pytest.raises(InputError, match="other training examples"):
        make_input([[1, 2, 3]]).restore(tmp_path)
    with pytest.raises(InputError, match="other training seed"):
        make_input(seed=5).restore(tmp_path)


def test_another_inputs_position_restarts_the_examples(tmp_path, capsys):
    """Another input's position restarts the examples and says so."""
    input = make_input()
    expected = next(input).arrays["target"]
    input.restore(tmp_path)
    np.testing.assert_array_equal(next(input).arrays["target"], expected)
    assert "start from the first of epoch 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lists": [[1], [], [2]]}, "no training history has two items"),
        ({"microbatch_size": 3}, "4 is not a multiple of microbatch_size 3"),
    ],
)
def test_what_cannot_train_is_an_input_error(change, message):
    with pytest.raises(InputError, match=message):
        make_input(**change)


class PaddedStream:
    """Whole batches as a seqio stream gives them, one row padded entirely."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        lengths = np.array([5, 2, 0, 7])
        inputs = (np.arange(8)[None, :] < lengths[:, None]) * (self.position + 1)
        self.position += 1
        weights = np.repeat((lengths > 0)[:, None], 2, axis=1).astype(np.int32)
        return {
            "encoder_input_tokens": inputs.astype(np.int32),
            "decoder_input_tokens": weights,
            "decoder_target_tokens": weights,
            "decoder_loss_weights": weights,
        }

    def save(self, path):
        (path / "stream.json").write_text(json.dumps(self.position))

    def restore(self, path):
        self.position = json.loads((path / "stream.json").read_text())


def test_a_stream_is_cut_into_buckets_without_losing_a_token(tmp_path):
    config = BucketConfig(microbatch_size=2, lengths=(3, 6, 8))
    input = BucketedBatches(PaddedStream(), config, max_length=8)
    update = next(input)
    assert update.buckets.tolist() == [0, 2]  # lengths 0, 2 | 5, 7
    assert (update.num_examples, update.num_tokens) == (3, 14 + 6)
    sizes = []
    for number, bucket in enumerate(update.buckets):
        arrays = {k: v[number] for k, v in update.arrays.items()}
        tokens = input.make_batch({}, arrays, int(bucket))["encoder_input_tokens"]
        assert tokens.shape == (2, input.buckets[bucket])
        sizes += (tokens != 0).sum(axis=1).tolist()
    assert sizes == [0, 2, 5, 7]
    input.save(tmp_path)
    next(input)
    input.restore(tmp_path)
    assert (next(input).arrays["encoder_input_tokens"].max()) == 2


def test_a_batch_in_one_piece_has_the_examples_of_its_microbatches():
    cut, whole = make_input(), make_input(microbatch_size=None, bucket_items=())
    for _ in range(4):
        update = next(whole)
        assert update.buckets.tolist() == [0]
        found = examples_of(whole, update)
        assert Counter(found) == Counter(examples_of(cut, next(cut)))
    with pytest.raises(InputError, match="not a multiple of microbatch_size 0"):
        make_input(microbatch_size=0)
