"""Histories in, items out: the searcher, the catalogue, requests and answers."""
