"""Divide the steps of a direction into segments: the states of one segment are stored at once."""

import jax.numpy as jnp

from jaxctc._forward_backward.buffers import MARGIN
from jaxctc._lattice.lattices import Lattice

_SMALL = 1 << 20
"""Up to this many bytes, the states of all steps are stored, and none is recomputed."""


def segment_size(frames: int, lattice: Lattice, dtype: jnp.dtype) -> int:
    """Return the number of steps whose states are stored at once.

    These are all steps where that takes little memory, and elsewhere about the square root of their number.
    """
    sequences, columns = lattice.labels.shape
    steps = step_count(frames)
    row = 4 * sequences * (columns + MARGIN) * dtype.itemsize * 2
    if steps * row <= _SMALL:
        return steps
    return max(int((frames / 2) ** 0.5) // 2 * 2, 2)


def step_count(frames: int, size: int = 2) -> int:
    """Return the number of steps needed for so many frames, in whole segments of `size` steps; `size` is even."""
    return max(-(-frames // (2 * size)), 1) * size
