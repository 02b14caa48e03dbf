"""Numbers in the names of images: whether they are slice numbers, and where in the head they put a slice."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

HIGHEST = 9999  # slices have fewer digits than times, checksums and UIDs
WIDEST = 100  # times as many numbers between the least and the greatest as there are slices of a scan
SHARED = 0.1  # share of the numbers that several scans have, at least, where each scan has a stretch of its own


def believable(numbers: Sequence[Sequence[int]]) -> str:
    """Why the numbers of scans are none of slices, as the end of a sentence; "" where they may be.

    Numbers of slices are small, lie close together and are shared between people: the same number is the same height
    in all heads, more or less. Numbers that run on from one scan to the next are not.
    """
    found = Counter(number for each in numbers for number in set(each))
    if not found:
        return ""
    low, high, length = min(found), max(found), max(map(len, numbers))
    if high > HIGHEST:
        return f"do not look like slice numbers (such as {high})"
    if high - low + 1 > WIDEST * length:
        return f"do not look like slice numbers ({low} to {high}, of {length} slices at most)"
    if len(numbers) > 1:
        shared = sum(count > 1 for count in found.values()) / len(found)
        spans = sum(max(each) - min(each) + 1 for each in numbers)
        if shared < SHARED and spans <= high - low + 1:
            return f"run on from one scan to the next ({low} to {high})"
    return ""


def positions(numbers: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """`[N]` numbers -> `[N]` float32, 0 for the lowest and 1 for the highest."""
    return ((numbers - lowest) / max(highest - lowest, 1)).astype(np.float32)
