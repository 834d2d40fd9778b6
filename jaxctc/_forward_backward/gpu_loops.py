"""Run the forward-backward recursion from both ends of the input at once, as loops for GPUs without a kernel.

The recursion is that of `bidirectional`, step for step; the loops are others, because a GPU pays for each launch of a
kernel, and waits for the host after each turn of a loop whose length the host does not know:

- All lengths are known when the program is compiled. A step outside a sequence's frames changes no state, since its
  blank has probability one and its labels have zero, so that it need not be left out.
- A turn of a loop has `turn_size` steps, so that its counter and its stores cost little beside them. Two steps are one
  kernel, which reads the states of both directions whole and writes new ones: a step needs its left neighbour alone,
  and the second step of the two computes this neighbour's first step once more.
- No state is stored. The forward pass stores, for each sum of two states, what fraction of it the smaller one is
  (`scaled.smaller_fraction`), one number for each state and step. Those of labels overwrite the scores of the step. The
  backward pass needs nothing else, and writes the posterior in the place of the fractions that it has read.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.bidirectional import Posterior, Scatter, unchanged
from jaxctc._forward_backward.buffers import of_step
from jaxctc._forward_backward.join import flush_negligible, join_directions
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._forward_backward.segments import step_count
from jaxctc._mesh import varying_like
from jaxctc._sizes import Index
from jaxctc._slices import put_in_axis
from jaxctc._tracing import fori_loop, scan
from jaxctc._types import LOG_ZERO

_STEPS = 2
"""The steps of one kernel: of three, the third would compute three columns of the first step and two of the second."""
_MOST = 16
"""The most steps of a turn: with each, the compiler has another kernel to make."""
_OVERHEAD = 3
"""The launches of a turn besides those of its steps: its counter, and what it stores of labels and of blanks."""
_FEWEST = 4
"""The fewest turns of an input that is not very short. Until a turn ends, what its steps give is in memory twice."""
LARGE = 1 << 31
"""The most bytes of scores; the fractions take twice as many, and half of them overwrite the scores."""


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
    """The posterior (occupancy) of each state after a step."""

    label: Float[Array, "N 2 W"]
    blank: Float[Array, "N 2 W"]


_Row = TypeVar("_Row", _Fractions, _Occupancy)


class _Stored(NamedTuple):
    """What is stored of each step: its `_Fractions`, and from the backward pass on the `_Occupancy` after it."""

    label: Float[Array, "N 2 M W"]
    """Before the forward pass, the scores."""
    blank: Float[Array, "N 2 M W"]

    def write(self, first: Index, found: Sequence[tuple[Array, Array]]) -> "_Stored":
        """Return a copy in which `found` replaces what is stored of the steps from `first` on."""
        rows = (jnp.stack(x, axis=2) for x in zip(*found, strict=True))
        return _Stored(*(put_in_axis(x, y, first, axis=2) for x, y in zip(self, rows, strict=True)))


def turn_size(frames: int) -> int:
    """Return the number of steps of a turn with which so many frames take the fewest launches.

    There are at least `_FEWEST` turns, but for very short inputs.
    """

    def launches(size: int) -> int:
        return step_count(frames, size) // size * (size // _STEPS + _OVERHEAD)

    most = min(_MOST, max(frames // (2 * _FEWEST), 2 * _STEPS))
    return min(range(_STEPS, most + 1, _STEPS), key=lambda size: (launches(size), -size))


def likelihood(emissions: ScaledEmissions, size: int) -> Scaled:
    """Return what `bidirectional.likelihood` returns, in turns of `size` steps. The scores are stored."""

    def turn(i: Index, states: _States) -> _States:
        return _forward_steps(emissions, i * size, size, states)[0]

    states = fori_loop(0, emissions.steps // size, turn, _initial_states(emissions))
    return join_directions(states.blank, states.label, emissions).likelihood


def posterior(
    emissions: ScaledEmissions, size: int, *, every_blank: bool = False, scatter: Scatter = unchanged
) -> tuple[Scaled, Posterior]:
    """Return what `bidirectional.posterior` returns, in turns of `size` steps. The scores are stored."""
    turns, scores = emissions.steps // size, emissions.stored_scores
    stored = _Stored(scores, varying_like(emissions.blank, lax.empty(scores.shape, scores.dtype)))

    def onward(i: Index, carry: tuple[_States, _Stored]) -> tuple[_States, _Stored]:
        states, stored = carry
        states, fractions = _forward_steps(emissions._replace(scores=stored.label), i * size, size, states)
        return states, stored.write(i * size, fractions)

    states, stored = fori_loop(0, turns, onward, (_initial_states(emissions), stored))
    join = join_directions(states.blank, states.label, emissions)

    def back(n: Index, carry: tuple[_Occupancy, _Stored]) -> tuple[_Occupancy, _Stored]:
        occupancy, stored = carry
        first = (turns - 1 - n) * size
        occupancy, found = _backward_steps(emissions.skip, stored, first, size, occupancy)
        return occupancy, stored.write(first, found)

    _, (label, blank) = fori_loop(0, turns, back, (_Occupancy(join.label, join.blank), stored))
    # The blanks are added up before the scatter, whose result then takes their memory if nobody asks for each blank.
    label, of_blanks = lax.optimization_barrier((label, blank.sum(axis=3)))
    return join.likelihood, Posterior(scatter(label), of_blanks, blank if every_blank else None)


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
) -> tuple[_States, list[_Fractions]]:
    """Run so many steps from `first` on; return the states after them, and the fractions of each step."""

    def kernel(states: _States, number: Array) -> tuple[_States, list[_Fractions]]:
        found = []
        for k in range(_STEPS):
            i = first + number * _STEPS + k
            blank = Scaled(*(of_step(x[..., None], i) for x in emissions.blank))
            states, fractions = _step(states, blank, of_step(emissions.stored_scores, i), emissions.skip)
            found.append(fractions)
        # Between two barriers XLA makes one kernel of all steps; without them it would make longer ones.
        return lax.optimization_barrier((states, found))

    numbers = jnp.arange(count // _STEPS, dtype=jnp.int32)
    states, found = scan(kernel, states, numbers, unroll=True)
    return states, _one_by_one(found)


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
    skip: Array, stored: _Stored, first: Index, count: int, occupancy: _Occupancy
) -> tuple[_Occupancy, list[_Occupancy]]:
    """Undo so many steps from the last one to `first`; return the posterior before them, and the one after each."""

    def kernel(occupancy: _Occupancy, number: Array) -> tuple[_Occupancy, list[_Occupancy]]:
        found = []
        for k in reversed(range(_STEPS)):
            # What is stored is a result of this kernel: to store what it was given, XLA would copy that first.
            after = _Occupancy(*map(flush_negligible, occupancy))
            fractions = _Fractions(*(of_step(x, first + number * _STEPS + k) for x in stored))
            occupancy = _backward_step(after, fractions, skip)
            found.append(after)
        return lax.optimization_barrier((occupancy, found[::-1]))

    numbers = jnp.arange(count // _STEPS, dtype=jnp.int32)
    occupancy, found = scan(kernel, occupancy, numbers, reverse=True, unroll=True)
    return occupancy, _one_by_one(found)


def _backward_step(after: _Occupancy, fractions: _Fractions, skip: Array) -> _Occupancy:
    """Return the posterior before a step: each state's is divided among the states that it came from."""
    self_loop, entered = scaled.split(after.label, after.label * fractions.label)
    into_blank = equations.back_into_blank(after.blank, entered, skip)
    staying, arriving = scaled.split(into_blank, into_blank * fractions.blank)
    return _Occupancy(self_loop + _left(arriving), equations.back_in_blank(staying, entered, skip))


def _one_by_one(found: Sequence[_Row]) -> list[_Row]:
    """Return what a scan over kernels has found in each of their steps, in the order of the steps."""
    kernels = range(len(found[0][0]))
    return [type(x)(*(y[k] for y in x)) for k in kernels for x in found]


def _left(x: Float[Array, "N 2 W"]) -> Float[Array, "N 2 W"]:
    """Return in column s what is in column s + 1, and 0 in the last column."""
    return jnp.pad(x[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
