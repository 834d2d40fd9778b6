"""The CTC recursion, forward, in logarithms, written as it is defined.

A target of L labels has 2 L + 1 states. They are kept as two rows of W columns: `blank[s]` is the
blank after s labels, `label[s]` is label s (counted from 0), which lies between blank s and
blank s + 1. One frame is

    u[s]      = blank[s] (+) label[s - 1]               into blank s
    w[s]      = u[s] if skip[s] else blank[s]           what may step into label s
    blank'[s] = u[s] + e_blank
    label'[s] = (label[s] (+) w[s]) + e[s]

with (+) the logaddexp: two for two states. skip[s] says that label s differs from label s - 1. It starts
from a virtual blank 0 before the first frame. Frames at or beyond a sequence's own length leave its
states as they are.

Derivatives above the first go through this, by JAX itself; and `_both_ends`, which the losses and their
gradient come from, is tested against it.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._log_space import LOG_ZERO, logaddexp


def log_likelihood(
    emissions: Float[Array, "T N W"],
    skip: Bool[Array, "N W"],
    input_lengths: Int[Array, " N"],
    target_lengths: Int[Array, " N"],
) -> Float[Array, " N"]:
    """The log likelihood of each target. The last column of the emissions holds the blank's."""

    def step(alpha, frame):
        blank, label = alpha
        t, e = frame
        u = logaddexp(blank, _from_left(label))
        w = jnp.where(skip, u, blank)
        live = (t < input_lengths)[:, None]
        blank = jnp.where(live, u + e[:, -1:], blank)
        label = jnp.where(live, logaddexp(label, w) + e, label)
        return (blank, label), None

    impossible = jnp.full(emissions.shape[1:], LOG_ZERO, emissions.dtype)
    start = impossible.at[:, 0].set(0), impossible
    frames = jnp.arange(emissions.shape[0], dtype=jnp.int32), emissions
    (blank, label), _ = lax.scan(step, start, frames)
    whole = logaddexp(blank, _from_left(label))  # into a virtual last blank
    return jnp.take_along_axis(whole, target_lengths[:, None], axis=1)[:, 0]


def _from_left(x: Float[Array, "N W"]) -> Float[Array, "N W"]:
    """Column s takes what stood in column s - 1."""
    return jnp.concatenate([jnp.full_like(x[:, :1], LOG_ZERO), x[:, :-1]], axis=1)
