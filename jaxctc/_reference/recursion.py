"""Run the forward recursion in log space, over any sum and any topology: the generalized form of `ctc`.

A target of L labels has 2 L + 1 states. They are kept as two rows of W columns: column s holds blank state s, the
blank after s labels, and label state s (counted from 0), which lies between blank s and blank s + 1. With alpha the
forward variables and (+) the sum, one frame is

    into_blank[s] = alpha.blank[s] (+) alpha.label[s - 1]
    into_label[s] = into_blank[s] if skip[s] else alpha.blank[s]
    alpha.blank[s] <- into_blank[s] + emission.blank[s]
    alpha.label[s] <- ((alpha.label[s] + self_loop_score) (+) into_label[s]) + emission.label[s]

skip[s] says that label s differs from label s - 1, so that the blank between them may be skipped. Before the first
frame every path is in blank 0. Frames at or beyond a sequence's length leave its alpha unchanged.

With logaddexp as the sum the recursion gives the likelihood, with the maximum the score of the best path (`viterbi`).
The derivative of the log likelihood in the direction of the emissions is the mean score of a path: the same recursion
in the expectation semiring (`path_entropy` in `posterior_rule`).

The losses of CTC and their gradient come from `_forward_backward`. Derivatives above the first, those of posteriors,
and the losses whose paths are others come from this module, which JAX differentiates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._mesh import varying_like
from jaxctc._reference.log_space import logaddexp
from jaxctc._types import LOG_ZERO

Sum: TypeAlias = Callable[[Array, Array], Array]


class LogStates(NamedTuple):
    """Hold one logarithm for each state: alpha at one frame, (N, W) each, or the emissions of all, (T, N, W) each."""

    blank: Float[Array, "..."]
    """Blank states. All of them emit the same, so that emissions have a single column: (T, N, 1)."""
    label: Float[Array, "..."]
    """Label states."""


class Topology(NamedTuple):
    """Describe which paths there are, and what their transitions add to their scores."""

    skip: Bool[Array, "N W"]
    """The blank before label s may be skipped."""
    input_lengths: Int[Array, " N"]
    target_lengths: Int[Array, " N"]
    self_loop_score: Float[Array, "T N"] | float = 0.0
    """Added to the score of a path at each frame that continues the label of the frame before."""
    begins_anywhere: bool = False
    """A path may begin at any frame, not only at the first; the frames before it cost nothing."""
    ends_anywhere: bool = False
    """A path may end at any frame, not only at the last; the frames after it cost nothing."""


def initial_states(topology: Topology, dtype: jnp.dtype) -> LogStates:
    """Return alpha before the first frame."""
    nowhere = jnp.full(topology.skip.shape, LOG_ZERO, dtype)
    return LogStates(nowhere if topology.begins_anywhere else nowhere.at[:, 0].set(0), nowhere)


def step(
    plus: Sum, alpha: LogStates, emission: LogStates, topology: Topology, self_loop_score: Array | float = 0.0
) -> LogStates:
    """Return alpha after one more frame."""
    stepped = into_blank(plus, alpha)
    into_label = jnp.where(topology.skip, stepped, alpha.blank)
    return LogStates(stepped + emission.blank, plus(alpha.label + self_loop_score, into_label) + emission.label)


def into_blank(plus: Sum, alpha: LogStates) -> Float[Array, "N W"]:
    """Return the sum over the paths that are in blank s or in label s - 1: those that have spelled s labels."""
    return plus(alpha.blank, from_left(alpha.label))


def last(plus: Sum, alpha: LogStates, topology: Topology) -> Float[Array, " N"]:
    """Return the sum over the paths that have spelled the whole target."""
    return jnp.take_along_axis(into_blank(plus, alpha), topology.target_lengths[:, None], axis=1)[:, 0]


def log_likelihood(emissions: LogStates, topology: Topology) -> Float[Array, " N"]:
    """Return the log likelihood of each target."""
    (alpha, ended), _ = _scan(emissions, topology, keep=False)
    return ended if topology.ends_anywhere else last(logaddexp, alpha, topology)


def forward(emissions: LogStates, topology: Topology) -> LogStates:
    """Return alpha before the first frame and after each: (T + 1, N, W)."""
    _, alpha = _scan(emissions, topology, keep=True)
    initial = initial_states(topology, emissions.label.dtype)
    return LogStates(*(jnp.concatenate([x[None], y]) for x, y in zip(initial, alpha, strict=True)))


def _scan(emissions: LogStates, topology: Topology, *, keep: bool) -> tuple[tuple[LogStates, Array], Any]:
    """Return alpha after the last frame and the sum over the paths that have ended; with `keep` also every alpha."""
    dtype = emissions.label.dtype
    ended = jnp.full(topology.target_lengths.shape, LOG_ZERO, dtype)

    def frame(carry, now):
        alpha, ended = carry
        t, self_loop_score, *emission = now
        before = alpha
        if topology.begins_anywhere:
            begun = logaddexp(alpha.blank[:, :1], jnp.zeros_like(alpha.blank[:, :1]))
            before = alpha._replace(blank=jnp.concatenate([begun, alpha.blank[:, 1:]], axis=1))
        frame_mask = t < topology.input_lengths
        after = step(logaddexp, before, LogStates(*emission), topology, self_loop_score[:, None])
        alpha = LogStates(*(jnp.where(frame_mask[:, None], x, y) for x, y in zip(after, alpha, strict=True)))
        if topology.ends_anywhere:
            ended = jnp.where(frame_mask, logaddexp(ended, last(logaddexp, alpha, topology)), ended)
        return (alpha, ended), alpha if keep else None

    count = emissions.label.shape[0]
    self_loop_score = jnp.broadcast_to(jnp.asarray(topology.self_loop_score, dtype), emissions.label.shape[:2])
    initial = varying_like((emissions, topology.skip), (initial_states(topology, dtype), ended))
    return lax.scan(frame, initial, (jnp.arange(count, dtype=jnp.int32), self_loop_score, *emissions))


def from_left(x: Float[Array, "N W"]) -> Float[Array, "N W"]:
    """Return the array shifted by one column: column s holds what column s - 1 held."""
    return jnp.concatenate([jnp.full_like(x[:, :1], LOG_ZERO), x[:, :-1]], axis=1)
