"""Support meshes whose axes are explicit or manual, which XLA alone does not handle.

Where axes are explicit (`jax.sharding.AxisType.Explicit`), every operation has to state the sharding of its result.
This package leaves that to XLA's partitioner, as where axes are automatic, and states the sharding of its final results
alone, which is that of the scores. Within `jax.shard_map`, where axes are manual, the initial values of a loop must be
declared to vary from device to device, because its results do.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxctc._types import Request


def sharded_like_scores(results: Callable[[P, P], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a function of a request and arrays, whose results are sharded like the scores.

    The arrays are the scores, or a problem that begins with them, and more.

    `results` makes the partition specs of the results from two others: that of a vector with one element for each
    sequence, and that of the scores.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(request: Request, *arrays: Any, **static: Any) -> Any:
            arrays = varying_like(arrays, arrays)
            scores, *_ = jax.tree.leaves(arrays)
            sharding = jax.typeof(scores).sharding
            if AxisType.Explicit not in sharding.mesh.axis_types:
                return function(request, *arrays, **static)
            spec = sharding.spec
            sequences = spec[0 if request.batch_first else 1]
            request = request._replace(sequence_axis=sequences)
            specs = results(P(sequences), spec)
            automatic = jax.sharding.auto_axes(functools.partial(function, request, **static), out_sharding=specs)
            # The scores may be on a mesh that is not the current one.
            with jax.sharding.use_abstract_mesh(sharding.mesh):
                return automatic(*arrays)

        return call

    return decorate


def mapped_over(axis: str | tuple[str, ...] | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that each device of this axis calls with its own sequences.

    It takes a batch's arrays, in all of which the sequences are the first axis, and a number. XLA does not know how to
    divide a kernel: it would gather the kernel's inputs, or refuse to compile.
    """
    if axis is None:
        return function
    names = {axis} if isinstance(axis, str) else set(axis)
    return jax.shard_map(function, axis_names=names, in_specs=(P(axis), P()), out_specs=P(axis), check_vma=False)


def is_xlas_to_divide(x: jax.Array) -> bool:
    """Return whether XLA divides the array along some axis of its mesh: one that is not manual."""
    return any(kind != AxisType.Manual for kind in jax.typeof(x).sharding.mesh.axis_types)


def on_each_device(function: Callable[..., list[jax.Array]]) -> Callable[..., list[jax.Array]]:
    """Return a function that XLA calls on each device with the sequences that this device holds.

    It takes a batch's arrays, in all of which the sequences are the first axis. XLA does not know how to divide a
    kernel, and would gather the kernel's inputs. The compiler for TPUs does not support this. Where axes are manual,
    the caller has divided the arrays already.
    """

    def call(*arguments: jax.Array) -> list[jax.Array]:
        if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
            return function(*arguments)
        results = jax.eval_shape(function, *arguments)

        def partition(mesh: jax.sharding.Mesh, operands: Any, _: Any) -> tuple[Any, ...]:
            spec = operands[0].sharding.spec
            own = jax.sharding.NamedSharding(mesh, P(spec[0] if spec else None))
            return mesh, function, jax.tree.map(lambda _: own, results), tuple(own for _ in operands)

        of_mesh = custom_partitioning(function)
        of_mesh.def_partition(partition, sharding_rule=_sequences_together(arguments, results))
        return of_mesh(*arguments)

    return call


def _sequences_together(*sides: Any) -> str:
    """Return Shardy's rule by which all arrays share their first axis, and no other axis is shared."""
    numbers = itertools.count()

    def axes(x: Any) -> str:
        return " ".join(["n", *(f"i{next(numbers)}" for _ in x.shape[1:])])

    return " -> ".join(", ".join(map(axes, jax.tree.leaves(side))) for side in sides)


def type_of(mesh: AbstractMesh, axis: str) -> AxisType:
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis]


def varying_like(examples: Any, values: Any) -> Any:
    """Return the values, declared to vary over all manual axes that any of the examples varies over."""

    def axes(x: Any) -> frozenset[str]:
        return jax.typeof(x).manual_axis_type.varying

    wanted = frozenset().union(*map(axes, jax.tree.leaves(examples)))

    def cast(x: Any) -> Any:
        missing = tuple(wanted - axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, values)
