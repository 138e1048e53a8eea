"""The model in the shape t5x expects, without importing t5x."""
