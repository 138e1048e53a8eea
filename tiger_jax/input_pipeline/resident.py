"""Training examples gathered on the device from one flat array of tokens.

For data that fits on a device (all of the paper's), an update needs to be told
only which examples it draws: a few integers each. The histories' tokens lie on the
device once, item after item and user after user, so a window of a history is a
slice of that array, read inside the jitted step:

    tokens    [total T]   Semantic ID tokens of every interaction
    example   (position of its target in `tokens`, number of items before it)

There is one example for every (prefix of a history, next item), or for the longest
prefix alone. Epoch e draws all of them once, in the order of a permutation that
depends on (seed, e) alone; epochs follow one another without a gap, so the position
is a single number.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt32

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.microbatches import check_sizes, cut_by_length
from tiger_jax.input_pipeline.pairs import Pairs, locate
from tiger_jax.progress import say
from tiger_jax.semantic_ids.encoder_inputs import lay_out_tokens
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.inputs import Update
from tiger_jax.workdir.hashing import hash_arrays

_POSITION = "position.json"


@config("resident")
class ResidentConfig:
    """How examples are drawn and grouped.

    Attributes:
        batch_size: Examples of an update, over all devices.
        microbatch_size: Examples computed at a time; divides `batch_size`. None
            computes a batch in one piece.
        max_items: Items of a history that the encoder sees, the most recent.
        bucket_items: Numbers of items to which microbatches are padded, ascending;
            `max_items` is always one of them.
    """

    batch_size: int = 256
    microbatch_size: int | None = 32
    max_items: int = 20
    bucket_items: tuple[int, ...] = (2, 3, 5, 7, 10, 14)


class ShuffledEpochs:
    """An endless stream of updates over examples that lie on the device.

    Epoch e is one permutation of all examples, drawn from (seed, e); the position is
    saved. A subclass gathers the examples in its `make_batch`.

    Attributes:
        constants: The arrays that live on the device.
        buckets: The lengths that microbatches are padded to, ascending.
        num_examples: Examples of an epoch.
        num_rows: Rows that they fill; fewer where several share one.
    """

    def __init__(
        self,
        config: Any,
        constants: dict[str, np.ndarray],
        examples: dict[str, Int32[np.ndarray, " P"]],
        *,
        lengths: str,
        max_length: int,
        made_of: dict[str, np.ndarray],
        seed: int,
    ) -> None:
        """Starts before the first example of epoch 0; InputError if there are none.

        Args:
            config: Has `batch_size`, `microbatch_size` and `bucket_items`.
            examples: Of each example, what `make_batch` is told.
            lengths: Which of these is its length.
            max_length: The longest bucket.
            made_of: Arrays that other examples are told from these by.
        """
        shorter = sorted({n for n in config.bucket_items if 0 < n < max_length})
        self.buckets = (*shorter, max_length)
        self.constants, self._examples, self._lengths = constants, examples, lengths
        self._config, self._seed = config, seed
        self._fingerprint = hash_arrays(made_of)
        self.num_examples = self.num_rows = len(examples[lengths])
        if not self.num_examples:
            raise InputError(
                "no training history has two items, so there is nothing to predict: "
                "bring more interactions, or prepare the data with "
                + flag("interactions.InteractionsConfig.k_core", 2)
            )
        self._drawn = 0  # examples since the first of epoch 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        config = self._config
        chosen = self._draw(config.batch_size)
        lengths = self._examples[self._lengths][chosen]
        rows = config.microbatch_size
        if rows is None:
            rows = config.batch_size
        order, buckets = cut_by_length(lengths, rows, self.buckets)
        taken = chosen[order]  # [M B]
        return Update(
            arrays={name: array[taken] for name, array in self._examples.items()},
            buckets=buckets,
            num_examples=len(chosen),
            num_tokens=self._count_tokens(lengths),
            is_global=True,
        )

    def _count_tokens(self, lengths: Int32[np.ndarray, " B"]) -> int:
        """Tokens in an update's examples, padding excluded."""
        return int(lengths.sum())

    @property
    def epochs(self) -> float:
        return self._drawn / self.num_examples

    def save(self, path: Any) -> None:
        position = {
            "input": "resident",
            "examples_drawn": self._drawn,
            "epoch": self._drawn // self.num_examples,
            "seed": self._seed,
            "examples": self._fingerprint,
        }
        (path / _POSITION).write_text(json.dumps(position))

    def restore(self, path: Any) -> None:
        """Continues from a saved position; InputError if it is of other examples.

        A checkpoint of another kind of input has none for this one: examples then
        start from the first, and a line says so.
        """
        if not (path / _POSITION).exists():
            self._drawn = 0
            say(
                f"{path} has no position of the resident input: the examples start "
                "from the first of epoch 0"
            )
            return
        position = json.loads((path / _POSITION).read_text())
        for name, mine in (("examples", self._fingerprint), ("seed", self._seed)):
            if position[name] != mine:
                raise InputError(
                    f"{path} continues a run with other training {name} "
                    f"({str(position[name])[:12]}, now {str(mine)[:12]}): put those "
                    "back, or start a run from its parameters only"
                )
        self._drawn = position["examples_drawn"]

    def _draw(self, count: int) -> Int[np.ndarray, " B"]:
        """The next examples of the endless sequence of permutations."""
        pieces = []
        while count:
            epoch, start = divmod(self._drawn, self.num_examples)
            if epoch != self._epoch:
                rng = np.random.default_rng((self._seed, epoch))
                self._epoch, self._order = epoch, rng.permutation(self.num_examples)
            piece = self._order[start : start + count]
            pieces.append(piece)
            self._drawn += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)


class ResidentInput(ShuffledEpochs):
    """Prefixes of histories and their next items, gathered inside the step."""

    def __init__(
        self,
        histories: Histories,
        codes: Int32[np.ndarray, "N T"],
        layout: TokenLayout,
        config: ResidentConfig,
        *,
        user_hashes: UInt32[np.ndarray, " U"] | None = None,
        seed: int = 0,
        only_last: bool = False,
    ) -> None:
        """Lays out the training histories; InputError if none has two items.

        Args:
            codes: Every item's Semantic ID.
            user_hashes: Needed when `layout` has user tokens.
            only_last: One example a history, its last item after all the others.
        """
        if config.microbatch_size is not None:
            check_sizes(
                "resident.ResidentConfig", config.batch_size, config.microbatch_size
            )
        pairs = (Pairs.of_last if only_last else Pairs.of_prefixes)(histories)
        row, start, target = locate(pairs, np.arange(pairs.num_pairs))  # [P]
        tokens = np.asarray(layout.tokens_of(codes), np.int32)  # [N T]
        constants = {"tokens": tokens[histories.items]}  # [total T]
        examples = {
            "target": target.astype(np.int32),
            "num_items": np.minimum(target - start, config.max_items).astype(np.int32),
        }
        user_token = np.zeros(len(row), np.int32)
        if layout.num_user_tokens:
            if user_hashes is None:
                raise ValueError("a layout with user tokens needs user_hashes")
            user_token = layout.user_tokens(user_hashes)[row]
            examples["user_token"] = user_token
        self._layout = layout
        super().__init__(
            config,
            constants,
            examples,
            lengths="num_items",
            max_length=config.max_items,
            made_of={**constants, "target": examples["target"], "user": user_token},
            seed=seed,
        )

    def _count_tokens(self, lengths: Int32[np.ndarray, " B"]) -> int:
        num_codes = self._layout.semantic_id_length
        per_example = num_codes + bool(self._layout.num_user_tokens)
        return int(lengths.sum()) * num_codes + len(lengths) * per_example

    def make_batch(
        self, constants: dict[str, Array], arrays: dict[str, Array], bucket: int
    ) -> dict[str, Array]:
        """Gathers a microbatch, padded to its bucket; runs inside the jitted step.

        Returns:
            The keys of seqio's encoder–decoder converter; S = items of the bucket
            times T, and one more with a user token.
        """
        tokens = constants["tokens"]
        target, num_items = arrays["target"], arrays["num_items"]  # [B]
        column = jnp.arange(self.buckets[bucket])[None, :]  # [1 I]
        position = target[:, None] - num_items[:, None] + column  # [B I]
        is_item = column < num_items[:, None]  # [B I]
        # Past the end of a history lies the next one's start: read, then masked.
        window = tokens.at[position].get(mode="clip")  # [B I T]
        inputs = lay_out_tokens(window, is_item, arrays.get("user_token"), xp=jnp)
        next_item = tokens[target]  # [B T]
        return {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": jnp.pad(next_item[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": next_item,
            "decoder_loss_weights": jnp.ones(next_item.shape, jnp.int32),
        }
