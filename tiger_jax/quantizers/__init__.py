"""Vectors to codewords: RQ-VAE, k-means, hashes, and the folder each is kept in."""
