# ruff: noqa: E501  (the compiler's lines are as long as they are)
"""Costs read from a compiled program's text: loops, branches, layers, exchanges."""

import pytest

from tiger_jax.aot.hlo import layer_of, read_cost

TEXT = """HloModule jit_run, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b), backend_config={"estimated_cycles":"999"}
}

%short (p: f32[8]) -> f32[8] {
  ROOT %dot.1 = f32[8]{0} fusion(%p), kind=kOutput, calls=%inside, metadata={op_name="jit(run)/while/body/branch_0_fun/Tiger/encoder/block_0/mlp/dot_general"}, backend_config={"estimated_cycles":"100"}
}

%long (p: f32[8]) -> f32[8] {
  ROOT %dot.2 = f32[8]{0} fusion(%p), kind=kOutput, calls=%inside, metadata={op_name="jit(run)/while/body/branch_1_fun/transpose(jvp(Tiger))/encoder/block_1/mlp/dot_general"}, backend_config={"estimated_cycles":"1000"}
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %picked = f32[8]{0} conditional(%which, %x, %x), branch_computations={%short, %long}
  %exchanged = (bf16[4,2]{1,0}, f32[2]{0}) all-reduce-start(%picked), to_apply=%add, metadata={op_name="jit(run)/psum"}, backend_config={"estimated_cycles":"7"}
  ROOT %t = (s32[], f32[8]) tuple(%i, %picked)
}

%until (t.1: (s32[], f32[8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(10)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  ROOT %lt.9 = pred[]{:T(512)} compare(%i.1, %constant.4), direction=LT
}

ENTRY %main.5 (x: f32[8]) -> f32[8] {
  %copied = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"5"}
  %loop = (s32[], f32[8]{0}) while(%t0), condition=%until, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_its_trips_and_a_branch_its_share():
    cost = read_cost(TEXT, branch_shares=(0.75, 0.25))
    assert cost.cycles == pytest.approx(5 + 10 * (0.75 * 100 + 0.25 * 1000 + 7))
    assert cost.cycles_by_layer == pytest.approx(
        {
            "Tiger/encoder/block/mlp, backward": 2500,
            "Tiger/encoder/block/mlp": 750,
            "all-reduce": 70,
            "copy": 5,
        }
    )
    # Of eight bfloat16 and two float32 numbers.
    assert cost.collectives == {("all-reduce", 24): 10}


def test_branches_without_shares_count_equally():
    assert read_cost(TEXT).cycles == pytest.approx(5 + 10 * (550 + 7))
    # Shares of another conditional's branches say nothing of this one's.
    assert read_cost(TEXT, (0.2, 0.3, 0.5)).cycles == pytest.approx(5 + 10 * 557)


def test_of_two_branches_the_first_is_what_is_false():
    numbered = "branch_computations={%short, %long}"
    named = "true_computation=%long, false_computation=%short"
    assert read_cost(TEXT.replace(numbered, named), (0.75, 0.25)) == read_cost(
        TEXT, (0.75, 0.25)
    )


def test_layers_are_named_as_the_modules_are():
    name = "jit(run)/jit(main)/Tiger.decode_step/decoder/block_2/mlp/dot_general"
    assert layer_of(name) == "Tiger.decode_step/decoder/block/mlp"
    assert (layer_of("jit(run)/add"), layer_of("")) == ("add", "other")


GPU_TEXT = """HloModule jit_run, is_scheduled=true

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %which = s32[] get-tuple-element(%t), index=0
  %gemm_fusion = bf16[4,8]{1,0} fusion(%x), kind=kCustom, calls=%inside, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %fused = f32[8]{0} fusion(%gemm_fusion, %x), kind=kLoop, calls=%inside
  %one = f32[8]{0} conditional(%which, %fused, %fused), branch_computations={%short, %long}
  ROOT %out = (s32[], f32[8]) tuple(%which, %one)
}

%short (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %copied = f32[8]{0} copy(%p)
}

%long (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %product = (f32[8]{0}, s8[16]{0}) custom-call(%p.1), custom_call_target="__cublas$gemm"
  ROOT %kept = f32[8]{0} get-tuple-element(%product), index=0
}

%until (t.1: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] fusion(%t.1), kind=kLoop, calls=%compared
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %start = f32[8]{0} all-reduce-start(%a), to_apply=%add
  %done = f32[8]{0} all-reduce-done(%start)
  %loop = (s32[], f32[8]{0}) while(%done), condition=%until, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %last = (s32[], f32[8]{0}) while(%loop), condition=%until, body=%none
}
"""


def test_kernels_of_a_gpu_are_counted_by_kind():
    cost = read_cost(GPU_TEXT, (0.5, 0.5))
    assert cost.kernels == {
        "collectives": 1,
        "copies": 5,
        "fusions": 10,
        "products": 10 + 5,
    }
    # A branch is asked for in each of ten rounds, an open loop whether it goes on.
    assert cost.host_reads == 10 + 1
    moved = {"gemm": 32 + 64, "fused": 64 + 32 + 32, "copied": 64, "cublas": 32 + 48}
    assert cost.kernel_bytes == (
        64 + 10 * (moved["gemm"] + moved["fused"]) + 5 * (64 + moved["cublas"])
    )
    assert cost.cycles == 0
