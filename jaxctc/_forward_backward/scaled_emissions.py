"""Scale the emissions of the lattice's states, as the two directions of the recursion read them (see `frame_map`).

Scores are relative to the best one of their frame: along a path of best scores nothing is rounded, so that a confident
model's loss keeps its digits. In a frame that does not count, the blank has probability one and every label zero, so
that a path in a blank stays there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._lattice import indexing, lattices
from jaxctc._lattice.frame_map import FrameMap
from jaxctc._lattice.label_scores import Fetched, LabelScores
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, has_label
from jaxctc._sizes import Index, Size, is_at_most
from jaxctc._slices import read_in_axis
from jaxctc._types import LOG_ZERO, Request

LOG2_E = 1.4426950408889634
_SMALL = 1 << 20
"""Up to this many bytes, scores are computed at once, not in blocks."""
_LARGE = 1 << 29
"""Above this many bytes, scores are not stored but recomputed whenever they are read."""


class ScaledEmissions(NamedTuple):
    """The emissions of all states. Axes: N sequences, 2 directions (forward, backward), M steps, W columns.

    The first two axes of `scores`, `blank` and `skip` may have been made one (see `rows`).
    """

    scores: Float[Array, "*rows M W"] | None
    """Logarithms to base 2 of each label's probability over the frame's best, if they are stored."""
    blank: Scaled
    """(*rows, M + 1): the blank's probability over the frame's best; index i is for the frame before step i."""
    skip: Bool[Array, "*rows W"]
    """Whether the label of a column differs from the one before it, in each direction's own order."""
    target_lengths: Int[Array, " N"]
    first: Int[Array, "N 2"]
    """The first step of each direction that reads a frame of the sequence."""
    peak: Float[Array, "N 2 M"]
    """The best score of each frame among the blank and the target's labels, to which all scores are relative where it
    counts: NaN or +inf if any of them is; 0 in steps outside the frame mask.
    """
    best: Float[Array, "N 2 M"]
    """The class that has this best score."""
    recompute_scores: Callable[[Index, int], Float[Array, "N 2 K W"]] | None = None
    """Computes the scores of K steps from a first one on, if they are not stored."""

    @property
    def stored_scores(self) -> Float[Array, "*rows M W"]:
        """Return the scores, which must be stored."""
        assert self.scores is not None
        return self.scores

    @property
    def steps(self) -> Size:
        return self.blank.exponent.shape[-1] - 1

    def cut(self, first: Index, size: int) -> "ScaledEmissions":
        """Return the emissions of these steps alone, with their scores stored."""
        blank = Scaled(*(read_in_axis(x, first, size + 1, axis=-1) for x in self.blank))
        scores = (
            read_in_axis(self.stored_scores, first, size, axis=-2)
            if self.recompute_scores is None
            else self.recompute_scores(first, size)
        )
        return self._replace(scores=scores, blank=blank, recompute_scores=None)

    def segment(self, first: Index, size: int) -> tuple["ScaledEmissions", Index]:
        """Return emissions that have the scores of these steps, and the index of the first of the steps in them."""
        return (self, first) if self.recompute_scores is None else (self.cut(first, size), 0)


def stores_scores(frames: Size, columns: Size, dtype: jnp.dtype) -> bool:
    """Return whether there is certainly room for the scores of all steps, of so many columns in all sequences."""
    return is_at_most(frames * columns * dtype.itemsize, _LARGE)


class _PerFrame(NamedTuple):
    """What K steps' frames give beside their scores, be they inside the frame mask or not."""

    blank: Float[Array, "N 2 K"]
    """The score of the blank."""
    top: Float[Array, "N 2 K"]
    """The best score among the blank and the target's labels; it may leave out NaN."""
    label: Float[Array, "N 2 K"]
    """The best class among the target's labels, if that has the best score; +inf or NaN if some label's score is."""


def build_emissions(
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    request: Request,
    frame_map: FrameMap,
    block: int | None = None,
    start: Index = 0,
    *,
    keep: bool = True,
) -> ScaledEmissions:
    """Return the emissions, computed in blocks of steps, which use little memory but that of the result.

    `block` divides the number of steps. No step before `start` reads a frame inside the frame mask, and blocks before
    it are not computed. All other fields are computed here for all frames, even if `keep` says not to store the scores.
    """
    count, dtype = frame_map.frame.shape[2], accumulation_dtype(scores.dtype)
    labels = indexing.labels_with_reversed(lattice.labels, lattice)
    class_of_column = jnp.where(has_label(lattice)[:, None], labels, -1).astype(dtype)
    label_scores = LabelScores(scores, labels, lattice, request)

    def compute(fetch: Callable[[FrameMap], Fetched], frame_map: FrameMap) -> tuple[Array | None, _PerFrame]:
        log2_ratio, per_frame = _scale_rows(fetch(frame_map), class_of_column, lattice.target_lengths, frame_map)
        return (log2_ratio if keep else None), per_frame

    def nothing() -> tuple[Array | None, _PerFrame]:
        none, columns = jnp.zeros(frame_map.frame_or_none.shape, dtype), labels.shape[2]
        scores = jnp.zeros((*none.shape, columns), dtype) if keep else None
        return scores, _PerFrame(none, none, none)

    if block in (None, count) or is_at_most(frame_map.frame.size * labels.shape[2] * dtype.itemsize, _SMALL):
        kept, per_frame = compute(label_scores.fetch, frame_map)
    elif keep:
        # A TPU reads all frames at once, because it can then take slices.
        kept, per_frame = indexing.on_tpu(
            lambda: compute(label_scores.multiplied, frame_map),
            lambda: frame_map.in_blocks(functools.partial(compute, label_scores.gathered), nothing(), block, start),
        )
    else:
        kept, per_frame = frame_map.in_blocks(functools.partial(compute, label_scores.fetch), nothing(), block, start)

    def recomputed_scores(first: Index, size: int) -> Float[Array, "N 2 K W"]:
        part = frame_map.part(first, size)
        return _scale_rows(label_scores.fetch(part), class_of_column, lattice.target_lengths, part)[0]

    blank, top, label = per_frame
    usable = frame_map.in_length & is_usable(top)
    blank_score = jnp.where(usable, jnp.maximum(blank - top, LOG_ZERO), 0) * LOG2_E
    return ScaledEmissions(
        scores=kept,
        blank=Scaled(*(jnp.pad(x, ((0, 0), (0, 0), (1, 0))) for x in scaled.exp2(blank_score))),
        skip=lattices.skip(labels),
        target_lengths=lattice.target_lengths,
        first=count - jnp.stack(lattice.halves, axis=1),
        # XLA on a CPU leaves NaN out of a maximum of many numbers: each has made `label` infinite.
        peak=jnp.where(frame_map.in_length, jnp.where(label < jnp.inf, top, jnp.inf), 0),
        best=jnp.where(usable & (blank < top), label, request.blank),
        recompute_scores=None if keep else recomputed_scores,
    )


def _scale_rows(
    fetched: Fetched, class_of_column: Float[Array, "N 2 W"], target_lengths: Int[Array, " N"], frame_map: FrameMap
) -> tuple[Float[Array, "N 2 K W"], _PerFrame]:
    """Return the scores of these steps; `class_of_column` is -1 where a column has no label."""
    used, best, blank = (x.astype(class_of_column.dtype) for x in fetched)
    class_of_column = lax.broadcast_in_dim(class_of_column, used.shape, (0, 1, 3))

    # A column without a label has a score too: that of another label of the target, or of the blank.
    top = jnp.maximum(best, blank)
    usable = frame_map.in_length & is_usable(top)
    # Where the frame is not usable, what follows may be NaN until a `where` replaces it.
    log_ratio = used - jnp.where(usable, top, 0)[..., None]
    log_ratio = jnp.where(log_ratio < jnp.inf, jnp.maximum(log_ratio, LOG_ZERO), jnp.inf)
    # No path can enter a label in a frame that does not count, or in a column without a label.
    columns = jnp.where(usable, target_lengths[:, None, None], 0)
    column = lax.broadcasted_iota(jnp.int32, used.shape, 3)
    log2_ratio = jnp.where(column < columns[..., None], log_ratio * LOG2_E, LOG_ZERO)
    # The class of the best label, without a comparison: a CPU adds eight numbers at a time, but selects one.
    label = (class_of_column + log_ratio * float(2.0**100)).max(axis=3)
    return log2_ratio, _PerFrame(blank, top, label)


def is_usable(peak: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Return whether scores can be relative to this peak."""
    return (peak > LOG_ZERO) & (peak < jnp.inf)


def is_other(label: Float[Array, "..."], best: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return 0 where the class is the best one and 1 elsewhere.

    This avoids a comparison: a CPU adds and multiplies eight numbers at a time, but selects one.
    """
    distance = label - best
    return jnp.minimum(distance * distance, 1)


def peaks(emissions: ScaledEmissions) -> Float[Array, "steps N"]:
    """Return what was taken out of the scores of each step, in no particular order of the steps.

    That is -inf where every path has probability zero, and NaN where the peak is NaN or +inf.
    """
    peak = emissions.peak
    return jnp.where(is_usable(peak), peak, peak - jnp.inf).reshape(peak.shape[0], 2 * emissions.steps).T
