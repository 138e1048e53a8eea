"""Stage `export_recbole`: data and Semantic IDs as RecBole's files -> `recbole/`."""

import re

import numpy as np

from tiger_jax.data.prepared import PreparedData
from tiger_jax.progress import say
from tiger_jax.recommending.result_files import write_atomic_file
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts

FOLDER = "recbole"

# RecBole's own leave-one-out by time is the split of `data/`: the last item of each
# user is for testing, the one before for validation.
_CONFIG = """\
data_path: {folder}
dataset: {name}
load_col: {{inter: [user_id, item_id, timestamp]}}
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
TIME_FIELD: timestamp
user_inter_num_interval: "[0,inf)"
item_inter_num_interval: "[0,inf)"
eval_args: {{split: {{LS: valid_and_test}}, order: TO, mode: full, group_by: user}}
train_neg_sample_args: ~
"""


def export_recbole(context: RunContext) -> None:
    """Writes the prepared shop as RecBole reads it, so that both see the same data.

    `NAME/NAME.inter` has each interaction with its place in the user's history as
    the timestamp; `NAME/NAME.item` the items' texts and, if there are any, Semantic
    IDs; `NAME.yaml` the settings that give the same leave-one-out split.
    """
    names = ["data"]
    if (context.workdir / "semantic_ids").exists():
        names.append("semantic_ids")
    run = artifacts.begin(
        context.workdir,
        FOLDER,
        stage="export_recbole",
        inputs=names,
        config={},
        opaque=("*.yaml",),  # names the folder that it lies in
    )
    if run.is_current:
        return
    data = PreparedData.load(context.workdir / "data")
    table = None
    if "semantic_ids" in names:
        table = SemanticIdTable.load(context.workdir / "semantic_ids")
    # Fit for a file's name, and for YAML's plain text.
    name = re.sub(r"[^\w-]+", "_", data.name).strip("_") or "shop"
    folder = run.folder / name
    folder.mkdir()
    write_atomic_file(folder / f"{name}.inter", _interactions(data))
    write_atomic_file(folder / f"{name}.item", _items(data, table))
    settings = _CONFIG.format(folder=run.final.resolve(), name=name)
    (run.folder / f"{name}.yaml").write_text(settings, encoding="utf-8")
    run.commit(summary={"interactions": len(data.histories.items)})
    say(f"export_recbole: {run.final / name}, {len(data.histories.items):,} rows")


def _interactions(data: PreparedData) -> dict[str, list[str]]:
    lengths = data.histories.lengths
    users = np.repeat(np.arange(data.num_users), lengths).tolist()
    start = np.repeat(data.histories.offsets[:-1], lengths)
    places = (np.arange(len(data.histories.items)) - start).tolist()
    return {
        "user_id:token": [data.user_ids[user] for user in users],
        "item_id:token": [data.item_ids[i] for i in data.histories.items.tolist()],
        "timestamp:float": [str(place) for place in places],
    }


def _items(data: PreparedData, table: SemanticIdTable | None) -> dict[str, list[str]]:
    found = data.items.to_pydict()
    columns = {
        "item_id:token": list(data.item_ids),
        "title:token_seq": [title or "" for title in found["title"]],
        "categories:token_seq": [
            ", ".join(name for path in paths or () for name in path)
            for paths in found["categories"]
        ],
    }
    if "brand" in found:
        columns["brand:token_seq"] = [brand or "" for brand in found["brand"]]
    if "price" in found:
        columns["price:float"] = ["" if p is None else str(p) for p in found["price"]]
    if table is not None:
        codes = dict(zip(table.item_ids, table.codes.tolist(), strict=True))
        columns["semantic_id:token_seq"] = [
            " ".join(map(str, codes[item_id])) for item_id in data.item_ids
        ]
    return columns
