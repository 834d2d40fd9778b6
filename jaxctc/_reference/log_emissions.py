"""What the states of the lattice emit at each frame, as the plain recursion reads it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._lattice import lattices
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frame_mask, frames_first, frames_of
from jaxctc._reference.recursion import LogStates, Topology
from jaxctc._types import LOG_ZERO, Request


class Emissions(NamedTuple):
    """In float32 or float64, no less than `LOG_ZERO`; 0 in frames beyond a sequence's length."""

    states: LogStates
    """blank (T, N, 1), label (T, N, W)."""
    peak: Float[Array, "T N"]
    """What was taken out of all states of a frame, so that sums over paths stay small and keep their digits."""


def log_probs(scores: Float[Array, "A B C"], lattice: Lattice, request: Request) -> Float[Array, "T N C"]:
    """Of all classes; 0 in frames beyond a sequence's length, whatever stood there."""
    kept = frames_first(frame_mask(lattice.input_lengths, frames_of(scores, request)), request)[:, :, None]
    # Padding must not only be left out: a NaN in it would find its way into the derivative.
    made = jnp.where(kept, scores.astype(accumulation_dtype(scores.dtype)), 0)
    if request.from_logits:
        peak = jax.lax.stop_gradient(made.max(axis=2, keepdims=True))
        made = made - peak
        # What a confident model leaves to all classes but the best is small, and would lose its digits beside one.
        best = jnp.arange(made.shape[2])[None, None] == jnp.argmax(made, axis=2, keepdims=True)
        above_one = jnp.where(best, jnp.expm1(made), jnp.exp(made)).sum(axis=2, keepdims=True)
        made = made - jnp.log1p(above_one)
    return jnp.maximum(frames_first(made, request), LOG_ZERO)


def build(
    log_probs: Float[Array, "T N C"],
    lattice: Lattice,
    request: Request,
    *,
    relative: bool = True,
    feasible: Bool[Array, " N"] | None = None,
) -> Emissions:
    """Relative to each frame's best, unless paths need not pass through all frames.

    Of sequences that are not possible, by the lattice's word if nothing else is given, the scores are not read: a
    NaN among them would find its way into the derivative.
    """
    label = jnp.take_along_axis(log_probs, lattice.labels[None], axis=2, mode="promise_in_bounds")
    blank = log_probs[:, :, request.blank, None]
    kept = (
        frame_mask(lattice.input_lengths, len(log_probs)) & (lattice.feasible if feasible is None else feasible)[None]
    )
    peak = jax.lax.stop_gradient(jnp.maximum(label.max(axis=2), blank[:, :, 0]))
    peak = jnp.where(kept & relative, peak, 0)
    return Emissions(LogStates(*(jnp.where(kept[:, :, None], x - peak[:, :, None], 0) for x in (blank, label))), peak)


def topology_of(lattice: Lattice) -> Topology:
    return Topology(lattices.skip(lattice.labels), lattice.input_lengths, lattice.target_lengths)
