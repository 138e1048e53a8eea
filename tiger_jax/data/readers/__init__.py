"""Readers of raw shops: one module per kind of folder.

A shop goes through three files: its reader (`files.py`) names the columns, `read_table`
(`data/tables/table.py`) reads each file, and `assemble_shop` (`assemble.py`) makes a
`RawShop` of the tables. `raw_source.py` decides which reader a folder is for.
"""
