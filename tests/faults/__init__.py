"""Campaigns of faults: kills, damaged storage, hostile input, long runs.

`make faults` runs them all, for hours, and prints a table; `make test` tries each a
few times. A module a kind of fault; `campaign.py` counts.
"""

import sys
from pathlib import Path

# Helpers that lie beside other rooms' tests, where pytest finds them by itself.
sys.path += [
    str(Path(__file__).parents[1] / room)
    for room in ("", "decoding", "serving", "training")
]
