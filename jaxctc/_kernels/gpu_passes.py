"""The kernels for GPUs as a block of threads runs them: the forward pass, and the backward pass.

A block of threads takes one direction of one sequence through the segments, from its own first live step on. While it
steps through one segment, the scores of the next are copied to shared memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxctc._kernels import warpgroup
from jaxctc._kernels.gpu_direction import Direction, load_states, store_states
from jaxctc._kernels.gpu_layout import COPIED, Memory
from jaxctc._kernels.step import Occupancy, States, TransitionProbs, initial_states
from jaxctc._kernels.warpgroup import Ref, Shift, Stream
from jaxctc._types import LOG_ZERO


def forward_memory(tiles: int, size: int, edges: bool) -> Memory:
    """Return the memory of `forward_pass` for segments of `size` steps: two buffers of each kind, used in turn."""
    return {
        "scores": plgpu.SMEM((2, size, tiles, warpgroup.THREADS), jnp.float32),
        "per_step": plgpu.SMEM((2, 4 if edges else 2, COPIED), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=2),
        "right": plgpu.SMEM((2, 2, tiles * warpgroup.THREADS + 1), jnp.float32),
    }


def forward_pass(
    direction: Direction,
    states_ref: Ref,
    *passed_on: Ref,
    checkpoints: bool,
    scores: Ref,
    per_step: Ref,
    arrived: Ref,
    right: Ref,
) -> None:
    """Store the last states, after the states before each segment if checkpoints are wanted.

    If there are edges, what the next strip is to be given is stored too, by segment and step.
    """
    threads, count = direction.threads, direction.cut.segments
    shift_right = Shift(threads, right, written=1, read=0)
    shift_right.prepare((0.0, LOG_ZERO))
    stream = Stream(direction.segment_inputs, [scores, per_step], arrived)
    pl.when(direction.first_segment < count)(lambda: stream.start(direction.first_segment))

    def segment(s: Array, states: States) -> States:
        pl.when(s + 1 < count)(lambda: stream.start(s + 1))
        if checkpoints:
            store_states(threads, states_ref.at[s], states)
        edges = [direction.step_threads.full(0) for _ in range(2 * len(passed_on))]
        states, edges = direction.forward_steps(s, stream.wait(s), states, shift_right, lambda *_: None, edges)
        for k, edge in enumerate(edges):
            direction.step_threads.store(passed_on[0].at[s, k], edge)
        return states

    states = initial_states(threads.columns + direction.first_column, jnp.dtype(jnp.float32))
    states = jax.tree.map(threads.spread, states)
    states = lax.fori_loop(direction.first_segment, count, segment, states)
    store_states(threads, states_ref.at[count if checkpoints else 0], states)


def backward_memory(tiles: int, size: int, edges: bool) -> Memory:
    """Return the memory of `backward_pass` for segments of `size` steps: two buffers of each kind, used in turn."""
    return {
        **forward_memory(tiles, size, edges),
        "states": plgpu.SMEM((2, 2, 2, tiles, warpgroup.THREADS), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=3, num_barriers=2),
        "left": plgpu.SMEM((2, 1, tiles * warpgroup.THREADS + 1), jnp.float32),
        "transition_probs": plgpu.SMEM((2, size, 2, tiles, warpgroup.THREADS), jnp.float32),
        "full": plgpu.Barrier(num_barriers=2),
        "empty": plgpu.Barrier(num_barriers=2),
        **({"edge": plgpu.SMEM((1, warpgroup.THREADS), jnp.float32)} if edges else {}),
    }


def backward_pass(
    direction: Direction,
    checkpoints: Ref,
    join: Ref,
    *rest: Ref,
    transition_probs: Ref,
    full: Ref,
    empty: Ref,
    left: Ref,
    edge: Ref | None = None,
    **recomputing: Ref,
) -> None:
    """Store the posterior of each label, of all blanks together and, if there is a reference for it, of each blank.

    Two warpgroups share the work. One recomputes each segment from its checkpoint and puts its transition probabilities
    into shared memory; the other, one segment behind, steps back through it. `full` and `empty` are the barriers at
    which they hand over the transition probabilities of even and of odd segments.

    If there are edges, the first of `rest` is what arrives from the next strip at each step, and the last is what this
    strip passes on to the one before.
    """
    part = lax.axis_index("warpgroup")
    edges = None if edge is None else _Edges(rest[0], edge, rest[-1])
    outputs = rest if edges is None else rest[1:-1]
    # The posterior takes the place of the scores, but for the interpreter, which cannot alias them.
    label, total, *blanks = outputs if direction.threads.interpret else (direction.scores, *outputs)
    pl.when(part == 0)(lambda: _recompute(direction, checkpoints, transition_probs, full, empty, **recomputing))
    pl.when(part == 1)(
        lambda: _step_back(direction, join, label, total, blanks, transition_probs, full, empty, left, edges)
    )


class _Edges(NamedTuple):
    """What the outermost columns of strips give one another in the backward pass, by segment and step."""

    arriving: Ref
    loaded: Ref
    """Shared memory for what arrives in one segment: a single step can be read from there."""
    passed_on: Ref


def _recompute(
    direction: Direction,
    checkpoints: Ref,
    transition_probs: Ref,
    full: Ref,
    empty: Ref,
    *,
    scores: Ref,
    per_step: Ref,
    states: Ref,
    arrived: Ref,
    right: Ref,
) -> None:
    threads, count = direction.threads, direction.cut.segments
    shift_right = Shift(threads, right, written=1, read=0)
    shift_right.prepare((0.0, LOG_ZERO))

    def sources(s: Array) -> list[Ref]:
        return [*direction.segment_inputs(s), checkpoints.at[s, :, :, pl.ds(0, threads.tiles)]]

    stream = Stream(sources, [scores, per_step, states], arrived)
    pl.when(direction.first_segment < count)(lambda: stream.start(jnp.int32(count - 1)))

    def segment(s: Array, _: None) -> None:
        def store(j: Array, now: TransitionProbs) -> None:
            for k, row in enumerate(now):
                threads.store(transition_probs.at[s & 1, j, k], row)

        pl.when(s > direction.first_segment)(lambda: stream.start(s - 1))
        *inputs, checkpoint = stream.wait(s)
        pl.when(s + 2 < count)(lambda: plgpu.barrier_wait(empty.at[s & 1]))
        direction.forward_steps(s, inputs, load_states(threads, checkpoint), shift_right, store, [])
        plgpu.barrier_arrive(full.at[s & 1])

    direction.for_each_segment_backward(segment, None)


def _step_back(
    direction: Direction,
    join: Ref,
    label: Ref,
    total: Ref,
    blanks: list[Ref],
    transition_probs: Ref,
    full: Ref,
    empty: Ref,
    left: Ref,
    edges: _Edges | None,
) -> None:
    threads, size = direction.threads, direction.cut.segment_size
    shift_left = Shift(threads, left, written=0, read=1)
    shift_left.prepare((0.0,))

    def segment(s: Array, occupancy: Occupancy) -> Occupancy:
        stored = transition_probs.at[s & 1]

        def visit(j: Array, occupancy: Occupancy) -> None:
            threads.store_padded(label.at[s * size + j], occupancy.label)
            for ref in blanks:
                threads.store_padded(ref.at[s * size + j], occupancy.blank)
            # The step's transition probabilities have been read: their place holds its blanks until they are summed.
            threads.store(stored.at[j, 0], occupancy.blank)

        def load(j: Array) -> TransitionProbs:
            return TransitionProbs(*(threads.load(stored.at[j, k]) for k in range(2)))

        if edges:
            direction.step_threads.store(edges.loaded, direction.step_threads.load(edges.arriving.at[s]))
            threads.wait()
        plgpu.barrier_wait(full.at[s & 1])
        arriving, leaving = (edges.loaded, [direction.step_threads.full(0)]) if edges else (None, [])
        occupancy, leaving = direction.backward_steps(occupancy, load, shift_left, visit, arriving, leaving)
        threads.wait()
        threads.sum_rows(stored.at[:, 0], total.at[s])
        if edges:
            direction.step_threads.store(edges.passed_on.at[s], *leaving)
        pl.when(s - 2 >= direction.first_segment)(lambda: plgpu.barrier_arrive(empty.at[s & 1]))
        return occupancy

    direction.for_each_segment_backward(segment, Occupancy(*(threads.load(join.at[k]) for k in range(2))))
