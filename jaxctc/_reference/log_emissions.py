"""Compute what the states of the lattice emit at each frame, in log space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._lattice import lattices
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frame_mask, frames_first, frames_of
from jaxctc._reference.recursion import LogStates, Topology
from jaxctc._types import LOG_ZERO, Request


class Emissions(NamedTuple):
    """Hold the emissions in the accumulation dtype, with log 0 as `LOG_ZERO`; 0 beyond a sequence's length."""

    states: LogStates
    """Blank (T, N, 1) and label (T, N, W), relative to the peak of their frame."""
    peak: Float[Array, "T N"]
    """The best emission of each frame, which is subtracted so that sums over paths stay small and keep their digits."""


def log_probs(scores: Float[Array, "A B C"], lattice: Lattice, request: Request) -> Float[Array, "T N C"]:
    """Return the log probabilities of all classes, no smaller than `LOG_ZERO`; 0 beyond a sequence's length."""
    mask = frames_first(frame_mask(lattice.input_lengths, frames_of(scores, request)), request)[:, :, None]
    # Padding is replaced before it is used: masking the result alone would let a NaN into the derivative.
    made = jnp.where(mask, scores.astype(accumulation_dtype(scores.dtype)), 0)
    if request.from_logits:
        peak = jax.lax.stop_gradient(made.max(axis=2, keepdims=True))
        # A frame that rules out every class has no log-softmax: all its classes are impossible.
        dead = jnp.isneginf(peak)
        made = jnp.where(dead, 0, made) - jnp.where(dead, 0, peak)
        # A confident model leaves little to the other classes: added to 1 it would lose its digits.
        best = jnp.arange(made.shape[2])[None, None] == jnp.argmax(made, axis=2, keepdims=True)
        above_one = jnp.where(best, jnp.expm1(made), jnp.exp(made)).sum(axis=2, keepdims=True)
        made = jnp.where(dead, LOG_ZERO, made - jnp.log1p(above_one))
    return jnp.maximum(frames_first(made, request), LOG_ZERO)


def build_emissions(
    log_probs: Float[Array, "T N C"],
    lattice: Lattice,
    request: Request,
    *,
    relative: bool = True,
    feasible: Bool[Array, " N"] | None = None,
) -> Emissions:
    """Return the emissions of all states.

    Without `relative` the peak is 0, for topologies whose paths need not pass through all frames. The scores of
    infeasible rows are not read, since a NaN among them would reach the derivative; `feasible`, if given, replaces the
    lattice's own.
    """
    label = jnp.take_along_axis(log_probs, lattice.labels[None], axis=2, mode="promise_in_bounds")
    blank = log_probs[:, :, request.blank, None]
    feasible = lattice.feasible if feasible is None else feasible
    mask = frame_mask(lattice.input_lengths, log_probs.shape[0]) & feasible[None]
    peak = jax.lax.stop_gradient(jnp.maximum(label.max(axis=2), blank[:, :, 0]))
    peak = jnp.where(mask & relative, peak, 0)
    return Emissions(LogStates(*(jnp.where(mask[:, :, None], x - peak[:, :, None], 0) for x in (blank, label))), peak)


def topology_of(lattice: Lattice) -> Topology:
    """Return the topology of CTC."""
    return Topology(lattices.skip(lattice.labels), lattice.input_lengths, lattice.target_lengths)
