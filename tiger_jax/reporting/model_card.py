"""The README of a bundle: what it is and how it does, as the hub shows it."""

import json
from pathlib import Path

import jax

from tiger_jax import __version__
from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation.record import OUR_TITLE, read_record, title_of
from tiger_jax.recommending.parts import Parts
from tiger_jax.workdir import artifacts

_COLUMNS = tuple(
    (split, metric, f"{metric}{', own items left out' * (split == 'test_masked')}")
    for split in ("test", "test_masked")
    for metric in ("recall@10", "ndcg@10")
)


def build_model_card(workdir: Path, parts: Parts) -> str:
    """Markdown about the recommender that a work directory holds.

    What was measured is told only of this very recommender.
    """
    data = PreparedData.load(workdir / "data")
    made = artifacts.load_manifest(workdir / "recommender", verify=False)
    name = " ".join(data.name.split())
    size = sum(leaf.size for leaf in jax.tree.leaves(parts.params))
    history = ", ".join(json.dumps(item) for item in data.item_ids[:2])
    interactions = len(data.histories.items)
    return f"""---
library_name: tiger_jax
tags: [recommendation, generative-retrieval, semantic-ids, jax]
---

# TIGER on {name}

A generative recommender: it reads a history of items and spells the Semantic IDs of
what follows. {size:,} parameters; {data.num_items:,} items with Semantic IDs over
codebooks of {", ".join(map(str, parts.table.codebook_sizes))} codewords; it reads the
last {parts.max_items} items of a history.

With tiger_jax {__version__} and its extra `hub`:

```python
from tiger_jax import Recommender

recommender = Recommender.load("hf://OWNER/NAME")
recommender.recommend([{history}], k=10).items
```

## What it was measured to do

{_results(workdir, made)}

## What it was made from

{data.num_users:,} users and {interactions:,} interactions with these items. The bundle
holds the items' ids, titles and prices, and a 32-bit hash of every user's id: look
whether you may publish them. It knows nothing beyond what these users did, popular
items come out more often than others, and what it does for other people is not known.

## How it was made

Training: code `{made.made["commit"]}` on {made.made["devices"]}, content
`{made.content_hash[:12]}`. Every file's SHA-256 is in `manifest.json` and is checked
whenever the bundle is loaded; nothing in it is pickled.
"""


def _results(workdir: Path, made: artifacts.Manifest) -> str:
    folder = workdir / "evaluation"
    measured = read_record(folder)
    if measured is not None:
        inputs = artifacts.load_manifest(folder, verify=False).inputs
        if inputs.get("recommender") != made.content_hash:
            measured = None
    if measured is None:
        return "Nothing has been measured."
    rows = [(OUR_TITLE, measured)]
    rows += [(title_of(measured, n), v) for n, v in measured["baselines"].items()]
    lines = [f"| test | {' | '.join(title for *_, title in _COLUMNS)} |"]
    lines.append("|---|" + "--:|" * len(_COLUMNS))
    for title, splits in rows:
        cells = (splits.get(split, {}).get(metric) for split, metric, _ in _COLUMNS)
        shown = ("–" if value is None else f"{value:.4f}" for value in cells)
        lines.append(f"| {title} | {' | '.join(shown)} |")
    settings = measured["settings"]
    lines += ["", f"{settings['users']:,} users; {settings['catalogue']}."]
    return "\n".join(lines)
