"""Trie-constrained beam search and exact scoring; knows no model."""
