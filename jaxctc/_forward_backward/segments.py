"""Divide the steps of a direction into segments: the states of one segment are stored at once."""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxctc._forward_backward.buffers import MARGIN
from jaxctc._lattice.lattices import Lattice
from jaxctc._sizes import Size, is_at_most, is_known

_SMALL = 1 << 20
"""Up to this many bytes, the states of all steps are stored, and none is recomputed."""
_REUSED = 16 << 20
"""Up to this many bytes are stored too where they are few beside the scores. A C library gives a process the same
memory again and again, where larger arrays are new memory each time, which takes longer than recomputing."""
_OF_SCORES = 3
"""Few are no more than this part of the bytes of the scores, for which the gradient needs as many again."""
_OF_UNKNOWN = 32
"""The steps of a segment where the number of frames is symbolic: about the square root of that of 2,000 frames."""
_FORWARD_STEPS = (16, 12, 8, 4, 2)
"""The steps of a segment where no backward pass follows: their scores are fetched at once, and no state is stored. With
14 or 18 the loss takes 2 to 5% longer than with 12 or 16."""


def segment_size(frames: Size, lattice: Lattice, dtype: jnp.dtype, classes: Size = 0, *, backward: bool = True) -> int:
    """Return the number of steps in a segment, whose states are stored at once if a backward pass follows.

    Then these are all steps where that is known to take little memory, by itself or beside the scores of so many
    classes, and elsewhere about the square root of their number. Without a backward pass a segment is only as many
    steps as have their scores fetched at once.
    """
    if not backward:
        return _fitting(_FORWARD_STEPS, frames) if is_known(frames) else _FORWARD_STEPS[0]
    sequences, columns = lattice.labels.shape
    steps = step_count(frames)
    row = 4 * sequences * (columns + MARGIN) * dtype.itemsize * 2
    if not is_known(frames):
        return _OF_UNKNOWN
    scores = frames * sequences * classes * dtype.itemsize
    if is_at_most(steps * row, _SMALL) or (
        is_at_most(steps * row, _REUSED) and is_at_most(_OF_SCORES * steps * row, scores)
    ):
        return steps
    about = max(round((frames / 2) ** 0.5 / 4) * 4, 4)
    return _fitting((about, about + 4, max(about - 4, 2)), frames)


def _fitting(sizes: Sequence[int], frames: int) -> int:
    """Return the size with which all segments take the least time, if each takes as long as one step more than it has.

    The last steps of a direction may be more than the frames need. They are run all the same, so that the length of the
    loops is known.
    """
    return min(sizes, key=lambda size: step_count(frames, size) // size * (size + 1))


def step_count(frames: Size, size: int = 2) -> Size:
    """Return the number of steps needed for so many frames, in whole segments of `size` steps; `size` is even.

    Of a symbolic number of frames there is one segment more, so that there are two: a recomputed segment has a step of
    the one before it.
    """
    segments = -(-frames // (2 * size))
    return (max(segments, 1) if is_known(frames) else segments + 1) * size
