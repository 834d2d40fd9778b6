"""Check the mesh axis that the frames of the scores are sharded over."""

from typing import Any

import jax
from jax.sharding import AxisType

from jaxctc._inputs.checks import Names
from jaxctc._mesh import type_of
from jaxctc._sizes import is_known
from jaxctc._types import Request

MULTIPLE = 4
"""The frames of each device are a multiple of this: two halves, each of an even number of steps."""


def mesh_axis_of_frames(axis: Any, scores: jax.Array, request: Request, names: Names) -> str | None:
    """Return the mesh axis that the frames are sharded over: the caller's, or the explicit one of the scores' type."""
    position = 1 if request.batch_first else 0
    sharding = jax.typeof(scores).sharding
    mesh = jax.sharding.get_abstract_mesh() if sharding.mesh.empty else sharding.mesh
    asked = axis is not None
    if not asked:
        axis = sharding.spec[position] if position < len(sharding.spec) else None
        if not isinstance(axis, str) or type_of(mesh, axis) != AxisType.Explicit:
            return None
    if not isinstance(axis, str):
        raise TypeError(
            f"frame_axis must be the name of a mesh axis, or None; got {axis!r} of type {type(axis).__name__}."
        )
    if axis not in mesh.axis_names:
        have = f"the mesh has the axes {mesh.axis_names}" if mesh.axis_names else "no mesh is set"
        raise ValueError(
            f"frame_axis is {axis!r}, but {have}: call within `with jax.set_mesh(mesh):` of one that has it."
        )
    if type_of(mesh, axis) == AxisType.Manual:
        raise ValueError(
            f"frame_axis is {axis!r}, which is manual here, within jax.shard_map. Leave it out of that call's "
            "axis_names: the loss maps itself over it."
        )
    frames, devices = scores.shape[position], mesh.shape[axis]
    if not is_known(frames):
        raise ValueError(f"{names.scores} has T = {frames}, which is symbolic: frames over devices need a number.")
    unit = MULTIPLE * devices
    over = frames % unit
    if over and not asked:
        return None  # XLA gathers them
    if over:
        raise ValueError(
            f"{names.scores} has T = {frames} frames, and frame_axis {axis!r} has {devices} devices: T must be a "
            f"multiple of {unit}, {MULTIPLE} a device. Pad {names.scores} by {unit - over} frames; input_lengths says "
            "where padding begins."
        )
    return axis
