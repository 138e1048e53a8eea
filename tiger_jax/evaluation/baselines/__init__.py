"""Recommenders that learn nothing, to be measured against."""
