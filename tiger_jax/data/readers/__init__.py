"""Raw shops of every known form: a reader per form, one checked path for all."""
