"""Everything about a batch but its likelihoods, and its losses once they are known."""

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
    """Each frame's log-sum-exp, in two parts: added up they would lose digits wherever the peak is large."""

    peak: Float[Array, "A B"]
    """The largest logit; 0 where all are -inf."""
    excess: Float[Array, "A B"]
    """How far the log-sum-exp is above it."""
    best: Float[Array, "A B"]
    """The best class of the target and the blank."""
    others: Float[Array, "A B"]
    """The probability of all classes but that one, to as many digits."""


def _normaliser(logits: Float[Array, "A B C"], best: Float[Array, "A B"], score: Float[Array, "A B"]) -> Normaliser:
    """`best` is some class of each frame, and `score` its logit: the sum of all others' exponentials is exact to the
    last digit, however small, where this one's is 1. Whatever they are, the log-sum-exp is right.
    """
    peak = logits.max(axis=2).astype(score.dtype)
    # What has no class is computed once for all of them: XLA on a CPU would do it again for each.
    peak, best = lax.optimization_barrier((jnp.where(jnp.isneginf(peak), 0, peak), best))
    # No comparison: a CPU adds and multiplies eight numbers at a time where it selects one.
    distance = jnp.arange(logits.shape[2], dtype=score.dtype)[None, None] - best[:, :, None]
    is_other = jnp.minimum(distance * distance, 1)
    others = (jnp.exp(logits.astype(score.dtype) - peak[:, :, None]) * is_other).sum(axis=2)
    above_one = jnp.expm1(score - peak) + others
    return Normaliser(*lax.optimization_barrier((peak, jnp.log1p(above_one), best, others / (1 + above_one))))


class PreparedBatch(NamedTuple):
    """Everything about a batch but its likelihoods."""

    lattice: Lattice
    """Its lengths are those of what is walked."""
    emissions: ScaledEmissions
    normaliser: Normaliser | None
    """Of logits."""
    removed_nats: tuple[Float[Array, " N"], Float[Array, " N"]]
    """Nats that all paths of a sequence have lost, as `scaled_emissions.in_parts` has them."""
    frame_mask: Bool[Array, "A B"]
    """The frames within each sequence's length."""
    invalid: Bool[Array, " N"]
    """The loss is NaN: illegal lengths or labels, or a NaN or +inf score that counts."""
    infeasible: Bool[Array, " N"]
    """The loss is +inf, known before any recursion."""
    start: Index
    """The first of the steps that reads a live frame."""
    begin: StateBuffers | None = None
    """The states before it, if they are not those before the first frame."""


def _start(steps: int, scores: Float[Array, "A B C"], longest: Int[Array, ""] | None, request: Request) -> Index:
    """The first of the steps that reads a live frame, if no sequence is longer than `longest`."""
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
    """In segments of `size` steps, whose scores are kept or not, if no sequence is longer than `longest`.

    Or of scores that hold the frames from `first` on of longer sequences: all of them are walked.
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
    # Where steps are not taken by XLA, a loop that makes their scores would be all there is of loops.
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
