"""Says by which command the pipelines are run."""

import sys

if __name__ == "__main__":
    sys.exit(
        "error: the pipelines are stages of run.py: python run.py "
        "--gin_file=base/shards.gin --stage=prepare_shards (docs/scale.md)"
    )
