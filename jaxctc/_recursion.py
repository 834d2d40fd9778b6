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
(`_alignment`). And its derivative in the direction of the emissions is the mean score of a path, for all
paths: the sum in the expectation semiring (`_states`).

The losses and their gradient come from `_both_ends`, which is tested against this; derivatives above the
first go through it, by JAX itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxctc._log_space import LOG_ZERO, logaddexp
from jaxctc._mesh import varying_like

Sum: TypeAlias = Callable[[Array, Array], Array]


class States(NamedTuple):
    """Of one frame, each (N, W); or what the states emit at each frame, each (T, N, W)."""

    blank: Float[Array, "..."]
    """Of what is emitted one column is enough: (T, N, 1)."""
    label: Float[Array, "..."]


class Rules(NamedTuple):
    """Which paths there are, and how they are weighed but for what they emit."""

    skip: Bool[Array, "N W"]
    input_lengths: Int[Array, " N"]
    target_lengths: Int[Array, " N"]
    stay: Float[Array, "T N"] | float = 0.0
    """What a label's second and every later frame adds to the score."""
    begins_anywhere: bool = False
    """A path may begin at any frame, not only at the first: what comes before costs nothing."""
    ends_anywhere: bool = False
    broken: Float[Array, ""] | None = None
    """What a path that breaks a rule adds to its score: one that begins in another state than blank 0, or that steps
    from a label to an equal one. No path does where it is None.
    """


def start(rules: Rules, dtype: jnp.dtype) -> States:
    """Before the first frame."""
    impossible = jnp.full(rules.skip.shape, LOG_ZERO if rules.broken is None else rules.broken, dtype)
    return States(impossible if rules.begins_anywhere else impossible.at[:, 0].set(0), impossible)


def step(plus: Sum, states: States, emitted: States, rules: Rules, stay: Array | float = 0.0) -> States:
    """On by one frame, for sequences that have it."""
    into_blank = plus(states.blank, from_left(states.label))
    stepped = states.blank if rules.broken is None else plus(states.blank, from_left(states.label) + rules.broken)
    into_label = jnp.where(rules.skip, into_blank, stepped)
    return States(into_blank + emitted.blank, plus(states.label + stay, into_label) + emitted.label)


def whole(plus: Sum, states: States) -> Float[Array, "N W"]:
    """The sum over all paths that spell so many labels: into a virtual last blank."""
    return plus(states.blank, from_left(states.label))


def last(plus: Sum, states: States, rules: Rules) -> Float[Array, " N"]:
    """The sum over all paths that have come to their end."""
    return jnp.take_along_axis(whole(plus, states), rules.target_lengths[:, None], axis=1)[:, 0]


def log_likelihood(emitted: States, rules: Rules) -> Float[Array, " N"]:
    """The log likelihood of each target."""
    (states, ended), _ = _scan(emitted, rules, keep=False)
    return ended if rules.ends_anywhere else last(logaddexp, states, rules)


def forward(emitted: States, rules: Rules) -> States:
    """Before the first frame and after each, (T + 1, N, W): the sum over all beginnings of paths that end there."""
    _, states = _scan(emitted, rules, keep=True)
    begin = start(rules, emitted.label.dtype)
    return States(*(jnp.concatenate([x[None], y]) for x, y in zip(begin, states, strict=True)))


def _scan(emitted: States, rules: Rules, *, keep: bool) -> tuple[tuple[States, Array], Any]:
    """The states after the last frame and the paths ended by then; and the states after every frame, to `keep`."""
    dtype = emitted.label.dtype
    ended = jnp.full(rules.target_lengths.shape, LOG_ZERO, dtype)

    def frame(carry, now):
        states, ended = carry
        t, stay, *emitted = now
        before = states
        if rules.begins_anywhere:
            begun = logaddexp(states.blank[:, :1], jnp.zeros_like(states.blank[:, :1]))
            before = states._replace(blank=jnp.concatenate([begun, states.blank[:, 1:]], axis=1))
        live = t < rules.input_lengths
        after = step(logaddexp, before, States(*emitted), rules, stay[:, None])
        states = States(*(jnp.where(live[:, None], x, y) for x, y in zip(after, states, strict=True)))
        if rules.ends_anywhere:
            ended = jnp.where(live, logaddexp(ended, last(logaddexp, states, rules)), ended)
        return (states, ended), states if keep else None

    count = emitted.label.shape[0]
    stay = jnp.broadcast_to(jnp.asarray(rules.stay, dtype), emitted.label.shape[:2])
    begin = varying_like((emitted, rules.skip), (start(rules, dtype), ended))
    return lax.scan(frame, begin, (jnp.arange(count, dtype=jnp.int32), stay, *emitted))


def from_left(x: Float[Array, "N W"]) -> Float[Array, "N W"]:
    """Column s takes what stood in column s - 1."""
    return jnp.concatenate([jnp.full_like(x[:, :1], LOG_ZERO), x[:, :-1]], axis=1)
