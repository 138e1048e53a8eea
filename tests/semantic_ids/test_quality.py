import json

import numpy as np
import pytest

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.quality import (
    category_purity,
    check_use,
    describe_codes,
    format_quality,
    perplexity,
)

CODES = np.array([[0, 0], [0, 0], [0, 1], [2, 1], [2, 1], [2, 1]], np.int32)
CATEGORIES = ["a", "a", "b", "b", "b", ""]


def test_quality_of_six_items_by_hand():
    quality = describe_codes(
        CODES, (4, 2), categories=CATEGORIES, reconstruction_errors=[0.5, 0.25]
    )
    assert quality["num_items"] == 6
    # Distinct codes: 00, 01, 21.
    assert quality["collision_rate"] == pytest.approx(1 - 3 / 6)
    assert quality["colliding_items"] == 2 + 3
    assert quality["largest_group"] == 3
    first, second = quality["levels"]
    assert (first["codewords_used"], first["use"]) == (2, 0.5)
    assert first["perplexity"] == pytest.approx(2)  # three items each
    assert first["distinct_prefixes"] == 2
    # Codeword 0: two of a, one of b; codeword 2: two of b; one item is unknown.
    assert first["category_purity"] == pytest.approx((2 + 2) / 5)
    assert (second["codewords_used"], second["use"]) == (2, 1.0)
    # Level 1 uses its codewords 2 and 4 times: entropy of (1/3, 2/3).
    entropy = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    assert second["perplexity"] == pytest.approx(np.exp(entropy))
    assert second["distinct_prefixes"] == 3
    assert second["category_purity"] == 1
    assert second["reconstruction_error"] == 0.25
    json.dumps(quality)


def test_shuffled_purity_tells_structure_from_chance():
    """Purity beside its shuffled self tells structure from chance."""
    rng = np.random.default_rng(0)
    groups = rng.integers(20, size=2000)
    unrelated = [f"c{n}" for n in rng.integers(4, size=2000)]
    related = [f"c{n % 4}" for n in groups]
    purity, shuffled = category_purity(groups, unrelated)
    assert purity == pytest.approx(shuffled, abs=0.02)
    purity, shuffled = category_purity(groups, related)
    assert purity == 1
    assert shuffled < 0.4


def test_without_categories_there_is_no_purity():
    assert category_purity(np.array([0, 1]), ["", ""]) == (None, None)
    quality = describe_codes(CODES, (4, 2))
    assert quality["levels"][0]["category_purity"] is None
    assert "-" in format_quality(quality)


def test_perplexity_of_one_codeword_is_one():
    assert perplexity(np.array([0, 7, 0])) == 1


def test_poor_use_is_refused_unless_it_is_accepted():
    quality = describe_codes(CODES, (4, 2))
    with pytest.raises(InputError, match=r"2 of 4 codewords at level 0 .*accept_poor"):
        check_use(quality, accept=False, minimum=0.8)
    warning = check_use(quality, accept=True, minimum=0.8)
    assert "2 of 4" in warning
    assert check_use(quality, accept=False, minimum=0.5) is None


def test_the_printed_block_has_every_number():
    quality = describe_codes(
        CODES, (4, 2), categories=CATEGORIES, reconstruction_errors=[0.5, 0.25]
    )
    block = format_quality(quality)
    for text in ("2/4", "2/2", "0.800", "0.250", "50.00% collisions", "5 of 6"):
        assert text in block
