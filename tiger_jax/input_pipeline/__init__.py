"""Training examples, from seqio tasks or resident on the device."""
