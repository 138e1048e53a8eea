"""One of two hosts of the stage train_recommender; writes down what it has drawn."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import test_training_from_shards as settings

from tasks.sharded import TASK, register_sharded_task
from tiger_jax.input_pipeline.batches import SeqioBatches
from tiger_jax.training.partitioning import MeshConfig, initialize_distributed


def main(workdir: Path, notes: Path) -> None:
    initialize_distributed()
    register_sharded_task(TASK, shuffle_buffer_size=50)
    draw, drawn = SeqioBatches.__next__, []

    def draw_and_note(self):
        batch = draw(self)
        drawn.extend(np.asarray(batch["encoder_input_tokens"]).tolist())
        return batch

    SeqioBatches.__next__ = draw_and_note
    settings.run(workdir, mesh=MeshConfig(jax.device_count(), 1))
    (notes / f"{jax.process_index()}.json").write_text(json.dumps(drawn))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
