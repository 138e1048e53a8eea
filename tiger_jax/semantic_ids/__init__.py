"""Codewords to Semantic IDs: collisions, the table, token numbers, quality."""
