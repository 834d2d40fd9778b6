"""The CTC recursion, forward, in logarithms, written as it is defined, over whatever sum is wanted.

A target of L labels has 2 L + 1 states. They are kept as two rows of W columns: `blank[s]` is the
blank after s labels, `label[s]` is label s (counted from 0), which lies between blank s and
blank s + 1. One frame is

    u[s]      = blank[s] (+) label[s - 1]               into blank s
    w[s]      = u[s] if skip[s] else blank[s]           what may step into label s
    blank'[s] = u[s] + e_blank[s]
    label'[s] = ((label[s] + stay) (+) w[s]) + e_label[s]

skip[s] says that label s differs from label s - 1. It starts from a virtual blank 0 before the first
frame, and frames at or beyond a sequence's own length leave its states as they are.

With logaddexp for (+) it sums over all paths: the likelihood. With the maximum it finds the best of them
(`alignment`). And its derivative in the direction of the emissions is the mean score of a path, for all
paths: the sum in the expectation semiring (`posterior_rule`).

The losses and their gradient come from `bidirectional`, which is tested against this; derivatives above the
first go through it, by JAX itself.
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
    """Of one frame, each (N, W); or what the states emit at each frame, each (T, N, W)."""

    blank: Float[Array, "..."]
    """Of what is emitted one column is enough: (T, N, 1)."""
    label: Float[Array, "..."]


class Topology(NamedTuple):
    """Which paths there are, and how they are weighed but for what they emit."""

    skip: Bool[Array, "N W"]
    input_lengths: Int[Array, " N"]
    target_lengths: Int[Array, " N"]
    self_loop_score: Float[Array, "T N"] | float = 0.0
    """What a label's second and every later frame adds to the score."""
    begins_anywhere: bool = False
    """A path may begin at any frame, not only at the first: what comes before costs nothing."""
    ends_anywhere: bool = False
    violation_score: Float[Array, ""] | None = None
    """What a path that breaks a rule adds to its score: one that begins in another state than blank 0, or that steps
    from a label to an equal one. No path does where it is None.
    """


def start(topology: Topology, dtype: jnp.dtype) -> LogStates:
    """Before the first frame."""
    impossible = jnp.full(
        topology.skip.shape, LOG_ZERO if topology.violation_score is None else topology.violation_score, dtype
    )
    return LogStates(impossible if topology.begins_anywhere else impossible.at[:, 0].set(0), impossible)


def step(
    plus: Sum, states: LogStates, emitted: LogStates, topology: Topology, self_loop_score: Array | float = 0.0
) -> LogStates:
    """On by one frame, for sequences that have it."""
    into_blank = plus(states.blank, from_left(states.label))
    stepped = (
        states.blank
        if topology.violation_score is None
        else plus(states.blank, from_left(states.label) + topology.violation_score)
    )
    into_label = jnp.where(topology.skip, into_blank, stepped)
    return LogStates(into_blank + emitted.blank, plus(states.label + self_loop_score, into_label) + emitted.label)


def whole(plus: Sum, states: LogStates) -> Float[Array, "N W"]:
    """The sum over all paths that spell so many labels: into a virtual last blank."""
    return plus(states.blank, from_left(states.label))


def last(plus: Sum, states: LogStates, topology: Topology) -> Float[Array, " N"]:
    """The sum over all paths that have come to their end."""
    return jnp.take_along_axis(whole(plus, states), topology.target_lengths[:, None], axis=1)[:, 0]


def log_likelihood(emitted: LogStates, topology: Topology) -> Float[Array, " N"]:
    """The log likelihood of each target."""
    (states, ended), _ = _scan(emitted, topology, keep=False)
    return ended if topology.ends_anywhere else last(logaddexp, states, topology)


def forward(emitted: LogStates, topology: Topology) -> LogStates:
    """Before the first frame and after each, (T + 1, N, W): the sum over all beginnings of paths that end there."""
    _, states = _scan(emitted, topology, keep=True)
    begin = start(topology, emitted.label.dtype)
    return LogStates(*(jnp.concatenate([x[None], y]) for x, y in zip(begin, states, strict=True)))


def _scan(emitted: LogStates, topology: Topology, *, keep: bool) -> tuple[tuple[LogStates, Array], Any]:
    """The states after the last frame and the paths ended by then; and the states after every frame, to `keep`."""
    dtype = emitted.label.dtype
    ended = jnp.full(topology.target_lengths.shape, LOG_ZERO, dtype)

    def frame(carry, now):
        states, ended = carry
        t, self_loop_score, *emitted = now
        before = states
        if topology.begins_anywhere:
            begun = logaddexp(states.blank[:, :1], jnp.zeros_like(states.blank[:, :1]))
            before = states._replace(blank=jnp.concatenate([begun, states.blank[:, 1:]], axis=1))
        frame_mask = t < topology.input_lengths
        after = step(logaddexp, before, LogStates(*emitted), topology, self_loop_score[:, None])
        states = LogStates(*(jnp.where(frame_mask[:, None], x, y) for x, y in zip(after, states, strict=True)))
        if topology.ends_anywhere:
            ended = jnp.where(frame_mask, logaddexp(ended, last(logaddexp, states, topology)), ended)
        return (states, ended), states if keep else None

    count = emitted.label.shape[0]
    self_loop_score = jnp.broadcast_to(jnp.asarray(topology.self_loop_score, dtype), emitted.label.shape[:2])
    begin = varying_like((emitted, topology.skip), (start(topology, dtype), ended))
    return lax.scan(frame, begin, (jnp.arange(count, dtype=jnp.int32), self_loop_score, *emitted))


def from_left(x: Float[Array, "N W"]) -> Float[Array, "N W"]:
    """Column s takes what stood in column s - 1."""
    return jnp.concatenate([jnp.full_like(x[:, :1], LOG_ZERO), x[:, :-1]], axis=1)
