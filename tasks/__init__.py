"""Seqio tasks: TIGER's training examples by name, made from a work directory."""
