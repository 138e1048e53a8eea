"""Measurements: each module prints one JSON row a measurement."""
