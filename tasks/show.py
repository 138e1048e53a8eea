"""Prints what a task yields, readable.

    python -m tasks.show --workdir runs/demo --task tiger_demo --num 3

Each example is shown as the model sees it: the items of the history with their
Semantic IDs and titles, oldest first, and the target.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.tiger import WorkdirShop, register_tiger_task
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import UserFacingError
from tiger_jax.input_pipeline.preprocessors import feature_lengths
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.progress import outlive_readers, say


def main(argv: Sequence[str]) -> int:
    """Prints the first examples of a task; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", help="default: the variable TIGER_WORKDIR")
    parser.add_argument("--task", default="tiger_demo")
    parser.add_argument("--split", default="train", help="train, validation or test")
    parser.add_argument("--num", type=int, default=3, help="examples to print")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle")
    parser.add_argument("--import", dest="module", help="a module with more tasks")
    args = parser.parse_args(argv)
    try:
        if args.module:
            importlib.import_module(args.module)
        if args.workdir:
            register_tiger_task(args.task, args.workdir)
        for line in describe(args.task, args.split, args.num, args.seed):
            say(line)
    except UserFacingError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def describe(task_name: str, split: str, num: int, seed: int) -> Iterator[str]:
    """Yields lines about a task and its first examples in shuffled order."""
    task = seqio.get_mixture_or_task(task_name)
    vocabulary = task.output_features["inputs"].vocabulary
    lengths = feature_lengths(vocabulary.layout)
    yield f"{task_name}: {vocabulary.layout}"
    titles: dict[str, str] = {}
    if isinstance(task, seqio.Task):
        count = task.source.num_pairs(split)
        yield f"{count:,} examples in {split}; at most {lengths} tokens"
        titles = _texts_of_items(task.source.shop, vocabulary)
    dataset = task.get_dataset(lengths, split=split, seed=seed, num_epochs=1)
    for number, example in enumerate(dataset.take(num).as_numpy_iterator()):
        yield f"\nexample {number}"
        yield from _describe_example(example, vocabulary, titles)


def _describe_example(
    example: dict[str, np.ndarray], vocabulary: seqio.Vocabulary, titles: dict[str, str]
) -> Iterator[str]:
    layout = vocabulary.layout
    inputs = example["inputs"]
    yield f"  inputs  {len(inputs)} tokens: {' '.join(map(str, inputs))}"
    if layout.num_user_tokens:
        yield f"    {vocabulary.decode(inputs[:1])}"
        inputs = inputs[1:]
    for item in inputs.reshape(-1, layout.semantic_id_length):
        text = vocabulary.decode(item)
        yield f"    {text}  {titles.get(text, '')}".rstrip()
    text = vocabulary.decode(example["targets"])
    yield f"  targets {' '.join(map(str, example['targets']))}"
    yield f"    {text}  {titles.get(text, '')}".rstrip()


def _texts_of_items(shop: object, vocabulary: seqio.Vocabulary) -> dict[str, str]:
    """Each Semantic ID's text to its item's id and title, where these are known."""
    if not isinstance(shop, WorkdirShop):
        return {}
    items = PreparedData.load(shop.workdir / "data").items
    names = items.column_names
    titles = items["title"].to_pylist() if "title" in names else [""] * len(items)
    tokens = shop.layout.tokens_of(shop.table.codes)
    return {
        vocabulary.decode(row): f"{item_id}  {title or ''}".rstrip()
        for row, item_id, title in zip(tokens, shop.table.item_ids, titles, strict=True)
    }


if __name__ == "__main__":
    outlive_readers()
    sys.exit(main(sys.argv[1:]))
