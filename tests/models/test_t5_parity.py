"""The model against an independent T5: same weights, same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from tiger_jax.models.generator import init_params
from tiger_jax.models.layers import relative_position_bucket
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.t5x_bridge.t5_weights import t5_config, t5_names, to_t5_weights

LAYOUT = TokenLayout((16, 16, 16, 16), num_user_tokens=30)
CONFIG = TigerConfig(
    num_encoder_layers=2,
    num_decoder_layers=2,
    d_model=32,
    num_heads=3,
    head_dim=16,
    mlp_dim=64,
    output="vocabulary",
)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    history = rng.integers(1, LAYOUT.vocab_size, (5, 41))
    for row, length in enumerate((41, 37, 21, 5, 1)):
        history[row, length:] = 0
    target = rng.integers(1, LAYOUT.first_user_token, (5, 4))
    target[:, 0] = 0
    return jnp.array(history, jnp.int32), jnp.array(target, jnp.int32)


def test_logits_equal_those_of_t5_for_conditional_generation(tokens):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = Tiger(CONFIG, LAYOUT)
    params = init_params(model, jax.random.key(0))
    settings = transformers.T5Config(**t5_config(CONFIG, LAYOUT))
    theirs = transformers.T5ForConditionalGeneration(settings).eval()
    weights = {
        name: torch.tensor(value)
        for name, value in to_t5_weights(params, CONFIG).items()
    }
    theirs.load_state_dict(weights, strict=True)

    history, target = tokens
    logits_fn = jax.jit(lambda *args: model.apply(*args, is_training=False))
    ours = logits_fn({"params": params}, history, target)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(np.asarray(history)),
            attention_mask=torch.tensor(np.asarray(history != 0)),
            decoder_input_ids=torch.tensor(np.asarray(target)),
        ).logits.numpy()
    assert np.ptp(expected) > 1, "logits all alike would prove nothing"
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


def test_buckets_equal_t5s_for_every_distance():
    modeling_t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    distance = np.arange(-200, 201)
    for is_bidirectional in (True, False):
        expected = modeling_t5.T5Attention._relative_position_bucket(
            torch.from_numpy(distance), is_bidirectional, 32, 128
        )
        ours = relative_position_bucket(distance, is_bidirectional, 32, 128)
        np.testing.assert_array_equal(ours, expected.numpy())


@pytest.mark.parametrize("is_tied", [True, False])
def test_renaming_weights_there_and_back_loses_nothing(is_tied):
    config = TigerConfig(**{**vars(CONFIG), "is_tied": is_tied})
    params = nn.unbox(init_params(Tiger(config, LAYOUT), jax.random.key(1)))
    weights = to_t5_weights(params, config)
    flat = {
        path: weights[name].T if is_transposed else weights[name]
        for path, (name, is_transposed) in t5_names(config).items()
    }
    back = traverse_util.unflatten_dict(flat, sep="/")
    jax.tree.map(np.testing.assert_array_equal, params, back)
    assert jax.tree.structure(params) == jax.tree.structure(back)


def test_parameters_without_a_name_in_t5_are_refused():
    config = TigerConfig(**{**vars(CONFIG), "has_item_context": True})
    params = jax.eval_shape(
        lambda: init_params(Tiger(config, LAYOUT), jax.random.key(0))
    )
    with pytest.raises(ValueError, match="T5 has no name for .*item_structure"):
        to_t5_weights(params, config)


def test_every_parameter_has_a_name_in_t5():
    model = Tiger(CONFIG, LAYOUT)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    weights = to_t5_weights(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), CONFIG)
    assert len(weights) == len(jax.tree.leaves(shapes)) + 3  # the table's other names
