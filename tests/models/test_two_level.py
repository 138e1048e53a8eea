"""The two-level generator: causal, spelled level by level, and searched as TIGER is."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tiger_jax.decoding.search import beam_search
from tiger_jax.decoding.search.exact_scoring import CatalogueWalk, exact_search
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.item_content import add_content
from tiger_jax.models.generator import (
    build_model,
    init_params,
    make_decode_fns,
    make_loss_fn,
)
from tiger_jax.models.layers import low_pass_matrix
from tiger_jax.models.two_level import TwoLevelConfig, filter_history
from tiger_jax.semantic_ids.encoder_inputs import ItemInputs
from tiger_jax.semantic_ids.token_ids import TokenLayout

LAYOUT = TokenLayout((5, 4, 3))
NUM_ITEMS = 30
SMALL = TwoLevelConfig(
    d_model=16, num_heads=2, mlp_dim=24, max_distance=4, filter_share=0.5
)
EVERY = np.array(
    [(a, b, c) for a in range(5) for b in range(4) for c in range(3)], np.int32
)
CODES = EVERY[np.sort(np.random.default_rng(0).permutation(60)[:NUM_ITEMS])]
TOKENS = np.concatenate([LAYOUT.tokens_of(CODES), [[0, 0, 0]]])  # the last is padding


@pytest.fixture(scope="module")
def trained():
    """A model away from its start, where the distance biases are still zero."""
    model = SMALL.build(LAYOUT)
    init = jax.jit(functools.partial(init_params, model))
    params = nn.unbox(init(jax.random.key(1)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [
        x + 0.1 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, noisy)


def tokens_of(histories):
    histories = np.asarray(histories)
    return jnp.asarray(TOKENS[histories].reshape(len(histories), -1))


def batch_of(histories, targets):
    """Targets [B, P], -1 for none."""
    targets = np.asarray(targets)
    wanted = TOKENS[targets]  # [B, P, T]
    weights = np.broadcast_to((targets >= 0)[..., None], wanted.shape)
    flat = (len(targets), -1)
    return {
        "encoder_input_tokens": tokens_of(histories),
        "decoder_input_tokens": jnp.asarray(
            np.pad(wanted[..., :-1], ((0, 0), (0, 0), (1, 0))).reshape(flat)
        ),
        "decoder_target_tokens": jnp.asarray(wanted.reshape(flat)),
        "decoder_loss_weights": jnp.asarray(weights.astype(np.int32).reshape(flat)),
    }


def states_of(model, params, histories):
    encode = functools.partial(model.apply, is_training=False, method="encode")
    return jax.jit(encode)({"params": params}, tokens_of(histories))


def test_a_state_depends_on_no_later_item(trained):
    states = states_of(*trained, [[3, 7, 9, 1], [3, 7, 2, 5], [3, 7, -1, -1]])
    np.testing.assert_allclose(states[0, :2], states[1, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states[0, :2], states[2, :2], rtol=1e-5, atol=1e-6)
    assert np.abs(states[0, 2] - states[1, 2]).max() > 1e-3


def test_decoding_step_by_step_gives_the_spelled_logits(trained):
    model, params = trained
    batch = batch_of([[3, 7, 9, -1], [4, -1, -1, -1]], [[11], [20]])
    whole = jax.jit(functools.partial(model.apply, is_training=False))(
        {"params": params},
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
    )
    init_decode, decode_step = make_decode_fns(model)
    decode_step = jax.jit(decode_step, static_argnums=4)
    cache = init_decode(params, batch["encoder_input_tokens"])
    chosen = jnp.zeros((2, 1), jnp.int32)
    for level, size in enumerate(LAYOUT.codebook_sizes):
        logits, cache = decode_step(
            params, cache, chosen, jnp.zeros_like(chosen), level
        )
        expected = whole[:, level, :size]
        np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-5)
        assert np.isneginf(whole[:, level, size:]).all()
        chosen = jnp.asarray(CODES[[11, 20], level])[:, None]


def test_the_beam_search_finds_what_scoring_every_item_finds(trained):
    model, params = trained
    init_decode, decode_step = make_decode_fns(model)
    trie = Trie.build(CODES, LAYOUT.codebook_sizes)
    inputs = tokens_of([[3, 7, 9], [4, -1, -1], [-1, -1, -1]])
    own = {"init_decode": init_decode, "decode_step": decode_step}
    beams = jax.jit(functools.partial(beam_search, num_beams=NUM_ITEMS, **own))
    exact = jax.jit(functools.partial(exact_search, num_results=NUM_ITEMS, **own))
    exclude = jnp.array([[3, 7], [4, -1], [-1, -1]])
    found = beams(params, inputs, trie, exclude=exclude)
    expected = exact(params, inputs, CatalogueWalk.build(trie), exclude=exclude)
    np.testing.assert_array_equal(found.item_numbers, expected.item_numbers)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)


def test_a_whole_history_loses_what_its_prefixes_lose(trained):
    """A pass over a history is a pass over each of its prefixes."""
    model, params = trained
    loss_fn = jax.jit(make_loss_fn(model))
    whole, sums = loss_fn(
        params,
        batch_of([[3, 7, 9], [4, 2, -1]], [[7, 9, 1], [2, 5, -1]]),
        None,
    )
    prefixes, by_prefix = loss_fn(
        params,
        batch_of(
            [[3, -1, -1], [3, 7, -1], [3, 7, 9], [4, -1, -1], [4, 2, -1]],
            [[7], [9], [1], [2], [5]],
        ),
        None,
    )
    np.testing.assert_allclose(whole, prefixes, rtol=1e-5)
    assert float(sums["weight"]) == 5 * 3  # five targets of three codewords
    for name, value in sums.items():
        np.testing.assert_allclose(value, by_prefix[name], rtol=1e-5, err_msg=name)


def test_the_filter_is_bsarecs_of_every_prefix():
    x = np.random.default_rng(0).normal(size=(1, 4, 16)).astype(np.float32)
    beta = np.linspace(0, 2, 16, dtype=np.float32)
    is_seen = jnp.tril(jnp.ones((1, 4, 4), bool))
    found = filter_history(jnp.asarray(x), is_seen, jnp.asarray(beta), SMALL)
    for length in range(1, 5):
        prefix = x[0, :length]
        low = low_pass_matrix(length, 50, 5)[-1] @ prefix
        expected = low + beta**2 * (prefix[-1] - low)
        np.testing.assert_allclose(found[0, length - 1], expected, rtol=1e-4, atol=1e-5)


def test_without_the_filter_there_are_no_parameters_of_it():
    plain = dataclasses.replace(SMALL, filter_share=0.0).build(LAYOUT)
    shapes = jax.eval_shape(functools.partial(init_params, plain), jax.random.key(0))
    assert "beta" not in shapes["block_0"]


def test_what_follows_what_is_learned():
    """Item i is followed by item i + 1; sixty steps are enough to know."""
    config = dataclasses.replace(SMALL, dropout_rate=0.0, depth_dropout_rate=0.0)
    model = config.build(LAYOUT)
    init = jax.jit(functools.partial(init_params, model))
    params = nn.unbox(init(jax.random.key(0)))
    loss_fn, optimizer = make_loss_fn(model), optax.adam(0.02)
    first = np.arange(NUM_ITEMS - 5)[:, None] + np.arange(5)
    batch = batch_of(first, first + 1)

    @jax.jit
    def step(params, state):
        def mean(params):
            loss, sums = loss_fn(params, batch, None)
            return loss / sums["weight"], sums

        grads, sums = jax.grad(mean, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, sums

    state = optimizer.init(params)
    for _ in range(60):
        params, state, sums = step(params, state)
    assert float(sums["correct"] / sums["weight"]) > 0.95


def test_logits_are_float32_whatever_the_compute_type(trained):
    model = dataclasses.replace(SMALL, dtype="bfloat16").build(LAYOUT)
    init_decode, decode_step = make_decode_fns(model)
    cache = init_decode(trained[1], tokens_of([[3, 7]]))
    zero = jnp.zeros((1, 1), jnp.int32)
    assert decode_step(trained[1], cache, zero, zero, 0)[0].dtype == jnp.float32
    assert cache.state.dtype == jnp.bfloat16


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(InputError, match="num_heads = 3 must divide d_model = 16"):
        TwoLevelConfig(d_model=16, num_heads=3)
    with pytest.raises(InputError, match="filter_cutoff = 50 must be below"):
        TwoLevelConfig(filter_cutoff=50)
    for name in ("filter_share", "item_dropout_rate"):
        with pytest.raises(InputError, match=f"{name} = 1.5 must lie between 0 and 1"):
            TwoLevelConfig(**{name: 1.5})
    with pytest.raises(InputError, match="num_user_tokens=0"):
        SMALL.build(TokenLayout((5, 4, 3), num_user_tokens=7))


CONTENT = jax.random.normal(jax.random.key(5), (NUM_ITEMS, 7))
DENSE = dataclasses.replace(
    SMALL, reads_content=True, dense_head=True, dense_loss_weight=0.7
)


@pytest.fixture(scope="module")
def dense():
    model = build_model(DENSE, LAYOUT, CONTENT.shape)
    init = jax.jit(functools.partial(init_params, model))
    return model, nn.unbox(init(jax.random.key(3)))


def dense_batch(histories, targets, ranked=None):
    histories, targets = np.asarray(histories), np.asarray(targets)
    items = jnp.asarray(histories), jnp.asarray(targets)
    batch = batch_of(histories, targets)
    batch = add_content(batch, *items, CONTENT, jnp.arange(NUM_ITEMS))
    if ranked is None:
        return batch
    return batch | {
        "ranked_items": jnp.asarray(ranked),
        "ranked_content": CONTENT[ranked],
        "log_share": jnp.log(NUM_ITEMS / len(ranked)),
    }


def item_log_probs(model, params, histories):
    """log p(item) after each position, by the definition."""
    histories = np.asarray(histories)
    numbers = jnp.arange(NUM_ITEMS)
    table = model.apply({"params": params}, CONTENT, numbers, method="embed_items")
    inputs = ItemInputs(tokens_of(histories), table.read[histories.clip(0)])
    encode = functools.partial(model.apply, is_training=False, method="encode")
    states = jax.jit(encode)({"params": params}, inputs)
    user = np.asarray(states @ params["user"])
    item = np.asarray(CONTENT @ params["content_out"])
    cosine = (user / np.linalg.norm(user, axis=-1, keepdims=True)) @ (
        item / np.linalg.norm(item, axis=-1, keepdims=True)
    ).T
    return jax.nn.log_softmax(cosine * np.exp(params["log_scale"]))


def test_the_dense_loss_is_the_items_cross_entropy(dense):
    model, params = dense
    histories, targets = [[3, 7, 9], [4, 2, -1]], [[7, 9, 1], [2, 5, -1]]
    batch = dense_batch(histories, targets)
    loss_fn = jax.jit(make_loss_fn(model))
    loss, sums = loss_fn(params, batch, None)
    codes_alone = {k: v for k, v in batch.items() if not k.startswith("ranked")}
    of_codes, _ = loss_fn(params, codes_alone, None)
    log_probs = item_log_probs(model, params, histories)
    nll = -sum(
        log_probs[row, place, item]
        for row, items in enumerate(targets)
        for place, item in enumerate(items)
        if item >= 0
    )
    np.testing.assert_allclose(loss - of_codes, 0.7 * nll, rtol=1e-4)
    np.testing.assert_allclose(sums["item_nll"], 3 * nll, rtol=1e-4)


def test_a_sampled_softmax_estimates_the_whole_one(dense):
    model, params = dense
    histories, targets = [[3, 7, 9]], [[7, 9, 1]]
    loss_fn, rng = jax.jit(make_loss_fn(model)), np.random.default_rng(0)
    whole = loss_fn(params, dense_batch(histories, targets), None)[1]["item_nll"]
    sampled = [
        loss_fn(
            params,
            dense_batch(histories, targets, rng.permutation(NUM_ITEMS)[:20]),
            None,
        )[1]["item_nll"]
        for _ in range(60)
    ]
    assert abs(np.mean(sampled) - whole) < 0.05 * whole
    assert np.std(sampled) > 0


def test_content_is_read_and_missing_content_is_refused(dense):
    model, params = dense
    tokens = tokens_of([[3, 7, 9]])
    items = jnp.array([[3, 7, 9]])
    read = model.apply({"params": params}, CONTENT[items], items, method="read_content")
    encode = jax.jit(functools.partial(model.apply, is_training=False, method="encode"))
    states = encode({"params": params}, ItemInputs(tokens, read))
    others = encode({"params": params}, ItemInputs(tokens, 0 * read))
    assert np.abs(states - others).max() > 1e-3
    with pytest.raises(InputError, match="run --stage=embed_items"):
        build_model(DENSE, LAYOUT)


OWN = dataclasses.replace(DENSE, item_embeddings=True)


@pytest.fixture(scope="module")
def own():
    model = build_model(OWN, LAYOUT, CONTENT.shape)
    init = jax.jit(functools.partial(init_params, model))
    params = nn.unbox(init(jax.random.key(3)))
    assert params["item_embeddings"].shape == (NUM_ITEMS, OWN.d_model)
    return model, params


def test_an_item_has_an_embedding_of_its_own_and_a_new_one_has_none(own, dense):
    model, params = own
    embed = functools.partial(model.apply, {"params": params}, method="embed_items")
    known, new = (
        embed(CONTENT, jnp.arange(NUM_ITEMS)),
        embed(CONTENT, jnp.full(NUM_ITEMS, -1)),
    )
    others = {k: v for k, v in params.items() if k != "item_embeddings"}
    plain = dense[0].apply(
        {"params": others}, CONTENT, jnp.arange(NUM_ITEMS), method="embed_items"
    )
    for name in ("read", "ranked"):
        np.testing.assert_array_equal(getattr(new, name), getattr(plain, name))
        assert (getattr(known, name) != getattr(plain, name)).any(1).all()
    with pytest.raises(InputError, match="item_embeddings"):
        dataclasses.replace(SMALL, item_embeddings=True)


def test_items_left_out_of_an_update_are_trained_as_new_ones(own):
    model, params = own
    batch = dense_batch([[3, 7, 9]], [[7, 9, 1]])

    def gradient(rate, key):
        config = dataclasses.replace(
            OWN, item_dropout_rate=rate, dropout_rate=0.0, depth_dropout_rate=0.0
        )
        loss_fn = make_loss_fn(build_model(config, LAYOUT, CONTENT.shape))
        found = jax.grad(lambda p: loss_fn(p, batch, key)[0])(params)
        return np.asarray(found["item_embeddings"])

    assert gradient(0.5, None).any(1).all()  # every item is ranked
    is_moved = gradient(0.5, jax.random.key(1)).any(1)
    assert 0 < is_moved.sum() < NUM_ITEMS
    assert not gradient(0.999999, jax.random.key(1)).any()
