"""Measures the model's own training step, without input or engine, by length.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:\
glibc.malloc.trim_threshold=17179869184 python -m benchmarks.training.model_step

A step is forward, backward and AdamW on one batch, every row padded to the full
length, its gradient summed over microbatches. It runs in turns with a large matrix
product, whose rate is the machine's peak. One JSON row a case:

    {"benchmark": "model_step", "case": {...}, "against": "matmul_peak",
     "examples_per_s": ..., "matmul_share": ..., "matmul_share_by_cpu_time": ...,
     "executed_share_of_flops": ..., "environment": {...}}

`matmul_share` counts the multiplications of the textbook Transformer, three forward
passes' worth, as model-FLOP utilisation does. The model executes fewer of them
(`executed_share_of_flops`), because cross-attention needs neither keys nor values.
By CPU time, programs that run beside this one disturb less, and cores that wait for
each other aren't seen.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from tiger_jax.models.tiger import Tiger, TigerConfig, init_params, make_loss_fn
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir.artifacts import code_version, package_versions

LAYOUT = TokenLayout((256,) * 4, num_user_tokens=2000)
PEAK_SIZE = 2048


def textbook_flops(config: TigerConfig, length: int) -> int:
    """Floating-point operations of one example's training step.

    Two for each weight and token, and for each pair of positions and feature; three
    times that with the backward pass. Norms, softmax and embeddings aren't counted.
    """
    joined = config.num_heads * config.head_dim
    attention, mlp = 4 * config.d_model * joined, 2 * config.d_model * config.mlp_dim
    targets = LAYOUT.semantic_id_length
    encoder = length * (attention + mlp + 2 * length * joined)
    decoder = targets * (attention + mlp + 2 * targets * joined)
    cross = (targets + length) * attention // 2 + 2 * targets * length * joined
    heads = config.d_model * sum(LAYOUT.codebook_sizes)
    blocks = config.num_encoder_layers * encoder
    blocks += config.num_decoder_layers * (decoder + cross)
    return 3 * 2 * (blocks + heads)


def make_batch(batch_size: int, length: int) -> dict[str, jax.Array]:
    """Random full-length histories and targets."""
    rng = np.random.default_rng(0)
    history = rng.integers(1, LAYOUT.first_user_token, (batch_size, length))
    targets = LAYOUT.tokens_of(rng.integers(0, LAYOUT.codebook_sizes, (batch_size, 4)))
    inputs = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    return {
        "encoder_input_tokens": jnp.array(history, jnp.int32),
        "decoder_input_tokens": jnp.array(inputs),
        "decoder_target_tokens": jnp.array(targets),
        "decoder_loss_weights": jnp.ones(targets.shape, jnp.float32),
    }


def make_step(
    config: TigerConfig, microbatch: int, batch: dict[str, jax.Array]
) -> tuple[Callable[[], Any], float]:
    """Compiles the step; returns it, and the multiplications it executes."""
    loss_fn = make_loss_fn(Tiger(config, LAYOUT))
    optimizer = optax.adamw(1e-3)
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatch, *x.shape[1:]), batch)
    grad_fn = jax.grad(loss_fn, has_aux=True)

    def step(params: Any, opt_state: Any, key: jax.Array) -> tuple[Any, Any]:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            microbatch, key = part
            return jax.tree.map(jnp.add, total, grad_fn(params, microbatch, key)), None

        keys = jax.random.split(key, len(parts["decoder_loss_weights"]))
        first = jax.tree.map(lambda x: x[0], (parts, keys))
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(grad_fn, params, *first),
        )
        (grads, sums), _ = jax.lax.scan(add, zeros, (parts, keys))
        grads = jax.tree.map(lambda g: g / sums["weight"], grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    params = nn.unbox(init_params(Tiger(config, LAYOUT), jax.random.key(0)))
    state = [params, optimizer.init(params), jax.random.key(1)]
    cost = jax.jit(grad_fn).lower(params, batch, None).cost_analysis()

    def run() -> None:
        state[:2] = jax.block_until_ready(jitted(*state))

    return run, float((cost or {}).get("flops", 0.0))


def race(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Runs the sides in turns; the least wall and processor seconds of each."""
    seconds: dict[str, Any] = {name: (np.inf, np.inf) for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            side()
            now = (time.perf_counter() - wall, time.process_time() - cpu)
            seconds[name] = np.minimum(seconds[name], now)
    return seconds


def main() -> None:
    """Prints one row for each length and microbatch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="21,41,81")
    parser.add_argument("--microbatches", default="128,32,16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--d_model", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    config = TigerConfig(d_model=args.d_model, dropout_rate=args.dropout)
    matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE))
    product = jax.jit(jnp.matmul)
    for length in map(int, args.lengths.split(",")):
        for microbatch in map(int, args.microbatches.split(",")):
            batch = make_batch(args.batch, length)
            step, executed = make_step(config, microbatch, batch)
            sides = {
                "step": step,
                "peak": lambda: product(matrix, matrix).block_until_ready(),
            }
            seconds = race(sides, args.rounds)
            flops = args.batch * textbook_flops(config, length)
            shares = flops / seconds["step"] / (2 * PEAK_SIZE**3 / seconds["peak"])
            row = {
                "benchmark": "model_step",
                "case": {
                    "length": length,
                    "batch": args.batch,
                    "microbatch": microbatch,
                    "d_model": args.d_model,
                    "dropout": args.dropout,
                },
                "against": "matmul_peak",
                "examples_per_s": round(args.batch / seconds["step"][0], 1),
                "matmul_share": round(shares[0], 3),
                "matmul_share_by_cpu_time": round(shares[1], 3),
                "executed_share_of_flops": round(executed / flops, 3),
                "peak_gflops_per_s": round(2e-9 * PEAK_SIZE**3 / seconds["peak"][0], 1),
                "environment": {
                    "commit": code_version(),
                    "packages": package_versions(),
                    "device": jax.devices()[0].device_kind,
                    "cores": os.cpu_count(),
                    "machine": platform.machine(),
                    "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
                },
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
