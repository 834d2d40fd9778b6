"""The frames of a sequence on several devices.

Each of D devices holds a block of B consecutive frames, and walks it as one device walks all frames: from
both ends at once, and the posterior outward again (`bidirectional`). It begins with what its neighbours end
with, which is passed on before: the first device walks its block and hands its last states to the second,
and so on; the last device does the same the other way. What is handed over is as small as the states are,
but only two devices work at any time, for (D - 1) B steps.

Where a target is short, each device first walks its block from every state at once, all devices at the
same time: B steps of 2 W times the work. What a block makes of any states is then a sum over a table, and
passing on takes no steps. Where steps take the time that they do because they follow one another, and not
for their work, this is faster by as much as there are devices.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxctc._forward_backward import bidirectional, prepared, scaled_emissions
from jaxctc._forward_backward.bidirectional import StateBuffers
from jaxctc._forward_backward.prepared import PreparedBatch
from jaxctc._forward_backward.scaled_emissions import Index
from jaxctc._lattice.lattices import Lattice, frames_of
from jaxctc._mesh import varying_like
from jaxctc._types import Request

Through: TypeAlias = Callable[[StateBuffers, Index], StateBuffers]
"""From what a block begins with to what the next one does, unless the steps that are left out are all."""

_BEGINNING = {"cpu": 128}
"""States that a step could work on in the time that it takes to begin, as measured by `benchmarks/scaling.py`."""
_LAUNCH = 1 << 16
"""The same where a step launches kernels: not measured."""
_LARGE = 1 << 28
"""Bytes of states, from every state at once, that are too many."""


def divided(
    function: Callable[..., Any], request: Request, results: Callable[[P], Any]
) -> Callable[[jax.Array, Lattice], Any]:
    """A function of scores and their lattice, run by each device on its own frames.

    `results` makes the results' specs of that of the scores.
    """
    axis = request.frame_axis
    if axis is None:
        return function
    spec = P(None, axis) if request.batch_first else P(axis)

    def block(index: Int[Array, " 1"], scores: jax.Array, lattice: Lattice) -> Any:
        return function(scores, varying_like(scores, lattice), index[0])

    def call(scores: jax.Array, lattice: Lattice) -> Any:
        mapped = jax.shard_map(block, axis_names={axis}, in_specs=(P(axis), spec, P()), out_specs=results(spec))
        devices = jax.sharding.get_abstract_mesh().shape[axis]
        return mapped(jnp.arange(devices, dtype=jnp.int32), scores, lattice)

    return call


def build(
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    request: Request,
    size: int,
    index: Index,
    *,
    keep: bool,
    ends: bool,
) -> PreparedBatch:
    """That of the block of one device, and of all frames what is not of one alone.

    What a device begins with is known to all devices, or if not to both `ends`, to the one in the middle.
    """
    axis, frames = request.frame_axis, frames_of(scores, request)
    assert axis is not None
    near = prepared.prepare(scores, lattice, request, size, first=index * frames, keep=keep)
    # The half of the block that each direction comes to after its own.
    frame_map = scaled_emissions.build_frame_map(near.lattice, frames, near.emissions.steps)
    half = jnp.array([frames // 2, -(frames // 2)], jnp.int32)[None, :, None]
    frame_map = frame_map.moved(half).until(lattice.input_lengths - index * frames)
    far = scaled_emissions.build(scores, near.lattice, request, frame_map, size, near.start, keep=keep)

    def forward_steps(begin: StateBuffers, start: Index) -> StateBuffers:
        for emissions in (near.emissions, far):
            begin = bidirectional.states_after(emissions, begin, start, size)
        return begin

    devices = lax.axis_size(axis)
    blank_mass = _tabulated(forward_steps, near) if tabulates(devices, *lattice.labels.shape) else forward_steps
    begin = _passed_on(blank_mass, near, index, axis, devices - 1 if ends else devices // 2)
    total = functools.partial(lax.psum, axis_name=axis)
    return near._replace(
        removed_nats=tuple(map(total, near.removed_nats)),
        invalid=total(near.invalid.astype(jnp.int32)) > 0,
        infeasible=total(near.infeasible.astype(jnp.int32)) > 0,
        begin=begin,
    )


def from_middle_device(x: Any, index: Index | None, request: Request) -> Any:
    """What the device in the middle has found, for all."""
    axis = request.frame_axis
    if axis is None or index is None:
        return x
    here = index == lax.axis_size(axis) // 2
    return jax.tree.map(lambda y: lax.psum(jnp.where(here, y, 0), axis), x)


def tabulates(devices: int, sequences: int, columns: int) -> bool:
    """Whether to walk from every state at once: by a model of the time that a frame takes then and else."""
    beginning = _BEGINNING.get(jax.default_backend(), _LAUNCH)
    states = 4 * sequences * columns
    every = 2 * columns * states
    return every * 8 <= _LARGE and beginning + every < (devices - 1) * (beginning + states)


def _tabulated(forward_steps: Through, near: PreparedBatch) -> Through:
    """The same from where every state leads to."""
    every = jnp.arange(2 * near.emissions.skip.shape[2], dtype=jnp.int32)
    table = jax.vmap(lambda x: forward_steps(bidirectional.unit(near.emissions, x), near.start))(every)
    return lambda begin, _: bidirectional.superposed(begin, table)


def _passed_on(blank_mass: Through, near: PreparedBatch, index: Index, axis: str, turns: int) -> StateBuffers:
    devices = lax.axis_size(axis)
    ahead = [(d, d + 1) for d in range(devices - 1)]
    back = [(d + 1, d) for d in range(devices - 1)]
    mirrored = devices - 1 - index

    def turn(k: Int[Array, ""], begin: StateBuffers) -> StateBuffers:
        at_work = (k == index) | (k == mirrored)
        end = jnp.stack(blank_mass(begin, jnp.where(at_work, near.start, near.emissions.steps)))
        had = jnp.stack(begin)
        forward = jnp.where(k + 1 == index, lax.ppermute(end[..., 0, :], axis, ahead), had[..., 0, :])
        backward = jnp.where(k + 1 == mirrored, lax.ppermute(end[..., 1, :], axis, back), had[..., 1, :])
        return StateBuffers(*jnp.stack([forward, backward], axis=-2))

    return lax.fori_loop(0, turns, turn, bidirectional.initial_states(near.emissions, 1))
