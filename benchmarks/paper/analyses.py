"""What else is asked of a trained work directory: one command per question.

    python -m benchmarks.paper.analyses invalid_ids --workdir=runs/beauty

*   `checkpoints`: every checkpoint that was kept, on all validation users, beside what
    training saw of its sample: what choosing by a sample costs.
*   `code_quality`: use, collisions and purity of the codes, and how well neighbours
    over what the codes say of the items do, beside the recommender's recall.
*   `cold_start`: recall of items that the training has never seen, as epsilon grows.
*   `curve`: what validation said while training went on. Nothing is computed.
*   `diversity`: Entropy@K of categories, recall and coverage, when lists are drawn at
    a temperature instead of searched (Rajput et al. 2023, 4.3 and table 4). The paper
    samples with replacement level by level; here the items of a list differ.
*   `invalid_ids`: the share of Semantic IDs that no item has among the K best of a
    search that knows no catalogue (4.5 and figure 6), and what the constraint does and
    how long the constrained search takes.
*   `new_items`: what a day's new items cost each method before they can be listed.
*   `ranking_weights`: all weights of the dense head that training chooses among, with
    the users' own items masked.
*   `segments`: recall by history, target and whether training showed the step between
    them, beside SASRec and co-occurrence where the work directory has a `sasrec/`.
*   `vectors`: nearest neighbours over text, collaborative and joined vectors: what
    there is for codes to say.

On validation users, so that the test split stays unread, but for `cold_start`. One JSON
row per case; `python -m benchmarks.paper` runs them after the trainings of its plan.
"""

import functools
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper import cold_start, experiments
from benchmarks.paper.study import Study, cell_of, interval, join, recall_facts
from tiger_jax.data.item_vectors import (
    join_text,
    load_collaborative,
    load_embeddings,
    load_quantized_vectors,
)
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.evaluation import diversity, evaluator
from tiger_jax.evaluation.baselines.item_cooccurrence import ItemCooccurrence
from tiger_jax.evaluation.baselines.sasrec import TrainedSasRec
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.evaluation.metrics import recall_at_k
from tiger_jax.models.generator import has_dense_head
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.recommending import validation
from tiger_jax.recommending.trained_model import (
    CHECKPOINTS,
    ModelCard,
    load_card_and_table,
    load_content,
    load_recommender,
)
from tiger_jax.training.checkpoints import STEP_PREFIX
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

BEAMS = (10, 20, 50, 100)
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)  # 0 stands for beam search
CUTOFFS = (10, 20, 50)
ABLATIONS = ("paper_experiments", "two_level_experiments")
BOTH = ("recall@10", "ndcg@10")
MANY_USERS = 1_000_000_000


def measure_invalid_ids(study: Study, beams: Sequence[int] = BEAMS) -> Iterator[Row]:
    """By codes, with and without the catalogue's constraint, for numbers of beams."""
    for num_beams in beams:
        ours, what = study.load(num_beams).by_codes_alone(), f"{num_beams} beams"
        free = study.evaluate(ours.recommend_unconstrained, num_beams, what)
        share = free.num_invalid / max(1, free.num_listed)
        study.evaluate(ours, num_beams, "once, to compile")
        started = time.perf_counter()
        bound = study.evaluate(ours, num_beams, what)
        ms = 1000 * (time.perf_counter() - started) / len(bound.ranks)
        yield {
            "case": {"beams": num_beams},
            **join(
                {"metrics": {"invalid IDs": share, "ms a user": ms}},
                recall_facts(free, study.seed, BOTH, ", unconstrained"),
                recall_facts(bound, study.seed, BOTH, ", trie"),
            ),
        }


def measure_diversity(
    study: Study, temperatures: Sequence[float] = TEMPERATURES
) -> Iterator[Row]:
    """Lists at each temperature, by codes, which are what is sampled."""
    longest = max(CUTOFFS) + 1
    ours = study.load(longest).by_codes_alone()
    categories = study.data.category_of_items()
    for temperature in temperatures:
        recommend: Any = ours
        if temperature:
            recommend = functools.partial(
                ours.sample,
                temperature=temperature,
                rng=np.random.default_rng(study.seed),
            )
        found = study.evaluate(recommend, longest, f"temperature {temperature:g}")
        facts = recall_facts(found, study.seed)
        for k in CUTOFFS:
            values = diversity.category_entropy(found.item_numbers, categories, k)
            facts["metrics"][f"entropy@{k}"] = float(values.mean())
            facts["intervals"][f"entropy@{k}"] = interval(values, study.seed)
            facts["metrics"][f"coverage@{k}"] = diversity.catalogue_coverage(
                found.item_numbers, study.data.num_items, k
            )
        yield {"case": {"temperature": temperature}, **facts}


def measure_checkpoints(study: Study) -> Iterator[Row]:
    """Each kept checkpoint, by the search with which training validates.

    Of data whose newest interactions were left out (`SplitsConfig.left_out`) on its
    own test split, own items masked: what the choice means there, whichever it is.
    """
    recommender = study.workdir / "recommender"
    chosen = ModelCard.load(recommender).best_step
    said = {r["case"]["updates"]: r["metrics"] for r in measure_curve(study)}
    is_free = bool(study.data.statistics.get("left_out"))
    held_out = study.data.test if is_free else study.data.validation
    study.users, _ = evaluator.sample_users(held_out, None, seed=0)
    names = (path.name for path in (recommender / CHECKPOINTS).iterdir())
    kept = (re.fullmatch(rf"{STEP_PREFIX}_(\d+)", name) for name in names)
    for step in sorted(int(match[1]) for match in kept if match):
        seen = said.get(step, {})
        facts: list[Row] = [
            {"metrics": {f"{k}, in training": v for k, v in seen.items()}}
        ]
        ours = study.load(study.num_beams, step, seen)
        ways = {"": ours.by_codes_alone()}
        if ours.dense_weights.item:
            ways["_with_dense"] = ours
        for suffix, way in ways.items():
            found = study.evaluate(
                way, study.num_beams, f"step {step:,}{suffix}", masked=is_free
            )
            facts.append(recall_facts(found, study.seed, BOTH, suffix))
        yield {
            "case": {"updates": step, "chosen": "yes" if step == chosen else ""},
            "users": len(study.users.targets),
            "split": "test, newest left out" if is_free else "validation",
            **join(*facts),
        }


def measure_curve(study: Study) -> Iterator[Row]:
    """The evaluations that training logged."""
    users = study.trained.config["validation"]["num_users"]
    for row in lib.read_rows(study.workdir / "recommender" / "metrics.jsonl"):
        if "validation/loss" in row:
            names = [name for name in row if name.startswith("validation/")]
            yield {
                "case": {"updates": row["step"]},
                "users": min(users, len(study.data.validation.targets)),
                "metrics": {name.partition("/")[2]: row[name] for name in names},
                "intervals": {},
            }


def measure_ranking_weights(study: Study) -> Iterator[Row]:
    """What training computed of its best parameters when it chose the weights."""
    data, trained = study.data, study.workdir / "recommender"
    partitioner = Partitioner()
    card, table = load_card_and_table(study.workdir, data)
    _, _, model, params = load_recommender(trained, sharding=partitioner.replicated)
    if not has_dense_head(model.config):
        raise InputError(f"the model in {trained} has no dense head to be weighed")
    found: dict[tuple[float, float], dict[str, float]] = {}
    sample = validation.ValidationSample.of_users(
        data.validation,
        table,
        card.layout,
        num_users=study.max_users,
        max_items=card.max_items,
        user_hashes=data.user_hashes,
        seed=study.seed,
        with_items=True,
    )
    validation.make_evaluate_fn(
        model,
        table,
        sample,
        validation.ValidationConfig(num_beams=study.num_beams),
        partitioner,
        load_content(study.workdir, data.num_items),
        data.occurrences,
        found.update,
    )(params)
    for (item, popularity), metrics in found.items():
        case = {"weight of log p(item)": item, "popularity": popularity}
        yield {"case": case, "metrics": metrics, "intervals": {}}


def measure_vectors(study: Study) -> Iterator[Row]:
    """Nearest by text, and by what is joined to it, where there is something."""
    text = load_embeddings(study.workdir / "embeddings", study.data.num_items)
    kinds = {"text": text}
    if (other := load_collaborative(study.workdir / "rqvae")) is not None:
        kinds |= {"collaborative": other, "joined": join_text(text, other)}
    for name, vectors in kinds.items():
        facts = _neighbours(study, vectors, f"nearest by {name}")
        case = {"vectors": f"{name} ({vectors.shape[1]})"}
        yield {"case": case, **facts}


def _neighbours(study: Study, vectors: np.ndarray, what: str) -> Row:
    recommend = build_semantic_knn(np.asarray(vectors, np.float32))
    found = study.evaluate(recommend, 21, what, masked=True)
    return recall_facts(found, study.seed, BOTH)


def measure_code_quality(study: Study) -> Iterator[Row]:
    """One row. *Neighbours* are over what the codewords alone say of each vector.

    That is the sum of a vector per codeword of each level, fitted to the vectors by
    least squares: it is defined for every kind of codes, random ones included.
    """
    codes = load_card_and_table(study.workdir, study.data)[1].codes[:, :-1]
    text = load_embeddings(study.workdir / "embeddings", study.data.num_items)
    vectors = np.asarray(load_quantized_vectors(text, study.workdir / "rqvae"))
    starts = np.cumsum([0, *codes.max(0)[:-1] + 1])
    is_on = np.zeros((len(codes), int((codes.max(0) + 1).sum())), np.float32)
    np.put_along_axis(is_on, codes + starts, 1.0, axis=1)
    gram = is_on.T @ is_on + 1e-3 * np.eye(is_on.shape[1], dtype=np.float32)
    said = is_on @ np.linalg.solve(gram, is_on.T @ vectors.astype(np.float32))
    quality = read_json(study.workdir / "rqvae" / "quality.json")
    levels = quality["levels"]
    ours = study.load(study.num_beams)
    found = study.evaluate(ours, 21, "the recommender", masked=True)
    facts = {
        "use": min(level["use"] for level in levels),
        "perplexity, first": levels[0]["perplexity"],
        "collisions": quality["collision_rate"],
        "purity, first": levels[0]["category_purity"] or 0.0,
        "variance said": 1 - float(((vectors - said) ** 2).sum() / _spread(vectors)),
    }
    near = _neighbours(study, said, "nearest by codes")["metrics"]
    facts |= {f"neighbours' {name}": value for name, value in near.items()}
    ranked = recall_facts(found, study.seed, BOTH)
    case = {"codes": study.workdir.parent.name}
    yield {"case": case, **join({"metrics": facts}, ranked)}


def _spread(vectors: np.ndarray) -> float:
    return float(((vectors - vectors.mean(0)) ** 2).sum())


def measure_segments(study: Study) -> Iterator[Row]:
    """Who finds which targets; own items masked."""
    data, users = study.data, study.users
    parts: dict[str, Any] = {"TIGER": study.load(study.num_beams)}
    others = [ItemCooccurrence()]
    if (study.workdir / "sasrec" / artifacts.MANIFEST).is_file():
        others.append(TrainedSasRec())
    parts |= {o.title_in(study.workdir): o.build(data, study.workdir) for o in others}
    hits = {
        name: recall_at_k(study.evaluate(part, 21, name, masked=True).ranks, 10)
        for name, part in parts.items()
    }
    counts = data.occurrences[users.targets]
    last = users.histories.items[users.histories.offsets[1:] - 1]
    inside = np.repeat(np.arange(data.train.num_users), data.train.lengths)
    is_step = inside[1:] == inside[:-1]
    pairs = data.train.items[:-1].astype(np.int64) * data.num_items
    steps = np.unique((pairs + data.train.items[1:])[is_step])
    is_known = np.isin(last.astype(np.int64) * data.num_items + users.targets, steps)
    kinds: tuple[tuple[str, np.ndarray, tuple[int, ...]], ...] = (
        ("items in the history", users.histories.lengths, (1, 4, 6, 11, 21)),
        ("the target in training", counts, (0, 1, 6, 21, 101)),
        ("this step in training", is_known.astype(int), (0, 1)),
    )
    for by, values, edges in kinds:
        for low, high in itertools.zip_longest(edges, edges[1:]):
            rows = (values >= low) & ((values < high) if high else True)
            if not rows.any():
                continue
            ends = f"{low}–{high - 1}" if high else f"{low} or more"
            yield {
                "case": {"by": by, "from": low if high == low + 1 else ends},
                "users": int(rows.sum()),
                "metrics": {n: float(own[rows].mean()) for n, own in hits.items()},
                "intervals": {
                    n: interval(v[rows], study.seed) for n, v in hits.items()
                },
            }


def measure_new_items(study: Study) -> Iterator[Row]:
    """Seconds until as many new items as 1 % of the catalogue can be listed.

    Their vectors are given. What has to be trained anew for them took what it took.
    """
    data, workdir = study.data, study.workdir
    text = load_embeddings(workdir / "embeddings", data.num_items)
    vectors = load_quantized_vectors(text, workdir / "rqvae")[: -(-len(text) // 100)]
    _, table = load_card_and_table(workdir, data)
    quantizer = load_quantizer(workdir / "rqvae")

    def take_in() -> None:
        quantizer.encode(vectors)
        Trie.build(table.codes, table.codebook_sizes)

    methods: dict[str, Callable[[], Any]] = {
        "TIGER: codes, and the trie built anew": take_in,
        "Semantic KNN: vectors": lambda: build_semantic_knn(np.asarray(text)),
        "Item co-occurrence: counted anew": lambda: ItemCooccurrence().build(
            data, workdir
        ),
    }
    for method, act in methods.items():
        act()  # what is compiled was compiled before the day came
        started = time.perf_counter()
        act()
        seconds = time.perf_counter() - started
        case = {"method": method}
        yield {"case": case, "users": None, "metrics": {"seconds": seconds}}
    for folder, name in (("sasrec", "SASRec"), ("recommender", "TIGER")):
        if (workdir / folder / artifacts.MANIFEST).is_file():
            made = artifacts.load_manifest(workdir / folder, verify=False)
            case = {"method": f"{name}: trained anew"}
            seconds = made.summary["seconds"]
            yield {"case": case, "users": None, "metrics": {"seconds": seconds}}


class Analysis(NamedTuple):
    """How it is measured, on how many users, and which metrics its table has.

    Attributes:
        panels: Metrics drawn over the case, for each part of a picture.
    """

    measure: Callable[[Study], Iterable[Row]]
    users: int = 5000
    shown: tuple[str, ...] = ()
    panels: tuple[tuple[str, ...], ...] = ()


_WITH_DENSE = tuple(f"{name}_with_dense" for name in BOTH)
ANALYSES = {
    "checkpoints": Analysis(
        measure_checkpoints,
        1,
        ("loss, in training", "recall@10, in training", *BOTH, *_WITH_DENSE),
    ),
    "code_quality": Analysis(measure_code_quality),
    "cold_start": Analysis(cold_start.measure, 2000, cold_start.SHOWN),
    "curve": Analysis(measure_curve, 1, ("loss", *BOTH, *_WITH_DENSE), (BOTH,)),
    "diversity": Analysis(
        measure_diversity,
        1000,
        (*(f"entropy@{k}" for k in CUTOFFS), "recall@10", "coverage@10"),
        (tuple(f"entropy@{k}" for k in CUTOFFS), ("recall@10",)),
    ),
    "invalid_ids": Analysis(
        measure_invalid_ids,
        1000,
        (
            *("invalid IDs", "recall@10, unconstrained", "recall@10, trie"),
            *("ndcg@10, trie", "ms a user"),
        ),
        (("invalid IDs",), ("recall@10, unconstrained", "recall@10, trie")),
    ),
    "new_items": Analysis(measure_new_items, 1),
    "ranking_weights": Analysis(measure_ranking_weights, MANY_USERS, BOTH),
    "segments": Analysis(measure_segments),
    "vectors": Analysis(measure_vectors, 5000, BOTH),
}


def measure(name: str, workdir: Path, seed: int, max_users: int) -> list[Row]:
    """The rows of an analysis."""
    study, rows = Study(workdir, max_users=max_users, seed=seed), []
    started = time.perf_counter()
    for row in ANALYSES[name].measure(study):
        minutes = round((time.perf_counter() - started) / 60, 2)
        about = {"analysis": name, "seed": seed, **study.about, "minutes": minutes}
        about["intervals"] = {}
        rows.append(about | row)
        started = time.perf_counter()
    return rows


def groups_of(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by some of their fields, in the order in which these first appear."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return found


def build_table(name: str, rows: Sequence[Row]) -> str:
    """The rows as Markdown, seeds together, and what they are of.

    What compares runs has them in one table, all else has a table of each.
    """
    parts = [_correlate(rows)] if name == "code_quality" else []
    is_of_runs = name in (*ABLATIONS, "code_quality")
    by = ("data", "budget", *["run"] * (not is_of_runs))
    for (data, budget, *run), own in groups_of(rows, *by).items():
        metrics = dict.fromkeys(k for row in own for k in row["metrics"])
        wanted = experiments.SHOWN if name in ABLATIONS else ANALYSES[name].shown
        shown = [k for k in wanted or metrics if k in metrics]
        by_case: dict[tuple[Any, ...], list[Row]] = {}
        for row in own:
            by_case.setdefault(tuple(row["case"].values()), []).append(row)
        cells = [
            [*map(_plain, case), *(cell_of(of, k) for k in shown)]
            for case, of in by_case.items()
        ]
        seeds = sorted({row["seed"] for row in own})
        users = {row["users"] for row in own if isinstance(row["users"], int)}
        commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in own))
        facts = [
            data,
            *(f"`{one}`" for one in run),
            f"budget {budget}",
            own[0]["split"],
            *([f"{users.pop():,} users"] if len(users) == 1 else []),
            _which(seeds),
            f"on {own[0]['device']}",
            f"commit {commits}",
        ]
        if name not in ABLATIONS:
            facts.append(f"by `python -m benchmarks.paper.analyses {name} --workdir=…`")
        align = "|" + ("---|" if is_of_runs else "--:|") * len(own[0]["case"]) + "---|"
        table = lib.markdown_table([*own[0]["case"], *shown], cells, align)
        parts.append("\n".join([*table, "", ", ".join(facts) + "."]))
    return "\n\n".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _which(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return f"means ± 95 % intervals of the mean over {len(seeds)} seeds"
    return f"seed {seeds[0]}, 95 % bootstrap intervals over users"


def _correlate(rows: Sequence[Row]) -> str:
    """How each measure of the codes goes with the recommender's recall over runs."""
    from scipy import stats

    lines = []
    by_run = groups_of(rows, "data", "run", "budget").values()
    means = [
        {k: float(np.mean([r["metrics"][k] for r in own])) for k in own[0]["metrics"]}
        for own in by_run
    ]
    for metric in [k for k in means[0] if k not in BOTH]:
        of = [(m[metric], m["recall@10"]) for m in means]
        if len(of) > 2 and len({value for value, _ in of}) > 1:
            found = stats.spearmanr(*zip(*of, strict=True))
            lines.append([metric, f"{found.statistic:+.2f}", f"{found.pvalue:.2g}"])
    titles = ["measure", f"rank correlation with recall@10, {len(means)} runs", "p"]
    return "\n".join(lib.markdown_table(titles, lines, "|---|--:|"))


def draw(name: str, rows: Sequence[Row], file: Path) -> None:
    """One picture of the first run's rows: metrics over what was varied."""
    if name == "cold_start" or name in ABLATIONS:
        (cold_start if name == "cold_start" else experiments).draw(rows, file)
        return
    panels = ANALYSES[name].panels
    own = next(iter(groups_of(rows, "data", "run", "budget").values()))
    x = next(iter(own[0]["case"]))
    with lib.draw(file, 1, len(panels), figsize=(4.5 * len(panels), 3.4)) as (_, axes):
        for place, metrics in zip(axes[0], panels, strict=True):
            for metric in metrics:
                at = [row["case"][x] for row in own if metric in row["metrics"]]
                of = [r for r in own if metric in r["metrics"]]
                values = [row["metrics"][metric] for row in of]
                seeds = len({row["seed"] for row in own})
                style = "o-" if seeds == 1 else "o"
                place.plot(at, values, style, label=metric, markersize=4)
                if seeds == 1 and all(metric in row["intervals"] for row in of):
                    ends = zip(*(row["intervals"][metric] for row in of), strict=True)
                    place.fill_between(at, *ends, alpha=0.2)
            place.set(xlabel=x, ylim=(0, None))
            place.grid(alpha=0.3)
            place.legend(frameon=False)


def main() -> None:
    """Prints the rows as JSON."""
    parser = lib.make_parser(__doc__, "workdir", "seed", "rows")
    add = parser.add_argument
    add("analysis", choices=list(ANALYSES))
    add("--max_users", type=int, help="fewer than usual, or more")
    options = parser.parse_args()
    users = options.max_users or ANALYSES[options.analysis].users
    for row in measure(options.analysis, options.workdir, options.seed, users):
        lib.report(row, options.rows)


if __name__ == "__main__":
    lib.run(main)
