"""One step of the recursion, and what undoes it: pure functions of values, which every kernel shares.

They are the equations at the head of `bidirectional`. What differs from there is what is kept between the way
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

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Ratio, Scaled

ROOM = 16
"""Steps after which the states must have been normalised: a mantissa grows no more than eightfold in one."""


class States(NamedTuple):
    """The likelihoods of all beginnings of paths that end there. The blanks' are before their emission."""

    blank: Scaled
    label: Scaled


class TransitionProbs(NamedTuple):
    """Of what came into each state in one step, the part that was in it before."""

    blank: Float[Array, "R W"]
    label: Float[Array, "R W"]


class Occupancy(NamedTuple):
    """The probabilities of the states, given the target."""

    blank: Float[Array, "R W"]
    label: Float[Array, "R W"]


def initial_states(column: Array, dtype: jnp.dtype) -> States:
    """Before the first step: in blank 0. `column` is the number of each column."""
    nothing = scaled.zeros(column.shape, dtype)
    return States(nothing._replace(exponent=jnp.where(column == 0, 0, nothing.exponent)), nothing)


def step(
    states: States,
    skip: Bool[Array, "R W"],
    blank_score: Scaled,
    score: Float[Array, "R W"],
    shift_right: Callable[[Scaled], Scaled],
    ratio: Ratio = operator.truediv,
    exp2: Callable[[Array], Scaled] = scaled.exp2,
) -> tuple[States, TransitionProbs]:
    """On by one step. Whoever does not undo it leaves the shares alone, and they are not computed.

    `blank_score`, (R, #W), is the blank's emission in the frame before; `score` is a logarithm to base 2.

    The results are not normalised (see `ROOM`), which changes no digit of theirs.
    """
    prev_blank = states.blank * blank_score
    into_blank, held = scaled.sum_with_fraction(prev_blank, shift_right(states.label), ratio)
    into_label, kept = scaled.sum_with_fraction(states.label, scaled.where(skip, into_blank, prev_blank), ratio)
    return States(into_blank, into_label * exp2(score)), TransitionProbs(held, kept)


def renormalized(states: States) -> States:
    return States(*map(scaled.renormalized, states))


def backward_step(
    occupancy: Occupancy,
    transition_probs: TransitionProbs,
    skip: Bool[Array, "R W"],
    shift_left: Callable[[Array], Array],
) -> Occupancy:
    """Back by one step: each state gives back what it was given."""
    kept = occupancy.label * transition_probs.label
    entered = occupancy.label - kept
    # Where the blank may be skipped, what stepped into the label came through it.
    blank_mass = occupancy.blank + jnp.where(skip, entered, 0)
    held = blank_mass * transition_probs.blank
    return Occupancy(held + jnp.where(skip, 0, entered), kept + shift_left(blank_mass - held))
