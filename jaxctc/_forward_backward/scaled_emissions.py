"""Scale the emissions of the lattice's states, as the two directions of the recursion read them (see `frame_map`).

Scores are relative to the best one of their frame: along a path of best scores nothing is rounded, so that a confident
model's loss keeps its digits. A frame that does not count keeps every path in the state that it is in.
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
"""Nearly."""

_SMALL = 1 << 20
"""Bytes of scores that are made at once."""
_LARGE = 1 << 29
"""Bytes of scores that are made again whenever they are read, rather than kept."""


class ScaledEmissions(NamedTuple):
    """Axes: N sequences, 2 directions (forward, backward), M steps, W columns."""

    scores: Float[Array, "N 2 M W"] | None
    """Logarithms to base 2 of each label's probability over the frame's best, if they are kept."""
    blank: Scaled
    """(N, 2, M + 1): the blank's probability over the frame's best, at index i that of the frame before step i."""
    skip: Bool[Array, "N 2 W"]
    """The label of a column differs from the one before it, in each direction's own order."""
    target_lengths: Int[Array, " N"]
    first: Int[Array, "N 2"]
    """The step that reads the first live frame of each direction."""
    peak: Float[Array, "N 2 M"]
    """The best score of each frame among the blank and the target's labels, to which all scores are relative where it
    counts; 0 in steps that read no live frame.
    """
    best: Float[Array, "N 2 M"]
    """The class that has it."""
    non_finite: Bool[Array, " N"]
    """A NaN or +inf among the scores of some live frame."""
    zero_probability: Bool[Array, " N"]
    """Some live frame gives every label of the target, and the blank, probability zero."""
    made: Callable[[Index, int], Float[Array, "N 2 K W"]] | None = None
    """Makes the scores of K steps from a first one on, if they are not kept."""

    @property
    def kept(self) -> Float[Array, "N 2 M W"]:
        """The scores, where it is known that they are kept."""
        assert self.scores is not None
        return self.scores

    @property
    def steps(self) -> int:
        return self.blank.exponent.shape[2] - 1

    def cut(self, first: Index, size: int) -> "ScaledEmissions":
        """A walk of these steps alone."""
        blank = Scaled(*(lax.dynamic_slice_in_dim(x, first, size + 1, axis=2) for x in self.blank))
        scores = (
            lax.dynamic_slice_in_dim(self.kept, first, size, axis=2) if self.made is None else self.made(first, size)
        )
        return self._replace(scores=scores, blank=blank, made=None)

    def segment(self, first: Index, size: int) -> tuple["ScaledEmissions", Index]:
        """A walk that has these steps' scores, and the index that the first has in it."""
        return (self, first) if self.made is None else (self.cut(first, size), 0)


def stores_scores(frames: int, columns: int, dtype: jnp.dtype) -> bool:
    """Return whether there is room for the scores of all steps, of so many columns in all sequences together."""
    return frames * columns * dtype.itemsize <= _LARGE


class _Rows(NamedTuple):
    """What the frames of K steps give beside their scores, named as in `ScaledEmissions`, before any sum over steps."""

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
    """Made in blocks of steps, which leave little memory to be touched but the result's own.

    `block` divides their number; no step before `start` reads a live frame, and blocks before it are not made. What is
    known of all frames together is known then, whether their scores are kept or not.
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
        # A TPU's frames are slices where all are read at once.
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

    # A column without a label holds some score all the same, but none that is not the target's.
    top = jnp.maximum(best, blank)
    non_finite = frame_map.live & ~(top < jnp.inf)
    zero_probability = frame_map.live & (top <= LOG_ZERO)
    sound = frame_map.live & ~non_finite & ~zero_probability
    peak = jnp.where(sound, top, 0)

    blank_relative = jnp.where(sound, jnp.maximum(blank - peak, LOG_ZERO), 0) * LOG2_E
    behind = jnp.maximum(used - peak[..., None], LOG_ZERO)
    # Nothing but the state that it is in can be reached in a frame that does not count.
    relative = jnp.where(sound[..., None] & real, behind * LOG2_E, LOG_ZERO)
    # The class of the best label. Without a comparison, for a CPU adds eight numbers at a time where it selects one.
    label = (labels[:, :, None].astype(dtype) + behind * float(2.0**100)).max(axis=3)
    best_class = jnp.where(sound & (blank < peak), label, blank_class)
    return relative, _Rows(blank_relative, jnp.where(frame_map.live, top, 0), best_class, non_finite, zero_probability)


def log_likelihood(
    likelihood: Scaled, removed_nats: tuple[Float[Array, " N"], Float[Array, " N"]]
) -> Float[Array, " N"]:
    """The logarithm of a likelihood along the walk, with all that was taken out put back.

    Up to 65,536 nats what is large is added without a rounding, and the result is rounded once.
    """
    offset, rest = removed_nats
    # A mantissa near one is one whose logarithm is small, and keeps its digits.
    halved = likelihood.mantissa > math.sqrt(2)
    mantissa = jnp.where(halved, likelihood.mantissa / 2, likelihood.mantissa)
    exponent = likelihood.exponent + jnp.where(halved, 1, 0)
    return (offset + exponent * _LOG_2) + (rest + exponent * (math.log(2) - _LOG_2) + jnp.log(mantissa))


def counts(peak: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether scores can be relative to it."""
    return (peak > LOG_ZERO) & (peak < jnp.inf)


def peaks(emissions: ScaledEmissions) -> Float[Array, "steps N"]:
    """What was taken out of the scores of each step, in no particular order."""
    return jnp.where(counts(emissions.peak), emissions.peak, 0).reshape(len(emissions.peak), 2 * emissions.steps).T


def in_parts(nats: Float[Array, "steps N"]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """The sum over frames: in whole 256ths of a nat, which is exact, and what that leaves over."""
    offset = jnp.round(nats * _PARTS) / _PARTS
    return _sum(offset), _sum(nats - offset)


def _sum(x: Float[Array, "steps N"]) -> Float[Array, " N"]:
    """In two stages: a sum of thousands, one after the other, would lose digits."""
    frames, sequences = x.shape
    rows = max(int(frames**0.5), 1)
    padded = jnp.pad(x, ((0, -frames % rows), (0, 0)))
    return padded.reshape(rows, -(-frames // rows), sequences).sum(axis=1).sum(axis=0)
