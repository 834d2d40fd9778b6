"""Divide the frames of a sequence among several devices.

Each of D devices holds a block of B consecutive frames, and runs it as one device runs all frames: from both ends at
once, and then the backward pass. It begins with the states that its neighbours end with, which are passed on
beforehand: the first device runs its block and sends its last states to the second, and so on; the last device does
the same in the other direction. Only states are sent, which are small, but only two devices work at any time, for
(D - 1) B steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxctc._forward_backward import bidirectional, prepared, scaled_emissions
from jaxctc._forward_backward.buffers import StateBuffers, initial_states
from jaxctc._forward_backward.prepared import PreparedBatch
from jaxctc._lattice.frame_map import build_frame_map
from jaxctc._lattice.lattices import Lattice, frames_of
from jaxctc._mesh import varying_like
from jaxctc._sizes import Index
from jaxctc._tracing import fori_loop
from jaxctc._types import Request


def over_devices(
    function: Callable[..., Any], request: Request, results: Callable[[P], Any]
) -> Callable[[jax.Array, Lattice], Any]:
    """Return a function of scores and their lattice that each device runs on its own frames.

    `function` takes the scores of these frames, the lattice, and the function that prepares a batch of them, which is
    `prepared.prepare` where all frames are on one device. `results` makes the results' partition specs from that of the
    scores.
    """
    axis = request.frame_axis
    if axis is None:
        return lambda scores, lattice: function(scores, lattice, prepared.prepare)
    spec = P(None, axis) if request.batch_first else P(axis)

    def block(index: Int[Array, " 1"], scores: jax.Array, lattice: Lattice) -> Any:
        return function(scores, varying_like(scores, lattice), functools.partial(_prepare_block, index[0]))

    def call(scores: jax.Array, lattice: Lattice) -> Any:
        mapped = jax.shard_map(block, axis_names={axis}, in_specs=(P(axis), spec, P()), out_specs=results(spec))
        devices = jax.sharding.get_abstract_mesh().shape[axis]
        return mapped(jnp.arange(devices, dtype=jnp.int32), scores, lattice)

    return call


def _prepare_block(
    index: Index,
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    request: Request,
    max_input_length: Int[Array, ""] | None = None,  # noqa: ARG001, frames beyond it cost what all others do
    *,
    backward: bool,
) -> PreparedBatch:
    """Return what `prepared.prepare` returns, for the block of frames of the device with this index.

    Its fields about whole sequences are those of all blocks. Every device gets the states that it begins with if there
    will be a backward pass; else only the device in the middle is certain to.
    """
    axis, frames = request.frame_axis, frames_of(scores, request)
    assert axis is not None
    near = prepared.prepare(scores, lattice, request, backward=backward, first=index * frames)
    size, keep = near.segment, near.emissions.scores is not None
    # The half of the block that each direction reads after its own half.
    frame_map = build_frame_map(near.lattice, near.emissions.steps)
    half = jnp.array([frames // 2, -(frames // 2)], jnp.int32)[None, :, None]
    frame_map = frame_map.moved(half).until(lattice.input_lengths - index * frames)
    far = scaled_emissions.build_emissions(scores, near.lattice, request, frame_map, size, near.start, keep=keep)

    def through_block(initial: StateBuffers, start: Index) -> StateBuffers:
        """Return the states that the next device begins with, from those that this one begins with."""
        for emissions in (near.emissions, far):
            initial = bidirectional.states_after(emissions, initial, start, size)
        return initial

    devices = lax.axis_size(axis)
    initial = _passed_on(through_block, near, index, axis, devices - 1 if backward else devices // 2)
    total = functools.partial(lax.psum, axis_name=axis)
    return near._replace(
        log_scale=tuple(map(total, near.log_scale)),
        invalid=total(near.invalid.astype(jnp.int32)) > 0,
        infeasible=total(near.infeasible.astype(jnp.int32)) > 0,
        frames=devices * frames,
        initial=initial,
        of_middle_device=lambda x: jax.tree.map(lambda y: total(jnp.where(index == devices // 2, y, 0)), x),
    )


def _passed_on(
    through_block: Callable[[StateBuffers, Index], StateBuffers],
    near: PreparedBatch,
    index: Index,
    axis: str,
    turns: int,
) -> StateBuffers:
    """Return the states that each device begins with; in each turn two devices run their block and send its states."""
    devices = lax.axis_size(axis)
    ahead = [(d, d + 1) for d in range(devices - 1)]
    back = [(d + 1, d) for d in range(devices - 1)]
    mirrored = devices - 1 - index

    def turn(k: Int[Array, ""], initial: StateBuffers) -> StateBuffers:
        at_work = (k == index) | (k == mirrored)
        end = jnp.stack(through_block(initial, jnp.where(at_work, near.start, near.emissions.steps)))
        had = jnp.stack(initial)
        forward = jnp.where(k + 1 == index, lax.ppermute(end[..., 0, :], axis, ahead), had[..., 0, :])
        backward = jnp.where(k + 1 == mirrored, lax.ppermute(end[..., 1, :], axis, back), had[..., 1, :])
        return StateBuffers(*jnp.stack([forward, backward], axis=-2))

    return fori_loop(0, turns, turn, initial_states(near.emissions))
