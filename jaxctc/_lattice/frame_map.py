"""Map the steps of the two directions of the bidirectional recursion to the frames that they read, and back.

Each direction takes M >= T / 2 steps, as many as suit the implementation. The forward one reads the first half of a
sequence's frames, the backward one the second half from its last frame down, over the labels in reverse order, so that
both directions are the same program. Both end at the last step, in the middle of each sequence, however long it is: a
short sequence starts late.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxctc._lattice.lattices import Lattice
from jaxctc._mesh import varying_like
from jaxctc._sizes import Index, Size, larger
from jaxctc._slices import put_in_axis, read_in_axis
from jaxctc._tracing import fori_loop

_Steps = TypeVar("_Steps")


class FrameMap(NamedTuple):
    """Which frame each step of each direction reads."""

    frame_or_none: Int[Array, "N 2 M"]
    """The frame, or -1 in steps outside the frame mask."""
    middle: Int[Array, " N"] | None = None
    """The frame that the backward direction reads last, and that the forward direction would read next. It is given for
    the map of all steps only, and only if the frames of each direction follow one another, without a gap.
    """

    @property
    def frame(self) -> Int[Array, "N 2 M"]:
        """Return the frame, and some frame in steps outside the frame mask."""
        return jnp.maximum(self.frame_or_none, 0)

    @property
    def in_length(self) -> Bool[Array, "N 2 M"]:
        return self.frame_or_none >= 0

    def part(self, first: Index, size: int) -> "FrameMap":
        return FrameMap(read_in_axis(self.frame_or_none, first, size, axis=2))

    def in_blocks(self, function: Callable[["FrameMap"], _Steps], nothing: _Steps, block: int, start: Index) -> _Steps:
        """Return what `function` returns for this map, computed for `block` steps at a time.

        The third axis of its results is that of the steps. Blocks before step `start` are left as they are in
        `nothing`, which has the shapes and types of the results.
        """
        count = self.frame_or_none.shape[2]

        def fill(number: Int[Array, ""], found: _Steps) -> _Steps:
            first = number * block
            part = function(self.part(first, block))
            return jax.tree.map(lambda x, y: put_in_axis(x, y, first, axis=2), found, part)

        nothing = varying_like(self.frame_or_none, nothing)
        return fori_loop(start // block, count // block, fill, nothing)

    def moved(self, by: Int[Array, "1 2 1"]) -> "FrameMap":
        """Return a map in which each direction reads frames that are `by` later."""
        return FrameMap(jnp.where(self.in_length, self.frame_or_none + by, -1))

    def until(self, lengths: Int[Array, " N"]) -> "FrameMap":
        """Return a map in which no frame at or beyond these lengths counts."""
        inside = self.frame_or_none < lengths[:, None, None]
        return self._replace(frame_or_none=jnp.where(inside, self.frame_or_none, -1))


def build_frame_map(lattice: Lattice, count: Size) -> FrameMap:
    """Return the frame map of `count` steps."""
    half, _ = lattice.halves
    # All in one shape: XLA makes a kernel of its own of what is smaller.
    shape = half.shape[0], 2 * count
    half_of, length = (jnp.broadcast_to(x[:, None], shape) for x in (half, lattice.input_lengths))
    place = lax.broadcasted_iota(jnp.int32, shape, 1)
    forward = place < count
    own = jnp.where(forward, place + (half_of - count), place + (length - half_of - 2 * count))
    frame = jnp.where(own >= 0, jnp.where(forward, own, length - 1 - own), -1).reshape(shape[0], 2, count)
    if lattice.frame_order is None:
        return FrameMap(frame, half)
    order = lattice.frame_order.frame[:, None]
    ordered = jnp.take_along_axis(order, jnp.maximum(frame, 0), axis=2, mode="promise_in_bounds")
    return FrameMap(jnp.where(frame >= 0, ordered, -1))


def steps_of_frames(lattice: Lattice, frames: Size, count: Size) -> tuple[Int[Array, "N T"], Int[Array, "N T"]]:
    """Return the direction and the step that read each frame within its length: the inverse of `build_frame_map`."""
    place = places_of_frames(lattice, frames, count).T
    backward = place >= count
    return backward.astype(jnp.int32), jnp.where(backward, place - count, place)


def places_of_frames(lattice: Lattice, frames: Size, count: Size) -> Int[Array, "T N"]:
    """Return the place of the step that reads each frame among all steps of both directions, of which each has `count`.

    Within a sequence's length it is the inverse of `build_frame_map`.
    """
    shape = frames, lattice.input_lengths.shape[0]
    length = jnp.broadcast_to(lattice.input_lengths[None], shape)
    half, frame = length >> 1, lax.broadcasted_iota(jnp.int32, shape, 0)
    if lattice.frame_order is not None:
        frame = lattice.frame_order.position.T
    place = jnp.where(frame < half, frame + count - half, length - 1 - frame + 2 * count - (length - half))
    return jnp.clip(place, 0, larger(2 * count - 1, 0))
