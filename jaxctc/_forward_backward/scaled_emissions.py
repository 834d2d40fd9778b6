"""Scale the emissions of the lattice's states, as the two directions of the recursion read them (see `frame_map`).

Scores are relative to the best one of their frame: along a path of best scores nothing is rounded, so that a confident
model's loss keeps its digits. In a frame that does not count, the blank has probability one and every label zero, so
that a path in a blank stays there.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._lattice import indexing, lattices
from jaxctc._lattice.frame_map import FrameMap, Index, halves
from jaxctc._lattice.indexing import Fetch
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, has_label
from jaxctc._mesh import varying_like
from jaxctc._types import LOG_ZERO, Request

LOG2_E = 1.4426950408889634
_PARTS = 256
_LOG_2 = 177 / _PARTS
"""ln 2 rounded to 1/256, so that partial sums are exact."""

_SMALL = 1 << 20
"""Up to this many bytes, scores are computed at once, not in blocks."""
_LARGE = 1 << 29
"""Above this many bytes, scores are not stored but recomputed whenever they are read."""


class ScaledEmissions(NamedTuple):
    """The emissions of all states. Axes: N sequences, 2 directions (forward, backward), M steps, W columns."""

    scores: Float[Array, "N 2 M W"] | None
    """Logarithms to base 2 of each label's probability over the frame's best, if they are stored."""
    blank: Scaled
    """(N, 2, M + 1): the blank's probability over the frame's best; index i is for the frame before step i."""
    skip: Bool[Array, "N 2 W"]
    """Whether the label of a column differs from the one before it, in each direction's own order."""
    target_lengths: Int[Array, " N"]
    first: Int[Array, "N 2"]
    """The first step of each direction that reads a frame of the sequence."""
    peak: Float[Array, "N 2 M"]
    """The best score of each frame among the blank and the target's labels, to which all scores are relative where it
    counts; 0 in steps outside the frame mask.
    """
    best: Float[Array, "N 2 M"]
    """The class that has this best score."""
    non_finite: Bool[Array, " N"]
    """Whether the blank or a label of the target has a NaN or +inf score in some frame inside the frame mask."""
    zero_probability: Bool[Array, " N"]
    """Whether some frame inside the frame mask gives the blank and every label of the target probability zero."""
    made: Callable[[Index, int], Float[Array, "N 2 K W"]] | None = None
    """Computes the scores of K steps from a first one on, if they are not stored."""

    @property
    def kept(self) -> Float[Array, "N 2 M W"]:
        """Return the scores, which must be stored."""
        assert self.scores is not None
        return self.scores

    @property
    def steps(self) -> int:
        return self.blank.exponent.shape[2] - 1

    def cut(self, first: Index, size: int) -> "ScaledEmissions":
        """Return the emissions of these steps alone, with their scores stored."""
        blank = Scaled(*(lax.dynamic_slice_in_dim(x, first, size + 1, axis=2) for x in self.blank))
        scores = (
            lax.dynamic_slice_in_dim(self.kept, first, size, axis=2) if self.made is None else self.made(first, size)
        )
        return self._replace(scores=scores, blank=blank, made=None)

    def segment(self, first: Index, size: int) -> tuple["ScaledEmissions", Index]:
        """Return emissions that have the scores of these steps, and the index of the first of the steps in them."""
        return (self, first) if self.made is None else (self.cut(first, size), 0)


def stores_scores(frames: int, columns: int, dtype: jnp.dtype) -> bool:
    """Return whether there is room for the scores of all steps, of so many columns in all sequences together."""
    return frames * columns * dtype.itemsize <= _LARGE


class _Rows(NamedTuple):
    """The fields of `ScaledEmissions` that K steps' frames give beside their scores, before any sum over steps."""

    blank: Float[Array, "N 2 K"]
    """The logarithm to base 2."""
    peak: Float[Array, "N 2 K"]
    best: Float[Array, "N 2 K"]
    non_finite: Bool[Array, "N 2 K"]
    zero_probability: Bool[Array, "N 2 K"]


def build(
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
    labels = indexing.labels_both_ways(lattice.labels, lattice)
    real = has_label(lattice)[:, None, None]
    gathers = indexing.fetch_by_gathers(scores, labels, request)
    products = indexing.fetch_by_products(scores, labels, lattice, request)
    either = indexing.fetch_by_either(products, gathers)

    def some_of(frame_map: FrameMap, fetch: Fetch) -> tuple[Array, _Rows]:
        return _rows(fetch, labels, real, frame_map, request.blank, dtype)

    def some(frame_map: FrameMap, fetch: Fetch = either) -> tuple[Array | None, _Rows]:
        relative, made = some_of(frame_map, fetch)
        return (relative if keep else None), made

    def room(x: jax.ShapeDtypeStruct) -> Array:
        return varying_like((scores, lattice), jnp.zeros((*x.shape[:2], count, *x.shape[3:]), x.dtype))

    def in_blocks(block: int, fetch: Fetch = either) -> tuple[Array | None, _Rows]:
        def fill(number: Int[Array, ""], made: Any) -> Any:
            first = number * block
            piece = some(frame_map.part(first, block), fetch)
            return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, first, axis=2), made, piece)

        shapes = jax.eval_shape(lambda: some(frame_map, gathers))
        return lax.fori_loop(start // block, count // block, fill, jax.tree.map(room, shapes))

    if block in (None, count) or frame_map.frame.size * labels.shape[2] * dtype.itemsize <= _SMALL:
        kept, made = some(frame_map)
    elif keep:
        # A TPU reads all frames at once, because it can then take slices.
        kept, made = indexing.on_tpu(lambda: some(frame_map, products), lambda: in_blocks(block, gathers))
    else:
        kept, made = in_blocks(block)

    def recomputed_scores(first: Index, size: int) -> Float[Array, "N 2 K W"]:
        return some_of(frame_map.part(first, size), either)[0]

    return ScaledEmissions(
        scores=kept,
        blank=scaled.exp2(jnp.pad(made.blank, ((0, 0), (0, 0), (1, 0)))),
        skip=lattices.skip(labels),
        target_lengths=lattice.target_lengths,
        first=count - jnp.concatenate(halves(lattice), axis=1),
        peak=made.peak,
        best=made.best,
        non_finite=made.non_finite.any(axis=(1, 2)),
        zero_probability=made.zero_probability.any(axis=(1, 2)),
        made=None if keep else recomputed_scores,
    )


def _rows(
    fetch: Fetch,
    labels: Int[Array, "N 2 W"],
    real: Bool[Array, "N 1 1 W"],
    frame_map: FrameMap,
    blank_class: int,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "N 2 K W"], _Rows]:
    used, best, blank = (x.astype(dtype) for x in fetch(frame_map))

    # A column without a label has a score too: that of another label of the target, or of the blank.
    top = jnp.maximum(best, blank)
    non_finite = frame_map.live & ~(top < jnp.inf)
    zero_probability = frame_map.live & (top <= LOG_ZERO)
    sound = frame_map.live & ~non_finite & ~zero_probability
    peak = jnp.where(sound, top, 0)

    blank_relative = jnp.where(sound, jnp.maximum(blank - peak, LOG_ZERO), 0) * LOG2_E
    behind = jnp.maximum(used - peak[..., None], LOG_ZERO)
    # No path can enter a label in a frame that does not count, or in a column without a label.
    relative = jnp.where(sound[..., None] & real, behind * LOG2_E, LOG_ZERO)
    # The class of the best label, without a comparison: a CPU adds eight numbers at a time, but selects one.
    label = (labels[:, :, None].astype(dtype) + behind * float(2.0**100)).max(axis=3)
    best_class = jnp.where(sound & (blank < peak), label, blank_class)
    return relative, _Rows(blank_relative, jnp.where(frame_map.live, top, 0), best_class, non_finite, zero_probability)


def log_likelihood(
    likelihood: Scaled, removed_nats: tuple[Float[Array, " N"], Float[Array, " N"]]
) -> Float[Array, " N"]:
    """Return the logarithm of a likelihood, with the nats that were taken out of the scores added again.

    Up to 65,536 nats the large parts are added without rounding, and the result is rounded once.
    """
    offset, rest = removed_nats
    # The logarithm of a mantissa near one is small, and keeps its digits.
    halved = likelihood.mantissa > math.sqrt(2)
    mantissa = jnp.where(halved, likelihood.mantissa / 2, likelihood.mantissa)
    exponent = likelihood.exponent + jnp.where(halved, 1, 0)
    return (offset + exponent * _LOG_2) + (rest + exponent * (math.log(2) - _LOG_2) + jnp.log(mantissa))


def counts(peak: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Return whether scores can be relative to this peak."""
    return (peak > LOG_ZERO) & (peak < jnp.inf)


def peaks(emissions: ScaledEmissions) -> Float[Array, "steps N"]:
    """Return what was taken out of the scores of each step, in no particular order of the steps."""
    return jnp.where(counts(emissions.peak), emissions.peak, 0).reshape(len(emissions.peak), 2 * emissions.steps).T


def in_parts(nats: Float[Array, "steps N"]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Return the sum over frames in two parts: whole 256ths of a nat, whose sum is exact, and the remainder."""
    offset = jnp.round(nats * _PARTS) / _PARTS
    return _sum(offset), _sum(nats - offset)


def _sum(x: Float[Array, "steps N"]) -> Float[Array, " N"]:
    """Return the sum over steps, in two stages: thousands of numbers added one after the other would lose digits."""
    frames, sequences = x.shape
    rows = max(int(frames**0.5), 1)
    padded = jnp.pad(x, ((0, -frames % rows), (0, 0)))
    return padded.reshape(rows, -(-frames // rows), sequences).sum(axis=1).sum(axis=0)
