"""Files as tables: one module per format, and `read_table` over all of them."""
