"""What the states of the lattice emit at each frame, as the plain recursion reads it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc import _lattice
from jaxctc._lattice import Lattice, accumulator, frames_first, frames_of, live
from jaxctc._log_space import LOG_ZERO
from jaxctc._recursion import Rules, States
from jaxctc._types import Options


class Emissions(NamedTuple):
    """In float32 or float64, no less than `LOG_ZERO`; 0 in frames beyond a sequence's length."""

    states: States
    """blank (T, N, 1), label (T, N, W)."""
    peak: Float[Array, "T N"]
    """What was taken out of all states of a frame, so that sums over paths stay small and keep their digits."""


def log_probs(scores: Float[Array, "A B C"], lattice: Lattice, options: Options) -> Float[Array, "T N C"]:
    """Of all classes; 0 in frames beyond a sequence's length, whatever stood there."""
    kept = frames_first(live(lattice.input_lengths, frames_of(scores, options)), options)[:, :, None]
    # Padding must not only be left out: a NaN in it would find its way into the derivative.
    made = jnp.where(kept, scores.astype(accumulator(scores.dtype)), 0)
    if options.from_logits:
        peak = jax.lax.stop_gradient(made.max(axis=2, keepdims=True))
        made = made - peak
        # What a confident model leaves to all classes but the best is small, and would lose its digits beside one.
        best = jnp.arange(made.shape[2])[None, None] == jnp.argmax(made, axis=2, keepdims=True)
        above_one = jnp.where(best, jnp.expm1(made), jnp.exp(made)).sum(axis=2, keepdims=True)
        made = made - jnp.log1p(above_one)
    return jnp.maximum(frames_first(made, options), LOG_ZERO)


def build(
    log_probs: Float[Array, "T N C"],
    lattice: Lattice,
    options: Options,
    *,
    relative: bool = True,
    possible: Bool[Array, " N"] | None = None,
) -> Emissions:
    """Relative to each frame's best, unless paths need not pass through all frames.

    Of sequences that are not possible, by the lattice's word if nothing else is given, the scores are not read: a
    NaN among them would find its way into the derivative.
    """
    label = jnp.take_along_axis(log_probs, lattice.labels[None], axis=2, mode="promise_in_bounds")
    blank = log_probs[:, :, options.blank, None]
    kept = live(lattice.input_lengths, len(log_probs)) & (lattice.possible if possible is None else possible)[None]
    peak = jax.lax.stop_gradient(jnp.maximum(label.max(axis=2), blank[:, :, 0]))
    peak = jnp.where(kept & relative, peak, 0)
    return Emissions(States(*(jnp.where(kept[:, :, None], x - peak[:, :, None], 0) for x in (blank, label))), peak)


def rules_of(lattice: Lattice) -> Rules:
    return Rules(_lattice.skip(lattice.labels), lattice.input_lengths, lattice.target_lengths)
