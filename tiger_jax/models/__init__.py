"""Flax modules, each beside its loss; pure functions of arrays."""
