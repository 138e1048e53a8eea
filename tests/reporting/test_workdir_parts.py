"""Reading curves."""

from tiger_jax.reporting.workdir_parts import read_curves


def test_curves_are_gathered_by_name_in_the_order_of_steps():
    rows = [
        {"step": 2, "train/loss": 1.0},
        {"step": 1, "train/loss": 2.0, "validation/recall@10": 0.1},
    ]
    assert read_curves(rows) == {
        "train/loss": ([1, 2], [2.0, 1.0]),
        "validation/recall@10": ([1], [0.1]),
    }


def test_a_step_written_again_after_a_resume_replaces_the_first():
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "loss": 1.5}]
    assert read_curves(rows) == {"loss": ([1], [1.5])}


def test_what_is_no_number_is_left_out():
    rows = [{"step": 1, "note": "x", "ok": True, "loss": 1}, {"loss": 2.0}]
    assert read_curves(rows) == {"loss": ([1], [1.0])}
