"""With bfloat16 as compute dtype, logits and attention scores are float32 products.

Rounded to bfloat16 first, the best of a level's logits are often equal, and a tie
counts against the target. A CPU's compiler may leave such a rounding out and so hide
it: what counts is the traced program, and the one compiled for a TPU, where the TPU's
compiler is installed.
"""

import dataclasses
import functools
import os
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params

from tiger_jax.decoding.search import beam_search
from tiger_jax.decoding.trie import Trie
from tiger_jax.models.generator import init_params, make_decode_fns, make_loss_fn
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout

LAYOUT = TokenLayout((64, 64, 64), 0)
TIGER = TigerConfig(
    num_encoder_layers=1,
    num_decoder_layers=1,
    d_model=64,
    num_heads=2,
    head_dim=64,
    mlp_dim=64,
    dtype="bfloat16",
)
CONFIGS = {
    "tiger": TIGER,
    "untied": dataclasses.replace(TIGER, is_tied=False),
    "vocabulary": dataclasses.replace(TIGER, output="vocabulary"),
    "two_level": TwoLevelConfig(
        num_layers=1, d_model=64, num_heads=1, mlp_dim=64, dtype="bfloat16"
    ),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
CODES = np.unique(np.random.default_rng(0).integers(0, 64, (300, 3)), axis=0)
TRIE = Trie.build(CODES.astype(np.int32), LAYOUT.codebook_sizes)
TOKENS = LAYOUT.tokens_of(CODES[:40]).reshape(8, 15).astype(np.int32)
TARGETS = LAYOUT.tokens_of(CODES[40:48]).astype(np.int32)
BATCH = {
    "encoder_input_tokens": TOKENS,
    "decoder_input_tokens": np.pad(TARGETS[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": TARGETS,
    "decoder_loss_weights": np.ones_like(TARGETS),
}


PRODUCT = re.compile(r"= (\w+)\[[^=]* (?:convolution|dot)\(.*op_name=\"([^\"]*)\"")
SCORES = ("->bhts/", "->bths/", "->bhms/", "->bhqk/", "_logits/")


def _make(config):
    model = config.build(LAYOUT)
    params = nn.unbox(
        jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    )
    init_decode, decode_step = make_decode_fns(model)

    def search(params, tokens, trie):
        return beam_search(
            params,
            tokens,
            trie,
            init_decode=init_decode,
            decode_step=decode_step,
            num_beams=4,
            normalize=config.normalize,
        )

    return make_loss_fn(model), search, params


@EACH
def test_scores_and_logits_are_float32_products(config):
    loss_fn, search, params = _make(config)
    for function, arguments in (
        (lambda *args: loss_fn(*args, None), (params, BATCH)),
        (search, (params, TOKENS, TRIE)),
    ):
        traced = jax.make_jaxpr(function)(*arguments)
        found = [
            (str(equation.source_info.name_stack), equation)
            for equation in _equations(traced.jaxpr)
        ]
        products = [
            equation.outvars[0].aval.dtype
            for name, equation in found
            if equation.primitive.name == "dot_general"
            and any(part in f"{name}/" for part in SCORES)
        ]
        assert len(products) >= 4, {name for name, _ in found}
        assert set(products) == {np.dtype(np.float32)}
        # One position at a time, scores are sums over each head's columns.
        sums = {
            operand.aval.dtype
            for name, equation in found
            if equation.primitive.name == "dot_general" and ".extend" in name
            if equation.invars[1].aval.shape == (2 * 64, 2)
            for operand in (*equation.invars, *equation.outvars)
        }
        assert sums <= {np.dtype(np.float32)}
        if function is search and isinstance(config, TigerConfig):
            assert sums


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.fixture(scope="module")
def on_chip():
    """Makes the shapes of arguments that lie on a chip of a slice that isn't here."""
    pytest.importorskip("libtpu", reason="the TPU compiler isn't installed (libtpu)")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server to ask
    # Other workers of the test session may have the compiler loaded too.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    slice_ = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    chip = jax.sharding.SingleDeviceSharding(slice_.devices[0])
    return lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), tree
    )


@pytest.mark.parametrize(
    "config", [TIGER, CONFIGS["two_level"]], ids=lambda config: type(config).__name__
)
def test_compiled_for_a_tpu_they_are_float32_products(config, on_chip):
    loss_fn, search, params = _make(config)
    grad_fn = jax.grad(lambda *args: loss_fn(*args)[0])
    for function, arguments in (
        (grad_fn, (params, BATCH, jax.random.key(0))),
        (search, (params, TOKENS, TRIE)),
    ):
        text = jax.jit(function).lower(*on_chip(arguments)).compile().as_text()
        forward = [
            (dtype, name)
            for dtype, name in PRODUCT.findall(text)
            if any(part in name for part in SCORES) and "transpose" not in name
        ]
        assert len(forward) >= 2, text
        assert {dtype for dtype, _ in forward} == {"f32"}, forward
