"""The folder that a fitted quantizer is kept in: ``quantizer.json`` and ``arrays/``."""

from pathlib import Path
from typing import Any

from tiger_jax.extensions import class_name, find_class
from tiger_jax.quantizers.hashing import HashedCodes, Hyperplanes
from tiger_jax.quantizers.quantizer import Quantizer
from tiger_jax.quantizers.residual_kmeans import ResidualCodebooks
from tiger_jax.quantizers.rqvae_quantizer import RqVaeQuantizer
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

_QUANTIZER, _ARRAYS = "quantizer.json", "arrays"
# Found by their kind alone, wherever the class has moved to.
_OURS: tuple[Any, ...] = (ResidualCodebooks, Hyperplanes, HashedCodes, RqVaeQuantizer)


def save_quantizer(quantizer: Quantizer, folder: Path) -> None:
    """Writes ``quantizer.json`` and ``arrays/``."""
    arrays, cls = quantizer.to_arrays(), type(quantizer)
    save_arrays(folder / _ARRAYS, arrays)
    facts = {
        "kind": quantizer.kind,
        "codebook_sizes": list(quantizer.codebook_sizes),
        "settings": quantizer.settings(),
        "arrays": sorted(arrays),
    }
    if cls not in _OURS:
        facts["class"] = class_name(cls)
    write_json(folder / _QUANTIZER, facts)


def load_quantizer(folder: Path) -> Quantizer:
    """Reads what `save_quantizer` wrote; InputError if not whole, or no such class."""
    folder = Path(folder)
    with reading(folder):
        facts = read_json(folder / _QUANTIZER)
        arrays = load_arrays(folder / _ARRAYS, facts["arrays"])
        if name := facts.get("class"):
            cls = find_class(name, folder / _QUANTIZER)
        else:
            cls = {cls.kind: cls for cls in _OURS}[facts["kind"]]
        return cls.from_arrays(arrays, facts["settings"])
