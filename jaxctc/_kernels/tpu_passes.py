"""The two kernels for TPUs: the forward pass over the blocks of steps, and the backward pass.

The grid is blocks of rows, which are independent, by blocks of steps, one after the other. The states stay in VMEM from
block to block. While a kernel works on one block, the scores of the next are copied to VMEM.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from jaxctc._forward_backward.scaled import Scaled
from jaxctc._kernels.step import Occupancy, States, TransitionProbs, backward_step, initial_states, renormalized, step
from jaxctc._kernels.tpu_layout import LANES, SUBLANES, UNROLLED, Cut, Ref, lane_numbers
from jaxctc._types import LOG_ZERO

# Where newer versions of JAX have it, and where older ones do.
_reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal

_Slice: TypeAlias = Any


def forward_pass(
    cut: Cut,
    start: Ref,
    scores: Ref,
    exponent: Ref,
    mantissa: Ref,
    skip: Ref,
    last: Ref,
    *rest: Ref,
) -> None:
    """Store the last states and, if there is a reference for them, checkpoints: the states before each block."""
    *checkpoint, states, by_step = rest
    number = pl.program_id(1)
    block = _Block(cut, number, start[0], by_step, (exponent, mantissa), skip[...] > 0)

    @pl.when(number == 0)
    def _() -> None:
        _store_states(states, initial_states(lane_numbers(cut.rows, cut.lanes), by_step.dtype))

    @pl.when(number >= cut.first_block(start[0]))
    def _() -> None:
        before = load_states(states)
        for ref in checkpoint:
            _store_states(ref, before)
        block.load_scores(scores)
        _store_states(states, block.forward_steps(before, lambda *_: None))

    @pl.when(number == cut.grid[1] - 1)
    def _() -> None:
        last[...] = states[...]


def backward_pass(
    cut: Cut,
    start: Ref,
    scores: Ref,
    exponent: Ref,
    mantissa: Ref,
    skip: Ref,
    checkpoint: Ref,
    join: Ref,
    label: Ref,
    blank: Ref,
    *rest: Ref,
) -> None:
    """Store the posterior of each label, of all blanks together and, if there are references for it, of each blank.

    Each block is recomputed from its checkpoint, and its transition probabilities are stored in VMEM.
    """
    *every_blank, occupancy, by_step, transition_probs = rest  # the first two: by row, and by step
    number = cut.grid[1] - 1 - pl.program_id(1)
    block = _Block(cut, number, start[0], by_step, (exponent, mantissa), skip[...] > 0)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        occupancy[...] = join[...]

    def store_transition_probs(k: Array, now: TransitionProbs) -> None:
        for i, x in enumerate(now):
            transition_probs[k, i] = x

    def store_posterior(k: Array, now: Occupancy) -> None:
        by_step[k] = now.label
        for blanks_by_step in every_blank[1:]:
            blanks_by_step[k] = now.blank
        blank[...] = jnp.where(lane_numbers(cut.rows) == k, now.blank.sum(axis=1, keepdims=True), blank[...])

    @pl.when(number >= cut.first_block(start[0]))
    def _() -> None:
        block.load_scores(scores)
        block.forward_steps(load_states(checkpoint), store_transition_probs)
        before = block.backward_steps(
            Occupancy(occupancy[0], occupancy[1]),
            lambda k: TransitionProbs(transition_probs[k, 0], transition_probs[k, 1]),
            store_posterior,
        )
        for i, x in enumerate(before):
            occupancy[i] = x
        block.store_by_row(by_step, label)
        if every_blank:
            block.store_by_row(*reversed(every_blank))


class _Block(NamedTuple):
    """Some steps of some rows, which a kernel works on at one point of the grid."""

    cut: Cut
    number: Array
    """The number of the block of steps."""
    start: Array
    by_step: Ref
    """(steps, rows, lanes): the scores, transposed, and in the backward pass the labels' posterior in their place."""
    blank: tuple[Ref, Ref]
    """The exponents of the blank's emissions, and their mantissas."""
    skip: Bool[Array, "R W"]

    def load_scores(self, scores: Ref) -> None:
        """Transpose the scores to (steps, rows, lanes); columns beyond the lattice get those of impossible labels."""
        last_register = self.cut.lanes - LANES

        def load(steps: _Slice, rows: _Slice) -> None:
            self.by_step[steps, rows] = scores[rows, steps].swapaxes(0, 1)
            edge = self.by_step[steps, rows, last_register:]
            exists = lax.broadcasted_iota(jnp.int32, edge.shape, 2) < self.cut.column_count - last_register
            self.by_step[steps, rows, last_register:] = jnp.where(exists, edge, LOG_ZERO)

        self._for_each_tile(load)

    def store_by_row(self, by_step: Ref, by_row: Ref) -> None:
        """Transpose back to (rows, steps, lanes). Pallas leaves out what is beyond the array."""

        def store(steps: _Slice, rows: _Slice) -> None:
            by_row[rows, steps] = by_step[steps, rows].swapaxes(0, 1)

        self._for_each_tile(store)

    def forward_steps(self, states: States, visit: Callable[[Array, TransitionProbs], None]) -> States:
        """Return the states after the block's last step.

        `visit` is called with each step's number and its transition probabilities.
        """

        def steps(k: Array, count: int, states: States) -> States:
            for j in range(count):
                exponent, mantissa = (_column(x[...], k + j) for x in self.blank)
                blank, score = Scaled(mantissa, exponent), self.by_step[k + j]
                states, transition_probs = step(states, self.skip, blank, score, _shift_right, _ratio)
                visit(k + j, transition_probs)
            return renormalized(states)

        first, aligned, groups = self._live_steps
        states = lax.fori_loop(first, aligned, lambda k, states: steps(k, 1, states), states)
        return lax.fori_loop(0, groups, lambda i, states: steps(aligned + i * UNROLLED, UNROLLED, states), states)

    def backward_steps(
        self,
        occupancy: Occupancy,
        transition_probs: Callable[[Array], TransitionProbs],
        visit: Callable[[Array, Occupancy], None],
    ) -> Occupancy:
        """Return the occupancy before the block's first step.

        `visit` is called with each step's number and the occupancy after it.
        """

        def steps(k: Array, count: int, occupancy: Occupancy) -> Occupancy:
            for j in range(count):
                visit(k - j, occupancy)
                occupancy = backward_step(occupancy, transition_probs(k - j), self.skip, _shift_left)
            return occupancy

        first, aligned, groups = self._live_steps
        last = aligned + groups * UNROLLED - 1
        occupancy = lax.fori_loop(
            0, groups, lambda i, occupancy: steps(last - i * UNROLLED, UNROLLED, occupancy), occupancy
        )
        return lax.fori_loop(
            first, aligned, lambda k, occupancy: steps(first + aligned - 1 - k, 1, occupancy), occupancy
        )

    @property
    def _live_steps(self) -> tuple[Array, Array, Array]:
        """The first step that reads a live frame, that from which on `UNROLLED` are taken at a time, and how often."""
        begin = self.number * self.cut.steps
        first = jnp.maximum(self.start - begin, 0)
        stop = jnp.minimum(self.cut.steps, self.cut.step_count - begin)
        groups = lax.div(stop - first, np.int32(UNROLLED))
        return first, stop - groups * UNROLLED, groups

    def _for_each_tile(self, body: Callable[[_Slice, _Slice], None]) -> None:
        """Call the body with eight steps of eight rows at a time, from the first live step on."""
        first, _, _ = self._live_steps

        def tiles(i: Array, _: None) -> None:
            for row in range(0, self.cut.rows, SUBLANES):
                body(pl.ds(i * SUBLANES, SUBLANES), pl.ds(row, SUBLANES))

        lax.fori_loop(lax.div(first, np.int32(SUBLANES)), self.cut.steps // SUBLANES, tiles, None)


def _shift_right(x: Scaled) -> Scaled:
    """Roll by one column. The last one, which no target reaches, is zero, and so is what arrives in the first."""
    return Scaled(*(pltpu.roll(y, 1, axis=1) for y in x))


def _shift_left(x: Float[Array, "R W"]) -> Float[Array, "R W"]:
    """Roll by one column. Exactly zero arrives in the last one, for all of blank 0 came from itself (see `_ratio`)."""
    return pltpu.roll(x, x.shape[1] - 1, axis=1)


def _ratio(a: Float[Array, "R W"], b: Float[Array, "R W"]) -> Float[Array, "R W"]:
    """Return a / b as `scaled.Ratio` asks: by a product with the reciprocal equal numbers would not give exactly 1."""
    return jnp.where(a == b, 1, jnp.minimum(a * _reciprocal(b, full_range=False), 1))


def _column(x: Float[Array, "R K"], k: Array) -> Float[Array, "R 1"]:
    return jnp.where(lane_numbers(len(x)) == k, x, 0).sum(axis=1, keepdims=True)


def load_states(ref: Ref) -> States:
    return States(Scaled(ref[0], ref[1]), Scaled(ref[2], ref[3]))


def _store_states(ref: Ref, states: States) -> None:
    for i, x in enumerate(jax.tree.leaves(states)):
        ref[i] = x
