"""The table's lines, in order."""

from faults import (
    bombs,
    fuzzing,
    http_bodies,
    invariants,
    kills,
    lengths,
    power,
    serving,
    storage,
)

FAULTS = [
    *kills.FAULTS,
    *storage.FAULTS,
    *power.FAULTS,
    *serving.FAULTS,
    *fuzzing.FAULTS,
    *http_bodies.FAULTS,
    *bombs.FAULTS,
    *fuzzing.GUIDED_FAULTS,
    *invariants.FAULTS,
    *lengths.FAULTS,
]
