"""The only glue: one file and one gin root per stage."""
