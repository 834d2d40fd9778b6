"""Everything about a batch but its likelihoods, and its losses once they are known."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxctc import _both_ends, _lattice, _walk
from jaxctc._both_ends import States
from jaxctc._lattice import Lattice, accumulator, frames_first, frames_of
from jaxctc._log_space import LOG_ZERO
from jaxctc._scaled import Scaled
from jaxctc._types import Options
from jaxctc._walk import Index, Walk


class Setting(NamedTuple):
    """Everything about a batch but its likelihoods."""

    lattice: Lattice
    """Its lengths are those of what is walked."""
    walk: Walk
    log_normaliser: Float[Array, "A B"] | None
    """Of logits: their log-sum-exp."""
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


def _log_normaliser(logits: Float[Array, "A B C"]) -> Float[Array, "A B"]:
    dtype = accumulator(logits.dtype)
    peak = logits.max(axis=2).astype(dtype)
    shift = jnp.where(jnp.isneginf(peak), 0, peak)
    return peak + jnp.log(jnp.exp(logits.astype(dtype) - shift[:, :, None]).sum(axis=2))


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
    log_normaliser = _log_normaliser(scores) if options.from_logits else None
    # Where steps are not taken by XLA, a loop that makes their scores would be all there is of loops.
    block = None if options.implementation == "pallas" else size
    walk = _walk.build(scores, log_normaliser, lattice, options, plan, block, start, keep=keep)
    poisoned = walk.poisoned
    if log_normaliser is not None:
        poisoned = poisoned | frames_first(live & ~(log_normaliser < jnp.inf), options).any(axis=0)
    return Setting(
        lattice,
        walk,
        log_normaliser,
        live,
        broken=~lattice.legal | (lattice.possible & poisoned),
        infeasible=~lattice.possible | walk.blocked,
        start=start,
    )


def losses(likelihood: Scaled, setting: Setting, frames: int, dtype: jnp.dtype, options: Options) -> Float[Array, " N"]:
    """Puts back what was taken out of the scores, so many frames of this type; then infinities, NaN and rounding."""
    loss = -_walk.log_likelihood(setting.walk, likelihood)
    if options.from_logits:
        loss = jnp.maximum(loss, 0)
    else:
        # Rows that are normalised in the caller's precision may sum to a little more than one.
        slack = frames * float(jnp.finfo(dtype).eps)
        loss = jnp.where((loss <= 0) & (loss >= -slack), 0, loss)
    impossible = setting.infeasible | (likelihood.exponent < LOG_ZERO / 2)
    return jnp.where(setting.broken, jnp.nan, jnp.where(impossible, jnp.inf, loss))
