"""The catalogue's Semantic IDs as a trie: plan, build, levels, files."""
