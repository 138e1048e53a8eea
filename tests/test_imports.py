"""Which rooms pull in which heavy packages, seen from fresh processes."""

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CORE = "models training decoding semantic_ids evaluation".split()
BLOCKED = (
    "tensorflow seqio torch clu transformers sentence_transformers sklearn scipy "
    "pandas pyarrow matplotlib tqdm tensorboardX jinja2 tensorflow_datasets"
).split()

BLOCKER = f"""
    import importlib, pkgutil, sys

    class Bare:
        "A finder that does not find the blocked packages, as if not installed."

        def __init__(self, finder):
            self.finder = finder

        def __getattr__(self, name):
            return getattr(self.finder, name)

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {BLOCKED!r}:
                return None
            return self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
"""


def run_in_bare_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKER) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_core_module_imports_on_a_bare_machine():
    run_in_bare_process(
        f"""
        for room in {CORE!r}:
            package = importlib.import_module("tiger_jax." + room)
            name = package.__name__ + "."
            for module in pkgutil.walk_packages(package.__path__, name):
                importlib.import_module(module.name)
        """
    )


def test_a_bare_machine_trains_decodes_and_evaluates_from_arrays(tmp_path):
    printed = run_in_bare_process(
        f"""
        from pathlib import Path

        import jax
        import numpy as np

        from tiger_jax.decoding.search import beam_search
        from tiger_jax.decoding.trie import Trie
        from tiger_jax.evaluation.metrics import compute_metrics, ranks_in_lists
        from tiger_jax.histories import Histories
        from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
        from tiger_jax.models.generator import (
            init_params, make_decode_fns, make_loss_fn
        )
        from tiger_jax.models.tiger import Tiger, TigerConfig
        from tiger_jax.semantic_ids.encoder_inputs import encode_histories
        from tiger_jax.semantic_ids.token_ids import TokenLayout
        from tiger_jax.training.loop import LoopConfig, train
        from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
        from tiger_jax.training.partitioning import Partitioner

        # A shop in which item i is always followed by item i + 1.
        num_items, sizes = 16, (4, 4, 2)
        numbers = np.arange(num_items)
        codes = np.stack([numbers // 4, numbers % 4, 0 * numbers], 1).astype(np.int32)
        histories = Histories.from_lists(
            [[(u + j) % num_items for j in range(6)] for u in range(num_items)]
        )
        layout = TokenLayout(sizes, 0)
        model = Tiger(
            TigerConfig(
                num_encoder_layers=1, num_decoder_layers=1, d_model=32, num_heads=2,
                head_dim=16, mlp_dim=64, dropout_rate=0.0,
            ),
            layout,
        )
        result = train(
            loss_fn=make_loss_fn(model),
            init_fn=lambda key: init_params(model, key),
            optimizer=make_optimizer(
                OptimizerConfig(schedule="constant", learning_rate=0.03,
                                warmup_steps=1), 150
            ),
            input=ResidentInput(
                histories, codes, layout,
                ResidentConfig(batch_size=32, microbatch_size=32, max_items=3,
                               bucket_items=()),
            ),
            evaluate_fn=lambda params: {{"loss": 0.0}},
            partitioner=Partitioner(),
            config=LoopConfig(total_steps=150, log_every=50, evaluate_every=150,
                              checkpoint_every=150, best_metric="loss"),
            folder=Path({str(tmp_path)!r}),
        )
        inputs = encode_histories(histories.last(3), codes, layout)
        init_decode, decode_step = make_decode_fns(model)
        search = jax.jit(
            lambda params, inputs, trie: beam_search(
                params, inputs, trie, init_decode=init_decode,
                decode_step=decode_step, num_beams=4,
            )
        )
        found = search(result.state.params, inputs, Trie.build(codes, sizes))
        targets = ((numbers + 6) % num_items).astype(np.int32)
        ranks = ranks_in_lists(
            np.asarray(found.item_numbers), np.asarray(found.scores), targets
        )
        print("recall@1", compute_metrics(ranks, ("recall@1",))["recall@1"])
        """
    )
    assert float(printed.split()[-1]) >= 0.9


def test_gin_binds_every_stage_without_tensorflow_or_beam():
    code = """
        import sys
        from tiger_jax.cli import parse_gin
        parse_gin(["demo.gin"], [])
        assert not {"apache_beam", "tensorflow", "torch"} & set(sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_import_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"]]
    lists += setup["options.extras_require"].values()
    names = re.findall(r"^[\w-]+", "\n".join(lists), re.MULTILINE)
    declared = {name.lower().replace("_", "-") for name in names}
    installed = importlib.metadata.packages_distributions()
    ours = ("tiger_jax", "tasks")
    # t5x, which has no release, brings clu.
    exempt = {*sys.stdlib_module_names, *ours, "clu"}
    for path in (p for room in ours for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for name in {module.partition(".")[0] for module in modules} - exempt:
                brings = {d.lower().replace("_", "-") for d in installed.get(name, ())}
                assert not brings or brings & declared, f"{path} imports {name}"
