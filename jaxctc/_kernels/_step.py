"""One step of the recursion, and what undoes it: pure functions of values, which every kernel shares.

They are the equations at the head of `_both_ends`. What differs from there is what is kept between the way
in and the way out: of a step that is to be undone only the shares, two numbers a pair of states, which the
sums yield as they are formed.

A kernel holds the states of some sequences and directions, (R, W), wherever it likes. All it has to provide
is the shift by one column: `shift_right` gives column s what column s - 1 holds, and column 0 nothing;
`shift_left` gives column s what column s + 1 holds, and the last column nothing.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc import _scaled
from jaxctc._scaled import Ratio, Scaled

ROOM = 16
"""Steps after which the states must have been normalised: a mantissa grows no more than eightfold in one."""


class States(NamedTuple):
    """The likelihoods of all beginnings of paths that end there. The blanks' are before their emission."""

    blank: Scaled
    label: Scaled


class Shares(NamedTuple):
    """Of what came into each state in one step, the part that was in it before."""

    blank: Float[Array, "R W"]
    label: Float[Array, "R W"]


class Flow(NamedTuple):
    """The probabilities of the states, given the target."""

    blank: Float[Array, "R W"]
    label: Float[Array, "R W"]


def started(column: Array, dtype: jnp.dtype) -> States:
    """Before the first step: in blank 0. `column` is the number of each column."""
    nothing = _scaled.zeros(column.shape, dtype)
    return States(nothing._replace(exponent=jnp.where(column == 0, 0, nothing.exponent)), nothing)


def step(
    states: States,
    skip: Bool[Array, "R W"],
    blank_score: Scaled,
    score: Float[Array, "R W"],
    shift_right: Callable[[Scaled], Scaled],
    ratio: Ratio = operator.truediv,
    exp2: Callable[[Array], Scaled] = _scaled.exp2,
) -> tuple[States, Shares]:
    """On by one step. Whoever does not undo it leaves the shares alone, and they are not computed.

    `blank_score`, (R, #W), is the blank's emission in the frame before; `score` is a logarithm to base 2.

    The results are not normalised (see `ROOM`), which changes no digit of theirs.
    """
    stay = states.blank * blank_score
    into_blank, held = _scaled.shared_sum(stay, shift_right(states.label), ratio)
    into_label, kept = _scaled.shared_sum(states.label, _scaled.where(skip, into_blank, stay), ratio)
    return States(into_blank, into_label * exp2(score)), Shares(held, kept)


def normalised(states: States) -> States:
    return States(*map(_scaled.normalised, states))


def undo(flow: Flow, shares: Shares, skip: Bool[Array, "R W"], shift_left: Callable[[Array], Array]) -> Flow:
    """Back by one step: each state gives back what it was given."""
    kept = flow.label * shares.label
    stepped = flow.label - kept
    # Where the blank may be skipped, what stepped into the label came through it.
    through = flow.blank + jnp.where(skip, stepped, 0)
    held = through * shares.blank
    return Flow(held + jnp.where(skip, 0, stepped), kept + shift_left(through - held))
