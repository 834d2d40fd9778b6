"""Prepare all that a batch needs before its likelihoods are known, and compute its losses from them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import scaled_emissions, sums
from jaxctc._forward_backward.buffers import StateBuffers
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._forward_backward.segments import segment_size, step_count
from jaxctc._lattice import lattices, outcome
from jaxctc._lattice.frame_map import build_frame_map
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frames_first, frames_of
from jaxctc._lattice.to_frames import ToFrames
from jaxctc._sizes import Index, Size, is_known
from jaxctc._types import LOG_ZERO, Request


class Normalizer(NamedTuple):
    """The log-sum-exp of each frame in two parts: their sum would lose digits where the peak is large."""

    peak: Float[Array, "A B"]
    """The largest logit; the lowest number of its type where all are -inf."""
    excess: Float[Array, "A B"]
    """How far the log-sum-exp is above it."""
    best: Float[Array, "A B"]
    """The best class among the labels of the target and the blank."""
    others: Float[Array, "A B"]
    """The probability of all classes but `best` together, with all its digits."""


def _normalizer(
    logits: Float[Array, "A B C"], best: Float[Array, "A B"], score: Float[Array, "A B"], *, gpu: bool = False
) -> Normalizer:
    """Return the normalizer of each frame, where `best` is some class of the frame and `score` is its logit.

    The log-sum-exp is right for any class. Where `best` has the largest logit, its exponential is 1, and the sum of all
    others' exponentials keeps all its digits, however small it is. Where `score` is no more than `LOG_ZERO`, the frame
    has no normalizer: there the excess is a finite number, or NaN if any logit of the frame is NaN or +inf.
    """
    lowest = jnp.finfo(logits.dtype).min.astype(logits.dtype)  # it can be subtracted from -inf, as -inf cannot
    peak = lax.reduce(logits, lowest, lax.max, (2,)).astype(score.dtype)
    if not gpu:
        # With the barrier XLA computes once what all classes have in common: on a CPU it would do so for each class.
        peak, best = lax.optimization_barrier((peak, best))
    is_other = scaled_emissions.is_other(jnp.arange(logits.shape[2], dtype=score.dtype)[None, None], best[:, :, None])
    others = (jnp.exp(logits.astype(score.dtype) - peak[:, :, None]) * is_other).sum(axis=2)
    above_one = jnp.where(score <= LOG_ZERO, 0, jnp.expm1(score - peak)) + others
    return Normalizer(*lax.optimization_barrier((peak, jnp.log1p(above_one), best, others / (1 + above_one))))


class PreparedBatch(NamedTuple):
    """All that a batch needs before its likelihoods are known."""

    lattice: Lattice
    """Its input lengths are those of the frames that the recursion runs over."""
    emissions: ScaledEmissions
    to_frames: ToFrames
    normalizer: Normalizer | None
    """The normalizer of logits; None for log probabilities."""
    log_scale: tuple[Float[Array, " N"], Float[Array, " N"]]
    """Nats that were taken out of the score of every path of a sequence, in the two parts of `sums.in_parts`."""
    frame_mask: Bool[Array, "A B"]
    """The frames that count, which are those within each sequence's length unless there is a frame order."""
    invalid: Bool[Array, " N"]
    """Sequences whose loss is NaN: they have illegal lengths or labels, or a NaN or +inf score that counts."""
    infeasible: Bool[Array, " N"]
    """Sequences whose loss is known to be +inf before any recursion."""
    frames: Size
    """The number of frames of the caller's scores, T."""
    segment: int
    """The number of steps in a segment (see `segments`)."""
    start: Index
    """A step before which none reads a frame within the length of any sequence."""
    initial: StateBuffers | None = None
    """The states before step `start`, if they are not those before the first frame."""
    of_middle_device: Callable[[Scaled], Scaled] | None = None
    """Returns on every device the likelihood that the middle device has, if the frames are on several devices."""


def _start(
    steps: Size, scores: Float[Array, "A B C"], max_input_length: Int[Array, ""] | None, request: Request
) -> Index:
    """Return a step before which none reads a frame within the length of any sequence."""
    if max_input_length is not None:
        return jnp.clip(steps - ((max_input_length + 1) >> 1), 0, steps)
    if request.layout.runs == "loops":
        return 0  # few steps read no frame (see `segments`)
    start = steps - -(-frames_of(scores, request) // 2)
    return start if is_known(start) else jnp.asarray(start)


def prepare(
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    request: Request,
    max_input_length: Int[Array, ""] | None = None,
    *,
    backward: bool,
    first: Index | None = None,
) -> PreparedBatch:
    """Return the prepared batch; `backward` says whether a backward pass will follow the forward pass.

    No sequence is longer than `max_input_length`, if that is given. If `first` is given, the scores hold the frames
    from `first` on of longer sequences, and the recursion runs over all frames that they hold.
    """
    frames, dtype = frames_of(scores, request), accumulation_dtype(scores.dtype)
    size = request.layout.segment_steps or segment_size(frames, lattice, dtype, scores.shape[2], backward=backward)
    keep = request.layout.runs == "gpu_loops" or scaled_emissions.stores_scores(frames, lattice.labels.size, dtype)
    steps = step_count(frames, size)
    start = _start(steps, scores, max_input_length, request)
    lengths = lattice.input_lengths
    if first is None:
        frame_map = build_frame_map(lattice, steps)
    else:
        lattice = lattice._replace(input_lengths=jnp.full_like(lengths, frames))
        lengths = lengths - first
        frame_map = build_frame_map(lattice, steps).until(lengths)
    frame_mask = frames_first(lattices.frame_mask(lengths, frames, lattice.frame_order), request)
    # Where a kernel runs the steps, a loop over blocks of scores would be the only loop: there are no blocks.
    block = size if request.layout.runs == "loops" else None
    emissions = scaled_emissions.build_emissions(scores, lattice, request, frame_map, block, start, keep=keep)
    normalizer, to_frames = None, ToFrames.of(lattice, frames, steps)
    if request.from_logits:
        peak, best = (frames_first(to_frames.numbers(x), request) for x in (emissions.peak, emissions.best))
        score = jnp.where(frame_mask & scaled_emissions.is_usable(peak), peak, LOG_ZERO)
        if not request.layout.gpu:
            # Without the barrier XLA would store the mask instead, and LLVM takes 0.2 s to compile each kernel that
            # reads a mask.
            score = lax.optimization_barrier(score)
        normalizer = _normalizer(scores, best, score, gpu=request.layout.gpu)
        # Where the excess is NaN, so is this, whatever the score.
        normalized = jnp.where(
            score > LOG_ZERO, (score - normalizer.peak) - normalizer.excess, 0 * normalizer.excess - jnp.inf
        )
        log_scale = frames_first(jnp.where(frame_mask, normalized, 0), request)
    else:
        log_scale = scaled_emissions.peaks(emissions)
    parts = sums.in_parts(log_scale, gpu=request.layout.gpu)
    return PreparedBatch(
        lattice,
        emissions,
        to_frames,
        normalizer,
        parts,
        frame_mask,
        invalid=~lattice.legal | (lattice.feasible & jnp.isnan(parts[1])),
        infeasible=~lattice.feasible | jnp.isneginf(parts[0]),
        frames=frames,
        segment=size,
        start=start,
    )


def losses_of(likelihood: Scaled, batch: PreparedBatch, dtype: jnp.dtype, request: Request) -> Float[Array, " N"]:
    """Return the losses of a batch from its likelihoods; `dtype` is that of the caller's scores."""
    if batch.of_middle_device:
        likelihood = batch.of_middle_device(likelihood)
    loss = -sums.log_likelihood(likelihood, batch.log_scale)
    infeasible = batch.infeasible | (likelihood.exponent < LOG_ZERO / 2)
    return outcome.finished(loss, batch.invalid, infeasible, request, batch.frames, dtype)
