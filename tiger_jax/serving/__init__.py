"""Histories in, items out: bundle, recommender, catalogue updates, HTTP."""
