"""Measurements of paper."""
