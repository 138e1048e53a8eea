"""TIGER: recommender systems with generative retrieval, in JAX."""

__version__ = "0.1.0"
