"""Run the forward-backward recursion from both ends of the input at once, as loops for GPUs without a kernel.

The recursion is that of `bidirectional`, step for step; the loops are others, because a GPU pays for each launch of a
kernel, and waits for the host after each turn of a loop whose length the host does not know:

- All lengths are known when the program is compiled. A step outside a sequence's frames changes no state, since its
  blank has probability one and its labels have zero, so that it need not be left out.
- A turn of a loop has `turn_size` steps, so that its counter and its stores cost little beside them. Two steps are one
  kernel, which reads the states of both directions whole and writes new ones: a step needs its left neighbour alone,
  and the second step of the two computes this neighbour's first step once more.
- No state is stored. The forward pass stores, for each sum of two states, what fraction of it the smaller one is
  (`scaled.smaller_fraction`), one number for each state and step. The backward pass needs nothing else, and writes the
  posterior in the place of the fractions that it has read.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.bidirectional import Posterior, Scatter
from jaxctc._forward_backward.buffers import row_of
from jaxctc._forward_backward.join import flush_negligible, join_directions
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._forward_backward.segments import step_count
from jaxctc._lattice.frame_map import Index
from jaxctc._mesh import varying_like
from jaxctc._types import LOG_ZERO

_STEPS = 2
"""The steps of one kernel: of three, the third would compute three columns of the first step and two of the second."""
_MOST = 16
"""The most steps of a turn: with each, the compiler has another kernel to make."""
_OVERHEAD = 2
"""The launches of a turn besides those of its steps: its counter, and what it stores."""
LARGE = 1 << 31
"""The most bytes of scores; the fractions are two times as many."""


class _States(NamedTuple):
    """The forward variables after a step; blanks do not have their own frame's emission yet."""

    blank: Scaled
    label: Scaled


class _Fractions(NamedTuple):
    """For the two sums of a step, what fraction the smaller addend is of each; see `scaled.smaller_fraction`."""

    label: Float[Array, "N 2 W"]
    """Negative where the smaller addend is what entered label s."""
    blank: Float[Array, "N 2 W"]
    """Negative where the smaller addend is label s - 1."""


class _Occupancy(NamedTuple):
    """The posterior (occupancy) of each state after a step, stored in the place of the step's `_Fractions`."""

    label: Float[Array, "N 2 W"]
    blank: Float[Array, "N 2 W"]


def turn_size(frames: int) -> int:
    """Return the number of steps of a turn with which so many frames take the fewest launches."""

    def launches(size: int) -> int:
        return step_count(frames, size) // size * (size // _STEPS + _OVERHEAD)

    return min(range(_MOST, 0, -_STEPS), key=launches)


def likelihood(emissions: ScaledEmissions, size: int) -> Scaled:
    """Return what `bidirectional.likelihood` returns, in turns of `size` steps. The scores are stored."""

    def turn(i: Index, states: _States) -> _States:
        return _forward_steps(emissions, i * size, size, states)[0]

    states = lax.fori_loop(0, emissions.steps // size, turn, _initial_states(emissions))
    return join_directions(states.blank, states.label, emissions).likelihood


def posterior(
    emissions: ScaledEmissions, size: int, *, every_blank: bool = False, scatter: Scatter = lambda label: label
) -> tuple[Scaled, Posterior]:
    """Return what `bidirectional.posterior` returns, in turns of `size` steps. The scores are stored."""
    turns = emissions.steps // size
    shape = (turns, size, len(_Fractions._fields), *emissions.skip.shape)
    table = varying_like(emissions.blank, lax.empty(shape, emissions.stored_scores.dtype))

    def onward(i: Index, carry: tuple[_States, Array]) -> tuple[_States, Array]:
        states, table = carry
        states, fractions = _forward_steps(emissions, i * size, size, states)
        return states, lax.dynamic_update_index_in_dim(table, fractions, i, 0)

    states, table = lax.fori_loop(0, turns, onward, (_initial_states(emissions), table))
    join = join_directions(states.blank, states.label, emissions)

    def back(n: Index, carry: tuple[_Occupancy, Array]) -> tuple[_Occupancy, Array]:
        occupancy, table = carry
        i = turns - 1 - n
        fractions = lax.dynamic_index_in_dim(table, i, 0, keepdims=False)
        occupancy, found = _backward_steps(emissions, fractions, occupancy)
        return occupancy, lax.dynamic_update_index_in_dim(table, found, i, 0)

    _, table = lax.fori_loop(0, turns, back, (_Occupancy(join.label, join.blank), table))
    found = table.reshape(emissions.steps, *table.shape[2:])
    label, blank = (jnp.moveaxis(found[:, k], 0, 2) for k in range(2))
    return join.likelihood, Posterior(scatter(label), blank.sum(axis=3), blank if every_blank else None)


def _initial_states(emissions: ScaledEmissions) -> _States:
    """Return the states before the first frame, in which every path is in blank 0."""
    shape = emissions.skip.shape
    here = lax.broadcasted_iota(jnp.int32, shape, 2) == 0
    # The blank's emission before the first frame is one, so that its exponent is 0. XLA makes one kernel of all that is
    # computed from it, but one of each constant, and a copy of an array that is wanted twice.
    nothing = jnp.broadcast_to(emissions.blank.exponent[:, :, :1], shape)
    blank = Scaled(nothing, jnp.where(here, nothing, LOG_ZERO))
    return _States(blank, Scaled(-nothing, nothing + LOG_ZERO))


def _forward_steps(
    emissions: ScaledEmissions, first: Index, count: int, states: _States
) -> tuple[_States, Float[Array, "count 2 N 2 W"]]:
    """Run so many steps from `first` on; return the states after them, and the fractions of each step."""

    def kernel(states: _States, number: Array) -> tuple[_States, list[_Fractions]]:
        found = []
        for k in range(_STEPS):
            i = first + number * _STEPS + k
            blank = Scaled(*(row_of(x[..., None], i) for x in emissions.blank))
            states, fractions = _step(states, blank, row_of(emissions.stored_scores, i), emissions.skip)
            found.append(fractions)
        # Between two barriers XLA makes one kernel of all steps; without them it would make longer ones.
        return lax.optimization_barrier((states, found))

    numbers = jnp.arange(count // _STEPS, dtype=jnp.int32)
    states, found = lax.scan(kernel, states, numbers, unroll=True)
    return states, _stacked(found)


def _step(
    states: _States, prev_blank_score: Scaled, score: Float[Array, "N 2 W"], skip: Array
) -> tuple[_States, _Fractions]:
    """Return the states one frame later, and the fractions of the two sums that they are."""
    prev_blank = states.blank * prev_blank_score
    prev_label = scaled.from_left(states.label)
    into_blank = equations.into_blank(prev_blank, prev_label)
    entering = equations.entering_label(prev_blank, into_blank, skip)
    into_label = equations.into_label(states.label, entering) * scaled.exp2(score)
    fractions = _Fractions(
        scaled.smaller_fraction(states.label, entering), scaled.smaller_fraction(prev_blank, prev_label)
    )
    return _States(scaled.renormalized(into_blank), scaled.renormalized(into_label)), fractions


def _backward_steps(
    emissions: ScaledEmissions, fractions: Float[Array, "count 2 N 2 W"], occupancy: _Occupancy
) -> tuple[_Occupancy, Float[Array, "count 2 N 2 W"]]:
    """Return the posterior before the steps whose fractions these are, and the one after each of them."""

    def kernel(occupancy: _Occupancy, fractions: Array) -> tuple[_Occupancy, list[_Occupancy]]:
        found = []
        for k in reversed(range(_STEPS)):
            # What is stored is a result of this kernel: to store what it was given, XLA would copy that first.
            after = _Occupancy(*map(flush_negligible, occupancy))
            occupancy = _backward_step(after, _Fractions(fractions[k, 0], fractions[k, 1]), emissions.skip)
            found.append(after)
        return lax.optimization_barrier((occupancy, found[::-1]))

    by_kernel = fractions.reshape(len(fractions) // _STEPS, _STEPS, *fractions.shape[1:])
    occupancy, found = lax.scan(kernel, occupancy, by_kernel, reverse=True, unroll=True)
    return occupancy, _stacked(found)


def _backward_step(after: _Occupancy, fractions: _Fractions, skip: Array) -> _Occupancy:
    """Return the posterior before a step: each state's is divided among the states that it came from."""
    self_loop, entered = scaled.split(after.label, after.label * fractions.label)
    into_blank = equations.back_into_blank(after.blank, entered, skip)
    staying, arriving = scaled.split(into_blank, into_blank * fractions.blank)
    return _Occupancy(self_loop + _left(arriving), equations.back_in_blank(staying, entered, skip))


def _stacked(found: Sequence[Iterable[Array]]) -> Float[Array, "count 2 N 2 W"]:
    """Return in one array what a scan over kernels has found in each of their steps."""
    both = jnp.stack([jnp.stack([*x], axis=1) for x in found], axis=1)
    return both.reshape(both.shape[0] * both.shape[1], *both.shape[2:])


def _left(x: Float[Array, "N 2 W"]) -> Float[Array, "N 2 W"]:
    """Return in column s what is in column s + 1, and 0 in the last column."""
    return jnp.pad(x[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
