"""Build the lattice of states that the recursion runs over from the targets of a batch.

The lattice has W columns: column s holds blank s and label s (see `equations`). A target of more than T labels can
never be spelled in T frames, so W is min(S, T) + 2, rounded up to whole vectors, or to as many columns as a kernel
takes at once. The 2 are one column for the last blank, and one that no target reaches. Columns without a label have the
class of the blank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxctc._lattice import reductions
from jaxctc._sizes import Size, is_at_most
from jaxctc._types import Layout, Problem, Request


class FrameOrder(NamedTuple):
    """A permutation of the frames of each sequence that puts its padded frames last, where they do not come last."""

    frame: Int[Array, "N T"]
    """The valid frames, in their order, and then the padded ones."""
    position: Int[Array, "N T"]
    """The inverse: where `frame` has each frame."""


class Lattice(NamedTuple):
    """The states of one batch. Illegal labels and lengths have been replaced by legal ones."""

    labels: Int[Array, "N W"]
    input_lengths: Int[Array, " N"]
    target_lengths: Int[Array, " N"]
    legal: Bool[Array, " N"]
    """Whether the lengths are within their ranges, and the labels within [0, C) and none of them the blank."""
    feasible: Bool[Array, " N"]
    """Whether there are enough frames: one for each label, and one for the blank between two equal labels. Of a target
    that is not legal nobody knows, and this is true.
    """
    frame_order: FrameOrder | None = None
    """None where the first `input_lengths` frames of a sequence are the valid ones."""

    @property
    def halves(self) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
        """Return how many frames the forward direction reads, and how many the backward direction reads."""
        half = self.input_lengths >> 1  # a floor division is ten operations
        return half, self.input_lengths - half


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the type that is computed in: float64 for float64 scores, and float32 for all others."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def wide(x: Integer[Array, "..."]) -> Integer[Array, "..."]:
    """Return the integers in a type of 32 bits at least.

    Small integer types hold neither T nor C, and wider ones must not be narrowed before they are checked.
    """
    return x.astype(jnp.int32) if x.dtype.itemsize < 4 else x


def legal_int32(x: Integer[Array, "..."], legal: Bool[Array, "..."]) -> Int[Array, "..."]:
    """Return the legal integers as int32, and 0 for the others."""
    return jnp.where(legal, x, 0).astype(jnp.int32)


def row_of_indices(count: Size) -> Int[Array, "1 count"]:
    return jnp.arange(count, dtype=jnp.int32)[None]


def in_range(x: Integer[Array, "..."], stop: Size) -> Bool[Array, "..."]:
    """Return whether 0 <= x <= stop, for any integer type."""
    return (x >= 0) & (x <= stop)


def legal_labels(
    targets: Integer[Array, "N S"], target_lengths: Integer[Array, " N"], blank: int, classes: Size
) -> Bool[Array, "N S"]:
    """Return which labels are legal; padding always is."""
    padding = row_of_indices(targets.shape[1]) >= target_lengths[:, None]
    return padding | (in_range(targets, classes - 1) & (targets != blank))


def build_lattice(problem: Problem, request: Request, frame_mask: Bool[Array, "N T"] | None = None) -> Lattice:
    """Return the lattice of a batch; `frame_mask` says which frames are valid, if padded ones do not come last."""
    frames, classes = frames_of(problem.scores, request), problem.scores.shape[2]
    targets, input_lengths, target_lengths = (wide(x) for x in problem[1:])
    longest = targets.shape[1]

    legal_lengths = in_range(input_lengths, frames) & in_range(target_lengths, longest)
    input_lengths = legal_int32(input_lengths, legal_lengths)
    target_lengths = legal_int32(target_lengths, legal_lengths)
    allowed = legal_labels(targets, target_lengths, request.blank, classes)

    inside = row_of_indices(longest) < target_lengths[:, None]
    labels = jnp.where(inside & allowed, targets, request.blank).astype(jnp.int32)
    counts = ((inside & ~skip(labels)).astype(jnp.float32), (~allowed).astype(jnp.float32))
    repeats, illegal = reductions.sums(*counts)
    legal = legal_lengths & (illegal == 0)

    columns = column_count(longest, frames, request.layout)
    reachable = _reachable(longest, frames)
    labels = labels[:, :reachable]
    labels = jnp.pad(labels, ((0, 0), (0, columns - labels.shape[1])), constant_values=request.blank)
    return Lattice(
        labels=labels,
        input_lengths=input_lengths,
        target_lengths=jnp.minimum(target_lengths, reachable),
        legal=legal,
        feasible=~legal | ((input_lengths - target_lengths).astype(jnp.float32) >= repeats),
        frame_order=None if frame_mask is None else build_frame_order(frame_mask),
    )


def build_frame_order(frame_mask: Bool[Array, "N T"]) -> FrameOrder:
    """Return the permutation that puts the valid frames of this mask first."""
    frame = jnp.argsort(~frame_mask, axis=1, stable=True).astype(jnp.int32)
    position = jax.vmap(lambda frame: jnp.zeros_like(frame).at[frame].set(row_of_indices(frame.shape[0])[0]))(frame)
    return FrameOrder(frame, position)


def padding_last(
    scores: Float[Array, "A B C"], frame_mask: Bool[Array, "N T"] | None, request: Request
) -> Float[Array, "A B C"]:
    """Return the scores with the padded frames of each sequence last; without a mask they are there already."""
    if frame_mask is None:
        return scores
    frame = frames_first(build_frame_order(frame_mask).frame.T, request)[:, :, None]
    return jnp.take_along_axis(scores, frame, axis=1 if request.batch_first else 0, mode="promise_in_bounds")


def column_count(longest: Size, frames: Size, layout: Layout) -> Size:
    """Return W for targets of up to so many labels, in so many frames."""
    return -(-(_reachable(longest, frames) + 2) // layout.column_multiple) * layout.column_multiple


def _reachable(longest: Size, frames: Size) -> Size:
    """Return how many labels a path may reach: min(S, T), or S where the two cannot be compared."""
    return frames if is_at_most(frames, longest) else longest


def frames_of(scores: Float[Array, "A B C"], request: Request) -> Size:
    return scores.shape[1 if request.batch_first else 0]


def frame_mask(
    input_lengths: Integer[Array, " N"], frames: Size, frame_order: FrameOrder | None = None
) -> Bool[Array, "T N"]:
    """Return which frames are valid: those before each sequence's length, in their order if one is given."""
    return input_lengths[None] > (row_of_indices(frames) if frame_order is None else frame_order.position).T


def frames_first(x: jax.Array, request: Request) -> jax.Array:
    """Swap the axes T and N where the caller keeps the batch first; the function is its own inverse."""
    return jnp.swapaxes(x, 0, 1) if request.batch_first else x


def has_label(lattice: Lattice) -> Bool[Array, "N W"]:
    """Return which columns hold a label of their target."""
    return row_of_indices(lattice.labels.shape[1]) < lattice.target_lengths[:, None]


def skip(labels: Int[Array, "... W"]) -> Bool[Array, "... W"]:
    """Return where label s differs from label s - 1, so that the blank between them may be skipped."""
    before = jnp.concatenate([jnp.full_like(labels[..., :1], -1), labels[..., :-1]], axis=-1)
    return labels != before
