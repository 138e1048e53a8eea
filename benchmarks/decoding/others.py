"""Other ways to the same items: Hugging Face `generate`, and dense vectors."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.decoding.cases import RealModel
from tiger_jax.t5x_bridge.t5_weights import t5_config

DIM = 64  # of the dense vectors


class HfGenerate:
    """`generate` of a T5 of the same sizes, on the same histories."""

    def __init__(self, model: RealModel, codes: np.ndarray, beams: int) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        config, layout = model.config, model.layout
        self.torch, self.beams = torch, beams
        self.length = layout.semantic_id_length
        torch.manual_seed(0)
        self.model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**t5_config(config, layout))
        ).eval()
        self.children: dict[tuple[int, ...], list[int]] = {}
        for row in layout.tokens_of(codes).tolist():
            for level, token in enumerate(row):
                self.children.setdefault(tuple(row[:level]), []).append(token)
        for prefix, tokens in self.children.items():
            self.children[prefix] = sorted(set(tokens))

    def run(self, inputs: jax.Array, *, is_constrained: bool) -> Callable[[], Any]:
        torch = self.torch
        tokens = torch.tensor(np.asarray(inputs), dtype=torch.long)
        options: dict[str, Any] = {}
        if is_constrained:

            def allowed(batch: int, decoded: Any) -> list[int]:
                del batch
                return self.children.get(tuple(decoded.tolist()[1:]), [0])

            options["prefix_allowed_tokens_fn"] = allowed

        def decode() -> Any:
            with torch.inference_mode():
                return self.model.generate(
                    input_ids=tokens,
                    attention_mask=tokens != 0,
                    num_beams=self.beams,
                    num_return_sequences=self.beams,
                    max_new_tokens=self.length,
                    min_new_tokens=self.length,
                    do_sample=False,
                    early_stopping=True,
                    **options,
                )

        return decode


class FaissIndex:
    """Nearest neighbours among dense vectors of the items; no model is run."""

    def __init__(self, items: int, kind: str) -> None:
        import faiss

        self.rng = np.random.default_rng(0)
        if kind == "flat":
            self.index = faiss.IndexFlatIP(DIM)
        else:
            self.index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        self.index.add(self.draw(items))

    def draw(self, count: int) -> np.ndarray:
        return self.rng.normal(size=(count, DIM)).astype(np.float32)

    def run(self, batch: int, results: int) -> Callable[[], Any]:
        queries = self.draw(batch)
        return lambda: self.index.search(queries, results)
