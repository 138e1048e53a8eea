"""Embeddings to Semantic IDs: quantizers, collisions, the table, tokens."""
