"""Measure how far an answer is from the right one."""

from typing import Any

import numpy as np


def largest_error(got: Any, want: Any, *, relative: bool = False) -> float:
    """Return the largest difference; infinity where one of the two is infinite or NaN and the other is not.

    If `relative`, it is in units of the right number or of 1, whichever is larger.
    """
    got, want = np.broadcast_arrays(np.asarray(got, np.float64), np.asarray(want, np.float64))
    finite = np.isfinite(want)
    if not np.array_equal(np.where(finite, 0, want), np.where(np.isfinite(got), 0, got), equal_nan=True):
        return float("inf")
    got, want = got[finite], want[finite]
    difference = np.abs(got - want)
    if relative:
        difference = difference / np.maximum(np.abs(want), 1)
    return float(difference.max(initial=0))
