"""How long to train is said once, and periods that are set are kept."""

import pytest

from tiger_jax.errors import InputError
from tiger_jax.recommending.recipe import Recipe
from tiger_jax.training.loop import LoopConfig


def test_passes_become_updates_with_a_sixth_of_them_between_evaluations():
    loop = Recipe(epochs=30.0).for_examples(2560).loop
    assert (loop.total_steps, loop.evaluate_every, loop.checkpoint_every) == (
        300,
        50,
        50,
    )
    loop = Recipe(epochs=1.0).for_examples(2560 * 31).loop  # 310 updates
    assert -(-loop.total_steps // loop.evaluate_every) == 6
    assert Recipe(epochs=1.0, min_steps=90).for_examples(2560).loop.total_steps == 90


def test_a_period_that_is_set_is_kept():
    recipe = Recipe(epochs=30.0, loop=LoopConfig(evaluate_every=7))
    loop = recipe.for_examples(2560).loop
    assert (loop.evaluate_every, loop.checkpoint_every) == (7, 50)


def test_passes_and_updates_that_both_say_how_long_are_refused():
    with pytest.raises(InputError, match=r"add --gin\.train_recommender\.epochs=None"):
        Recipe(epochs=30.0, loop=LoopConfig(total_steps=40)).for_examples(2560)
