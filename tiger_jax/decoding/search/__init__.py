"""Searching a trie: by beams, exactly, by sampling; knows no model."""

from tiger_jax.decoding.search.beam_search import beam_search as beam_search
from tiger_jax.decoding.search.candidates import BeamResult as BeamResult
from tiger_jax.decoding.search.candidates import Normalize as Normalize
from tiger_jax.decoding.search.exact_scoring import CatalogueWalk as CatalogueWalk
from tiger_jax.decoding.search.exact_scoring import exact_search as exact_search
from tiger_jax.decoding.search.exact_scoring import score_catalogue as score_catalogue
from tiger_jax.decoding.search.given_items import (
    find_allowed_items as find_allowed_items,
)
from tiger_jax.decoding.search.given_items import score_items as score_items
from tiger_jax.decoding.search.sampling import (
    sample_distinct_items as sample_distinct_items,
)
from tiger_jax.decoding.search.unconstrained import (
    unconstrained_search as unconstrained_search,
)
