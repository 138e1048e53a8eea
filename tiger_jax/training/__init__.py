"""The training engine: mesh, optimizers, steps, loop; knows no model."""
