"""The table of docs/tpu_pods.md: what compiles, with its cost, and what does not."""

from benchmarks.training import tpu_programs

ROW = {
    "run": "paper d 128",
    "program": "train_recommender",
    "slice": "v5litepod-4",
    "chips": 4,
    "runs": 20_000,
    "unit": "pairs",
    "arguments_bytes": 20e6,
    "temporary_bytes": 300e6,
    "flops_a_chip": 72e9,
    "cycles": 6e6,
    "cycles_by_layer": {"Tiger/encoder": 4.5e6, "copy": 1.5e6},
    "collectives": [{"kind": "all-reduce", "bytes": 2e6, "times": 4}],
    "seconds": 0.004,
    "utilisation": 0.0914,
    "compile_s": 150.2,
}


def test_a_program_has_its_cost_and_a_failure_its_reason():
    failed = {"run": "two-level", "program": "serve", "slice": "v4-8"}
    table = tpu_programs.build_table([failed | {"problem": "no room"}, ROW])
    lines = table.splitlines()
    assert lines[2] == (
        "| paper d 128 | `train_recommender` | v5litepod-4 | 4 | 320 | 300 | 72.0 "
        "| 4, 8 MB | 6.00M | .2000 | 9.1% |"
    )
    assert "does not compile: no room" in lines[3]
    assert lines[3].count("|") == lines[2].count("|")
    assert "Tiger/encoder 75%, copy 25%" in table


def test_what_runs_on_one_chip_is_compiled_once_for_each_kind():
    assert "serve" in tpu_programs.programs_of("two-level", "v5litepod-4")
    assert "serve" not in tpu_programs.programs_of("two-level", "v5litepod-16")
    assert "train_rqvae" in tpu_programs.programs_of("two-level", "v6e-8")
    assert "train_rqvae" not in tpu_programs.programs_of("paper d 128", "v6e-8")


def test_kernels_are_those_of_one_update_and_older_code_stays_beside():
    kernels = {"fusions": 4_000, "products": 1_230, "copies": 10}
    row = ROW | {"slice": "8 H100", "commit": "0123456789", "kernels": kernels}
    row |= {"kernel_bytes": 2.5e10, "host_reads": 20}
    table = tpu_programs.build_gpu_table([row, row | {"commit": "abcdef0123"}])
    assert (
        "| paper d 128 | 8 H100 | `0123456` | 320 | **524** | 400 | 123 | 1 | 0 | 0 "
        "| 2.50 | 2.0 |"
    ) in table.splitlines()
    assert "`abcdef0`" in table
    assert tpu_programs.hardware_of("8 H100") == "hardware/gpu_8.gin"
    assert tpu_programs.programs_of("two-level", "H100") == ["train_recommender"]
