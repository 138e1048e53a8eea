"""seqio's offline caching of token files, on Beam's FnApiRunner, as in scale.md."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_workdir import make_workdir
from token_files import write_token_files

from tasks.sharded import TASK
from tiger_jax.input_pipeline.preprocessors import feature_lengths
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.input_pipeline.token_shards import token_shards_of

ROOT = Path(__file__).resolve().parents[2]
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def read(split, *, use_cached):
    lengths = feature_lengths(token_shards_of(TASK).layout, 4)
    dataset = seqio.TaskRegistry.get(TASK).get_dataset(
        lengths, split, use_cached=use_cached, shuffle=False
    )
    return [
        (tuple(e["inputs"].tolist()), tuple(e["targets"].tolist()))
        for e in dataset.as_numpy_iterator()
    ]


@pytest.mark.slow
def test_the_offline_cache_holds_the_same_examples(tmp_path, monkeypatch):
    """Cached examples are the uncached ones in the cache's order."""
    workdir, cache = make_workdir(tmp_path / "work"), tmp_path / "cache"
    write_token_files(workdir)
    monkeypatch.setenv("TIGER_WORKDIR", str(workdir))
    command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main"]
    command += [f"--output_cache_dir={cache}", "--module_import=tasks.sharded"]
    command += [f"--tasks={TASK}", "--min_shards=2"]
    command += [f"--pipeline_options=--runner={RUNNER}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ.copy()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seqio.add_global_cache_dirs([str(cache)])
    try:
        for split in ("train", "validation", "test"):
            uncached, cached = (read(split, use_cached=u) for u in (False, True))
            assert sorted(cached) == sorted(uncached)
            assert read(split, use_cached=True) == cached  # always in this order
            stats = seqio.TaskRegistry.get(TASK).get_cached_stats(split)
            assert stats["examples"] == len(cached)
        files = sorted(cache.rglob("train.tfrecord-*"))
        assert len(files) >= 2
        assert np.min([path.stat().st_size for path in files]) > 0
        assert cached != uncached, "seqio's pipeline shuffles the examples"
    finally:
        seqio.set_global_cache_dirs([])
