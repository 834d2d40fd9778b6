"""One step of the forward pass, and of the backward pass, as all kernels compute it: pure functions of values.

Column s of the lattice holds blank s and label s, the label that follows that blank. A path comes to blank s from
itself or from label s - 1, and to label s from itself, from blank s or, past that blank, from label s - 1: the last
only where `skip[s]` says that the two labels differ. With y for the emissions of a frame, and a' for the forward
variables one frame later, Graves's equations are

    a'(blank s) = (a(blank s) + a(label s - 1)) y'(blank)
    a'(label s) = (a(label s) + a(blank s) + a(label s - 1) if skip[s]) y'(label s)

`States` holds a(blank s) without its emission, which the next step multiplies in: then a(blank s) + a(label s - 1) is
an addend of the second sum too, and each sum has two addends only (see `equations`, which the loops of XLA share).

The backward pass needs no second set of variables. The forward step returns the fraction that the first addend has in
each sum: given the state after the step, the probability that the path came that way. From the last step to the first,
`backward_step` divides the occupancy (gamma) of each state by these fractions into the posteriors of the transitions
(xi), and adds those up to the occupancies one frame earlier.

A kernel holds the states of some sequences and directions, (R, W), wherever it likes. It provides the shift by one
column: `shift_right` gives column s what column s - 1 holds, and column 0 zero; `shift_left` gives column s what column
s + 1 holds, and the last column zero.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.scaled import Ratio, Scaled

RENORMALIZE_EVERY = 16
"""The most steps between two calls of `renormalized`: in one step a number grows no more than eightfold."""


class States(NamedTuple):
    """The forward variables (alpha) of each column; the blanks' are without the emission of the last frame."""

    blank: Scaled
    label: Scaled


class TransitionProbs(NamedTuple):
    """Given the state after a step, the probability of the first addend in the sum that `step` forms for it."""

    blank: Float[Array, "R W"]
    """The path was in blank s before, not in label s - 1; also given label s, if it was entered by this sum."""
    label: Float[Array, "R W"]
    """The path was in label s before: the self-loop."""


class Occupancy(NamedTuple):
    """The posterior probabilities of the states (gamma) in one frame, given the target."""

    blank: Float[Array, "R W"]
    label: Float[Array, "R W"]


def initial_states(column: Array, dtype: jnp.dtype) -> States:
    """Return the states before the first step: all paths are in blank 0. `column` holds each column's number."""
    zero = scaled.zeros(column.shape, dtype)
    return States(zero._replace(exponent=jnp.where(column == 0, 0, zero.exponent)), zero)


def step(
    states: States,
    skip: Bool[Array, "R W"],
    blank_score: Scaled,
    score: Float[Array, "R W"],
    shift_right: Callable[[Scaled], Scaled],
    ratio: Ratio = operator.truediv,
    exp2: Callable[[Array], Scaled] = scaled.exp2,
) -> tuple[States, TransitionProbs]:
    """Return the states one frame later, not normalized (see `RENORMALIZE_EVERY`), and the step's transitions.

    `blank_score`, (R, #W), is the blank's emission in the frame before this step; `score` is the logarithm to base 2 of
    each label's emission in the frame of this step. If the caller ignores the transitions, they are dead code.
    """
    prev_blank = states.blank * blank_score
    into_blank, from_prev_blank = scaled.sum_with_fraction(prev_blank, shift_right(states.label), ratio)
    entering = equations.entering_label(prev_blank, into_blank, skip)
    into_label, self_loop = scaled.sum_with_fraction(states.label, entering, ratio)
    return States(into_blank, into_label * exp2(score)), TransitionProbs(from_prev_blank, self_loop)


def renormalized(states: States) -> States:
    """Return the same states with mantissas in [0, 1)."""
    return States(*map(scaled.renormalized, states))


def backward_step(
    occupancy: Occupancy,
    transition_probs: TransitionProbs,
    skip: Bool[Array, "R W"],
    shift_left: Callable[[Array], Array],
) -> Occupancy:
    """Return the occupancy one frame earlier: each state's is divided among the states before it."""
    self_loop = occupancy.label * transition_probs.label
    entering = occupancy.label - self_loop
    into_blank = equations.back_into_blank(occupancy.blank, entering, skip)
    from_prev_blank = into_blank * transition_probs.blank
    blank = equations.back_in_blank(from_prev_blank, entering, skip)
    from_prev_label = into_blank - from_prev_blank
    return Occupancy(blank, self_loop + shift_left(from_prev_label))
