"""All that decides how a recommender is trained."""

import dataclasses
from pathlib import Path
from typing import Any

from tiger_jax.errors import InputError, flag
from tiger_jax.input_pipeline.microbatches import BucketConfig
from tiger_jax.input_pipeline.packed_histories import PackedConfig
from tiger_jax.input_pipeline.resident import ResidentConfig
from tiger_jax.models.generator import GeneratorConfig
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.recommending.validation import ValidationConfig
from tiger_jax.training.loop import LoopConfig, decides
from tiger_jax.training.optimizers import OptimizerConfig

ALL_PREFIXES, LAST_ALONE = "prefixes", "last"  # which pairs are trained on


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what is trained; see the stage `train_recommender`.

    Attributes:
        average_decay: Of the running average of the parameters, which is what is
            evaluated and kept; 0 keeps the parameters themselves.
        epochs: Passes over the data, which make `loop.total_steps`, and a sixth of
            it the periods of evaluations and checkpoints that `loop` leaves at their
            defaults; None takes the loop's own.
        min_steps: Updates of a run by epochs on little data.
        input: The input's configs; the first has its batch size and `max_items`.
    """

    seed: int = 0
    model: GeneratorConfig = TigerConfig()
    num_user_tokens: int = 2000
    codeword_embeddings: bool = False
    starts_from: Path | None = None
    training_pairs: str = ALL_PREFIXES
    average_decay: float = 0.0
    epochs: float | None = None
    min_steps: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    validation: ValidationConfig = ValidationConfig()
    input: tuple[Any, ...] = (ResidentConfig(),)

    def __post_init__(self) -> None:
        if not 0 <= self.average_decay < 1:
            raise InputError(
                f"train_recommender.average_decay is {self.average_decay}: choose 0 "
                "for no average, or a number below 1 such as 0.998"
            )
        is_resident = isinstance(self.input[0], ResidentConfig | PackedConfig)
        if self.training_pairs not in (ALL_PREFIXES, LAST_ALONE):
            raise InputError(
                f"train_recommender.training_pairs {self.training_pairs!r}: choose "
                f"{ALL_PREFIXES!r} or {LAST_ALONE!r}"
            )
        if self.training_pairs != ALL_PREFIXES and not is_resident:
            raise InputError(
                "train_recommender.training_pairs is for the resident input: a seqio "
                "task makes its pairs itself"
            )

    @property
    def only_last(self) -> bool:
        """Whether each history's longest prefix alone is trained on."""
        return self.training_pairs == LAST_ALONE

    @property
    def max_items(self) -> int:
        """Items of a history that the encoder sees."""
        return self.input[0].max_items

    def for_examples(self, num_examples: int) -> "Recipe":
        """With the updates that `epochs` asks for, on so many examples.

        Raises:
            InputError: `loop.total_steps` is set as well.
        """
        if self.epochs is None:
            return self
        if self.loop.total_steps != LoopConfig.total_steps:
            raise InputError(
                f"train_recommender.epochs is {self.epochs} and loop.LoopConfig."
                f"total_steps is {self.loop.total_steps}: both say how long to train; "
                f"leave out the latter, or add {flag('train_recommender.epochs', None)}"
            )
        unit = self.loop.steps_per_dispatch
        wanted = self.epochs * num_examples / self.input[0].batch_size
        total = max(round(wanted), self.min_steps, 6 * unit)
        period = -(-total // (6 * unit)) * unit  # the sixth evaluation is the last
        periods = {
            name: period
            for name in ("evaluate_every", "checkpoint_every")
            if getattr(self.loop, name) == getattr(LoopConfig, name)
        }
        loop = dataclasses.replace(self.loop, total_steps=total, **periods)
        warmup = min(self.optimizer.warmup_steps, total // 5)
        optimizer = dataclasses.replace(self.optimizer, warmup_steps=warmup)
        return dataclasses.replace(self, loop=loop, optimizer=optimizer)

    def decides(self) -> dict[str, Any]:
        """What a finished folder must agree with to be up to date.

        Where the start lies does not affect the result; its hash does.
        """
        settings = {**vars(self), "loop": decides(self.loop)}
        del settings["starts_from"]
        if self.training_pairs == ALL_PREFIXES:
            del settings["training_pairs"]  # as it was before there was a choice
        for name, default in (
            ("average_decay", 0.0),
            ("epochs", None),
            ("min_steps", 0),
        ):
            if settings[name] == default:  # as it was before there was a choice
                del settings[name]
        return settings


def choose_input(
    input: str,
    resident: ResidentConfig | PackedConfig | None,
    seqio: Any,
    buckets: BucketConfig | None,
) -> tuple[Any, ...]:
    """The configs of the input that was chosen."""
    if input == "resident":
        return (resident or ResidentConfig(),)
    if input == "seqio" and seqio is not None:
        return (seqio, buckets or BucketConfig())
    raise InputError(
        f"train_recommender.input {input!r}: choose "
        f"{flag('train_recommender.input', 'resident')}, or "
        "--gin_file=base/seqio_input.gin, which binds what 'seqio' needs"
    )
