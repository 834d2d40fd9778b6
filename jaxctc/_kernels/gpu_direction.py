"""One direction of one sequence, as a warpgroup steps through its segments, forward and backward."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._kernels.gpu_layout import Cut
from jaxctc._kernels.step import Occupancy, States, TransitionProbs, backward_step, renormalized, step
from jaxctc._kernels.warpgroup import Ref, Shift, Warpgroup
from jaxctc._types import LOG_ZERO


class Direction(NamedTuple):
    """What a warpgroup knows of its direction; the references are into `gpu_layout.KernelInputs`."""

    cut: Cut
    threads: Warpgroup
    scores: Ref
    skip: Bool[Array, "K 128"]
    first_column: Int[Array, ""]
    """The number that the strip's first column has in the lattice."""
    first_live: Int[Array, ""]
    """The first step that reads a live frame."""
    per_step: Ref

    @property
    def first_segment(self) -> Int[Array, ""]:
        """The segment that contains the first live step."""
        return self.first_live // self.cut.segment_size

    @property
    def step_threads(self) -> Warpgroup:
        """The same threads, for rows whose columns are the steps of a segment."""
        return self.threads._replace(tiles=1)

    def segment_inputs(self, s: Array) -> list[Ref]:
        """Return the references to a segment's scores and numbers per step, to be copied to shared memory."""
        steps = pl.ds(s * self.cut.segment_size, self.cut.segment_size)
        return [self.scores.at[steps, pl.ds(0, self.threads.tiles)], self.per_step.at[s]]

    def forward_steps(
        self,
        s: Array,
        segment: list[Ref],
        states: States,
        shift_right: Shift,
        visit: Callable[[Array, TransitionProbs], None],
        edges: list[Array],
    ) -> tuple[States, list[Array]]:
        """Return the states after a segment, whose inputs are in shared memory, and the edges it passes on.

        `visit` is called with the number of each step in the segment and its transition probabilities.
        """
        scores, per_step = segment
        live_from = self.first_live - s * self.cut.segment_size

        def one(
            j: Array, carry: tuple[States, TransitionProbs, list[Array]]
        ) -> tuple[States, TransitionProbs, list[Array]]:
            states, previous, edges = carry
            # The scores of a step that reads no live frame may be anything.
            score = jnp.where(j < live_from, LOG_ZERO, self.threads.load(scores.at[j]))
            blank = Scaled(*(jnp.full(self.skip.shape, per_step[k, j]) for k in range(2)))
            arriving = [per_step[k, j] for k in range(2, per_step.shape[0])]
            states, transition_probs = step(
                states, self.skip, blank, score, lambda x: Scaled(*shift_right(j & 1, x, arriving)), _ratio, _exp2
            )
            # One step late, since the barrier of a shift waits for all stores before it. The first visit, at the last
            # step's place, is overwritten by that step's own.
            visit((j - 1) & (self.cut.segment_size - 1), previous)
            return states, transition_probs, self.passed_on(edges, j, shift_right)

        zero = TransitionProbs(self.threads.full(0), self.threads.full(0))
        states, last, edges = self.for_each_step(one, (states, zero, edges))
        visit(jnp.int32(self.cut.segment_size - 1), last)
        return renormalized(states), edges

    def backward_steps(
        self,
        occupancy: Occupancy,
        transition_probs: Callable[[Array], TransitionProbs],
        shift_left: Shift,
        visit: Callable[[Array, Occupancy], None],
        arriving: Ref | None,
        edges: list[Array],
    ) -> tuple[Occupancy, list[Array]]:
        """Return the occupancy before a segment, and the edges that it passes on.

        `visit` is called with the number of each step in the segment and the occupancy after it.
        """

        def one(back: Array, carry: tuple[Occupancy, list[Array]]) -> tuple[Occupancy, list[Array]]:
            occupancy, edges = carry
            j = self.cut.segment_size - 1 - back
            now = transition_probs(j)
            visit(j, occupancy)

            def shifted(row: Array) -> Array:
                return shift_left(j & 1, (row,), [] if arriving is None else [arriving[0, j]])[0]

            occupancy = backward_step(occupancy, now, self.skip, shifted)
            return occupancy, self.passed_on(edges, j, shift_left)

        return self.for_each_step(one, (occupancy, edges))

    def passed_on(self, edges: list[Array], j: Array, shift: Shift) -> list[Array]:
        """Return the edges with what leaves the strip in step j, if there are edges."""
        if not edges:
            return edges
        pairs = zip(shift.leaving(j & 1), edges, strict=True)
        return [jnp.where(self.step_threads.columns == j, x, edge) for x, edge in pairs]

    def for_each_step(self, body: Callable[[Array, Any], Any], carry: Any) -> Any:
        """Loop over the steps of a segment; the narrower a row, the more steps are scheduled together."""
        size, tiles = self.cut.segment_size, self.threads.tiles
        unroll = 1 if self.threads.interpret else max(size >> (tiles - 1).bit_length(), 2)
        return lax.fori_loop(0, size, body, carry, unroll=unroll)

    def for_each_segment_backward(self, body: Callable[[Array, Any], Any], carry: Any) -> Any:
        """Loop over the segments that have live steps, from the last to the first."""
        last = self.cut.segments - 1
        return lax.fori_loop(0, last + 1 - self.first_segment, lambda back, carry: body(last - back, carry), carry)


def load_states(threads: Warpgroup, ref: Ref) -> States:
    blank, label = (Scaled(*(threads.load(ref.at[k, i]) for i in range(2))) for k in range(2))
    return States(blank, label)


def store_states(threads: Warpgroup, ref: Ref, states: States) -> None:
    for k, state in enumerate(states):
        for i, row in enumerate(state):
            threads.store(ref.at[k, i], row)


def _ratio(a: Float[Array, "K 128"], b: Float[Array, "K 128"]) -> Float[Array, "K 128"]:
    """Return a / b as `scaled.Ratio` asks. A division has a branch, and the hardware's own reciprocal is slower."""
    # A float's bits are nearly its logarithm, so that a subtraction gives nearly a reciprocal; the constant is nearly
    # twice the bits of 2^127.
    bits = jnp.int32(0x7EF311C7) - lax.bitcast_convert_type(b, jnp.int32)
    reciprocal = lax.bitcast_convert_type(bits, jnp.float32)
    missing = 1 - b * reciprocal
    reciprocal = reciprocal + reciprocal * (missing + missing * missing)
    ratio = a * reciprocal
    ratio = ratio + (a - ratio * b) * reciprocal
    return jnp.where(a == b, 1, jnp.minimum(ratio, 1))


def _exp2(x: Float[Array, "K 128"]) -> Scaled:
    def floor(x: Array) -> Array:
        """Return `jnp.floor(x)`, which cannot be lowered, by operations that can."""
        nearest = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
        return nearest - jnp.where(nearest > x, 1.0, 0.0)

    return scaled.exp2(x, floor)
