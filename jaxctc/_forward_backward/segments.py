"""Divide the steps of a direction into segments: the states of one segment are stored at once."""

import jax.numpy as jnp

from jaxctc._forward_backward.buffers import MARGIN
from jaxctc._lattice.lattices import Lattice
from jaxctc._sizes import Size, is_at_most, is_known

_SMALL = 1 << 20
"""Up to this many bytes, the states of all steps are stored, and none is recomputed."""
_OF_UNKNOWN = 32
"""The steps of a segment where the number of frames is symbolic: about the square root of that of 2,000 frames."""


def segment_size(frames: Size, lattice: Lattice, dtype: jnp.dtype) -> int:
    """Return the number of steps whose states are stored at once.

    These are all steps where that is known to take little memory, and elsewhere about the square root of their number.
    """
    sequences, columns = lattice.labels.shape
    steps = step_count(frames)
    row = 4 * sequences * (columns + MARGIN) * dtype.itemsize * 2
    if not is_known(frames):
        return _OF_UNKNOWN
    if is_at_most(steps * row, _SMALL):
        return steps
    return max(int((frames / 2) ** 0.5) // 2 * 2, 2)


def step_count(frames: Size, size: int = 2) -> Size:
    """Return the number of steps needed for so many frames, in whole segments of `size` steps; `size` is even.

    Of a symbolic number of frames there is one segment more, so that there are two: a recomputed segment has a step of
    the one before it.
    """
    segments = -(-frames // (2 * size))
    return (max(segments, 1) if is_known(frames) else segments + 1) * size
