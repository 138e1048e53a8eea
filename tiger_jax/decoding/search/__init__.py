"""Searching a trie: by beams, exactly, by sampling; knows no model."""
