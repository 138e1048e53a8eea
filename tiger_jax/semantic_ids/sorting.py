"""Sorting integers by radix: NumPy sorts 16 bits at a time, in linear time."""

import numpy as np
from jaxtyping import Integer, UInt16

DIGIT_BITS = 16


def radix_digits(keys: Integer[np.ndarray, " N"]) -> list[UInt16[np.ndarray, " N"]]:
    """The digits of numbers from 0 on, lowest first: as many as the largest needs."""
    digits, highest = [], int(keys.max(initial=0))
    while highest or not digits:
        digits.append((keys >> (DIGIT_BITS * len(digits))).astype(np.uint16))
        highest >>= DIGIT_BITS
    return digits


def sort_rows(keys: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """The order of numbers from 0 on; equal ones as they stand."""
    return np.lexsort(radix_digits(keys))  # the last counts first
