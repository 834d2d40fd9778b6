"""Prepare all that a batch needs before its likelihoods are known, and compute its losses from them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import bidirectional, scaled_emissions
from jaxctc._forward_backward.buffers import StateBuffers
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice import indexing, lattices, outcome
from jaxctc._lattice.frame_map import Index, build_frame_map
from jaxctc._lattice.lattices import Lattice, frames_first, frames_of
from jaxctc._types import LOG_ZERO, Request


class Normaliser(NamedTuple):
    """The log-sum-exp of each frame in two parts: their sum would lose digits where the peak is large."""

    peak: Float[Array, "A B"]
    """The largest logit; 0 where all are -inf."""
    excess: Float[Array, "A B"]
    """How far the log-sum-exp is above it."""
    best: Float[Array, "A B"]
    """The best class among the labels of the target and the blank."""
    others: Float[Array, "A B"]
    """The probability of all classes but `best` together, with all its digits."""


def _normaliser(logits: Float[Array, "A B C"], best: Float[Array, "A B"], score: Float[Array, "A B"]) -> Normaliser:
    """Return the normalizer of each frame, where `best` is some class of the frame and `score` is its logit.

    The log-sum-exp is right whatever `best` is. Where `best` has the largest logit, its exponential is 1, and the sum
    of all others' exponentials keeps all its digits, however small it is.
    """
    peak = logits.max(axis=2).astype(score.dtype)
    # The barrier has XLA compute once what all classes have in common: on a CPU it would do so for each class.
    peak, best = lax.optimization_barrier((jnp.where(jnp.isneginf(peak), 0, peak), best))
    # This avoids a comparison: a CPU adds and multiplies eight numbers at a time, but selects one.
    distance = jnp.arange(logits.shape[2], dtype=score.dtype)[None, None] - best[:, :, None]
    is_other = jnp.minimum(distance * distance, 1)
    others = (jnp.exp(logits.astype(score.dtype) - peak[:, :, None]) * is_other).sum(axis=2)
    above_one = jnp.expm1(score - peak) + others
    return Normaliser(*lax.optimization_barrier((peak, jnp.log1p(above_one), best, others / (1 + above_one))))


class PreparedBatch(NamedTuple):
    """All that a batch needs before its likelihoods are known."""

    lattice: Lattice
    """Its input lengths are those of the frames that the recursion runs over."""
    emissions: ScaledEmissions
    normaliser: Normaliser | None
    """The normalizer of logits; None for log probabilities."""
    removed_nats: tuple[Float[Array, " N"], Float[Array, " N"]]
    """Nats taken out of the score of every path of a sequence, in the two parts of `scaled_emissions.in_parts`."""
    frame_mask: Bool[Array, "A B"]
    """The frames within each sequence's length."""
    invalid: Bool[Array, " N"]
    """Sequences whose loss is NaN: they have illegal lengths or labels, or a NaN or +inf score that counts."""
    infeasible: Bool[Array, " N"]
    """Sequences whose loss is known to be +inf before any recursion."""
    start: Index
    """The first step that reads a frame within its sequence's length."""
    begin: StateBuffers | None = None
    """The states before step `start`, if they are not those before the first frame."""


def _start(steps: int, scores: Float[Array, "A B C"], longest: Int[Array, ""] | None, request: Request) -> Index:
    """Return the first step that reads a frame within its sequence's length; no length is above `longest`."""
    if longest is None:
        return steps - -(-frames_of(scores, request) // 2)
    return jnp.clip(steps - (longest + 1) // 2, 0, steps)


def prepare(
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    request: Request,
    size: int,
    longest: Int[Array, ""] | None = None,
    *,
    first: Index | None = None,
    keep: bool = True,
) -> PreparedBatch:
    """Return the prepared batch, in segments of `size` steps; `keep` says whether their scores are stored.

    No sequence is longer than `longest`, if that is given. If `first` is given, the scores hold the frames from `first`
    on of longer sequences, and the recursion runs over all frames that they hold.
    """
    frames = frames_of(scores, request)
    steps = bidirectional.even(frames, size)
    start = _start(steps, scores, longest, request)
    lengths = lattice.input_lengths
    if first is None:
        frame_map = build_frame_map(lattice, frames, steps)
    else:
        lattice = lattice._replace(input_lengths=jnp.full_like(lengths, frames))
        lengths = lengths - first
        frame_map = build_frame_map(lattice, frames, steps).until(lengths)
    frame_mask = frames_first(lattices.frame_mask(lengths, frames), request)
    # Where a kernel runs the steps, a loop over blocks of scores would be the only loop: there are no blocks.
    block = size if request.layout.platform is None else None
    emissions = scaled_emissions.build(scores, lattice, request, frame_map, block, start, keep=keep)
    normaliser, non_finite, removed_nats = None, emissions.non_finite, scaled_emissions.peaks(emissions)
    if request.from_logits:
        peak, best = (
            frames_first(indexing.to_frames(x, lattice, frames), request) for x in (emissions.peak, emissions.best)
        )
        counts = frame_mask & scaled_emissions.counts(peak)
        peak, best = jnp.where(counts, peak, 0), jnp.where(counts, best, 0)
        normaliser = _normaliser(scores, best, peak)
        non_finite = non_finite | frames_first(frame_mask & ~(normaliser.peak < jnp.inf), request).any(axis=0)
        left = jnp.where(counts, (peak - normaliser.peak) - normaliser.excess, 0)
        removed_nats = frames_first(left, request)
    return PreparedBatch(
        lattice,
        emissions,
        normaliser,
        scaled_emissions.in_parts(removed_nats),
        frame_mask,
        invalid=~lattice.legal | (lattice.feasible & non_finite),
        infeasible=~lattice.feasible | emissions.zero_probability,
        start=start,
    )


def losses(
    likelihood: Scaled, batch: PreparedBatch, frames: int, dtype: jnp.dtype, request: Request
) -> Float[Array, " N"]:
    """Return the losses of a batch from its likelihoods; `frames` and `dtype` are those of the caller's scores."""
    loss = -scaled_emissions.log_likelihood(likelihood, batch.removed_nats)
    infeasible = batch.infeasible | (likelihood.exponent < LOG_ZERO / 2)
    return outcome.finished(loss, batch.invalid, infeasible, request, frames, dtype)
