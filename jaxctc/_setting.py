"""Everything about a batch but its likelihoods, and its losses once they are known."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc import _both_ends, _lattice, _walk
from jaxctc._both_ends import States
from jaxctc._lattice import Lattice, frames_first, frames_of
from jaxctc._log_space import LOG_ZERO
from jaxctc._scaled import Scaled
from jaxctc._types import Options
from jaxctc._walk import Index, Walk


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


class Setting(NamedTuple):
    """Everything about a batch but its likelihoods."""

    lattice: Lattice
    """Its lengths are those of what is walked."""
    walk: Walk
    normaliser: Normaliser | None
    """Of logits."""
    taken_out: tuple[Float[Array, " N"], Float[Array, " N"]]
    """Nats that all paths of a sequence have lost, as `_walk.in_parts` has them."""
    live: Bool[Array, "A B"]
    """The frames within each sequence's length."""
    broken: Bool[Array, " N"]
    """The loss is NaN: illegal lengths or labels, or a NaN or +inf score that counts."""
    infeasible: Bool[Array, " N"]
    """The loss is +inf, known before any recursion."""
    start: Index
    """The first of the steps that reads a live frame."""
    begin: States | None = None
    """The states before it, if they are not those before the first frame."""


def _start(steps: int, scores: Float[Array, "A B C"], longest: Int[Array, ""] | None, options: Options) -> Index:
    """The first of the steps that reads a live frame, if no sequence is longer than `longest`."""
    if longest is None:
        return steps - -(-frames_of(scores, options) // 2)
    return jnp.clip(steps - (longest + 1) // 2, 0, steps)


def build(
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    options: Options,
    size: int,
    longest: Int[Array, ""] | None = None,
    *,
    first: Index | None = None,
    keep: bool = True,
) -> Setting:
    """In segments of `size` steps, whose scores are kept or not, if no sequence is longer than `longest`.

    Or of scores that hold the frames from `first` on of longer sequences: all of them are walked.
    """
    frames = frames_of(scores, options)
    steps = _both_ends.even(frames, size)
    start = _start(steps, scores, longest, options)
    lengths = lattice.input_lengths
    if first is None:
        plan = _walk.schedule(lattice, frames, steps)
    else:
        lattice = lattice._replace(input_lengths=jnp.full_like(lengths, frames))
        lengths = lengths - first
        plan = _walk.schedule(lattice, frames, steps).until(lengths)
    live = frames_first(_lattice.live(lengths, frames), options)
    # Where steps are not taken by XLA, a loop that makes their scores would be all there is of loops.
    block = None if options.implementation == "pallas" else size
    walk = _walk.build(scores, lattice, options, plan, block, start, keep=keep)
    normaliser, poisoned, taken_out = None, walk.poisoned, _walk.peaks(walk)
    if options.from_logits:
        peak, best = (frames_first(_walk.to_frames(x, lattice, frames), options) for x in (walk.peak, walk.best))
        counts = live & _walk.counts(peak)
        peak, best = jnp.where(counts, peak, 0), jnp.where(counts, best, 0)
        normaliser = _normaliser(scores, best, peak)
        poisoned = poisoned | frames_first(live & ~(normaliser.peak < jnp.inf), options).any(axis=0)
        left = jnp.where(counts, (peak - normaliser.peak) - normaliser.excess, 0)
        taken_out = frames_first(left, options)
    return Setting(
        lattice,
        walk,
        normaliser,
        _walk.in_parts(taken_out),
        live,
        broken=~lattice.legal | (lattice.possible & poisoned),
        infeasible=~lattice.possible | walk.blocked,
        start=start,
    )


def losses(likelihood: Scaled, setting: Setting, frames: int, dtype: jnp.dtype, options: Options) -> Float[Array, " N"]:
    """Puts back what was taken out of the scores, so many frames of this type; then infinities, NaN and rounding."""
    loss = -_walk.log_likelihood(likelihood, setting.taken_out)
    if options.from_logits:
        loss = jnp.where(loss <= 0, 0, loss)
    else:
        # Rows that are normalised in the caller's precision may sum to a little more than one.
        slack = frames * float(jnp.finfo(dtype).eps)
        loss = jnp.where((loss <= 0) & (loss >= -slack), 0, loss)
    impossible = setting.infeasible | (likelihood.exponent < LOG_ZERO / 2)
    return jnp.where(setting.broken, jnp.nan, jnp.where(impossible, jnp.inf, loss))
