"""Stage export takes only parts that belong together."""

import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.errors import InputError
from tiger_jax.recommending.parts import Parts
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export


def test_a_quantizer_that_gives_other_codes_is_refused(tmp_path):
    workdir = make_trained_workdir(tmp_path, with_quantizer=True)
    assert Parts.of_workdir(workdir).quantizer is not None
    path = workdir / "rqvae" / "arrays" / "codebook_0.npy"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(InputError, match="rqvae gives only 0.0% of the items"):
        Parts.of_workdir(workdir)


def test_vectors_quantized_beside_the_text_are_counted(tmp_path):
    """The vectors that were quantized beside the text are counted."""
    workdir = make_trained_workdir(tmp_path, with_quantizer=True, collaborative_dims=2)
    parts = Parts.of_workdir(workdir)
    assert parts.collaborative_dims == 2
    assert parts.coder().encode(parts.embeddings[:3]).shape == (3, 3)


def test_peer_codes_leave_the_bundle_without_a_quantizer(tmp_path):
    """Codes from elsewhere leave the bundle without a quantizer."""
    assert Parts.of_workdir(make_trained_workdir(tmp_path)).quantizer is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, "must rise from 1 on"),
        ({"batch_sizes": (4, 2)}, "must rise from 1 on"),
        ({"room": 0.5}, "at least 1"),
        ({"max_excluded": 0}, "at least 1"),
        ({"normalize": "no"}, "normalize"),
    ],
)
def test_a_senseless_option_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export(RunContext(tmp_path), **options)
    assert not (tmp_path / "bundle").exists()
