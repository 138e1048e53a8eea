"""The stacks by themselves: what they must not see, and meshes that agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from tiger_jax.models.generator import init_params, make_loss_fn
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.models.transformer import Encoder, TransformerConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout

CONFIG = TransformerConfig(
    num_encoder_layers=2, d_model=16, num_heads=2, head_dim=8, mlp_dim=24
)
ENCODER = Encoder(CONFIG)
X = jax.random.normal(jax.random.key(0), (3, 9, 16))
IS_TOKEN = jnp.arange(9)[None] < jnp.array([[9], [5], [1]])


@functools.cache
def params():
    init = jax.jit(lambda key: ENCODER.init(key, X, IS_TOKEN, is_training=False))
    return init(jax.random.key(1))


@jax.jit
def encode_with(params, x, is_token):
    return ENCODER.apply(params, x, is_token, is_training=False)


def encode(x, is_token):
    return encode_with(params(), x, is_token)


def test_tokens_do_not_see_padding():
    other = jnp.where(IS_TOKEN[..., None], X, 100.0)
    before, after = encode(X, IS_TOKEN), encode(other, IS_TOKEN)
    np.testing.assert_allclose(before[IS_TOKEN], after[IS_TOKEN], atol=1e-6)


def test_a_row_of_padding_only_is_finite():
    assert np.isfinite(encode(X, jnp.zeros_like(IS_TOKEN))).all()


def test_positions_count_only_relative_to_each_other():
    """Without other tokens in sight, shifted tokens have shifted encodings."""
    is_token = jnp.arange(9)[None].repeat(3, 0) < 4
    shifted = encode(jnp.roll(X, 5, 1), jnp.roll(is_token, 5, 1))
    straight = encode(X, is_token)
    np.testing.assert_allclose(straight[:, :4], shifted[:, 5:], atol=1e-5)
    reordered = encode(X[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]], is_token)
    assert abs(straight[:, 2] - reordered[:, 2]).max() > 1e-3


@pytest.mark.slow
def test_every_mesh_computes_the_same_gradient_dropout_included():
    layout = TokenLayout((8, 8, 4), num_user_tokens=7)
    config = TigerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=16,
        num_heads=4,
        head_dim=8,
        mlp_dim=32,
        dropout_rate=0.3,
    )
    model = Tiger(config, layout)
    boxed = init_params(model, jax.random.key(0))
    params = nn.unbox(boxed)
    rng = np.random.default_rng(0)
    targets = layout.tokens_of(rng.integers(0, layout.codebook_sizes, (8, 3)))
    batch = {
        "encoder_input_tokens": jnp.array(rng.integers(1, 20, (8, 10)), jnp.int32),
        "decoder_input_tokens": jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": jnp.array(targets),
        "decoder_loss_weights": jnp.ones((8, 3)),
    }
    grad_fn = jax.jit(jax.grad(make_loss_fn(model), has_aux=True))
    key = jax.random.key(2)
    expected, sums = grad_fn(params, batch, key)
    mesh = jax.make_mesh(
        (4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    rules = {"mlp": "model", "joined_kv": "model", "heads": "model"}
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(*map(rules.get, spec))),
        nn.get_partition_spec(boxed),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    by_data = NamedSharding(mesh, PartitionSpec("data"))
    grads, mesh_sums = grad_fn(
        jax.device_put(params, shardings), jax.device_put(batch, by_data), key
    )
    wi = jax.device_put(params, shardings)["encoder"]["block_0"]["mlp"]["wi"]
    assert wi.addressable_shards[0].data.shape == (16, 16)  # 32 hidden units, 2 ways
    assert float(mesh_sums["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), expected, grads
    )
