"""What meshes ask for whose axes are not left to XLA alone.

Where axes are explicit (`jax.sharding.AxisType.Explicit`) every operation has to say how its result is laid out. The
lattice leaves that to XLA's partitioner, which finds what is best by itself, as it does where axes are automatic; only
the results' layout is said: that of the scores. Within `jax.shard_map`, where axes are manual, what a loop starts from
must be said to vary from device to device, as what it becomes does.
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
    """Decorates a function of options, scores and more; `results` makes the results' specs.

    Of two: that of a vector with one element a sequence, and that of the scores.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(request: Request, scores: jax.Array, *rest: Any) -> Any:
            scores, *rest = varying_like((scores, *rest), (scores, *rest))
            sharding = jax.typeof(scores).sharding
            if AxisType.Explicit not in sharding.mesh.axis_types:
                return function(request, scores, *rest)
            spec = sharding.spec
            sequences = spec[0 if request.batch_first else 1]
            request = request._replace(sequence_axis=sequences)
            specs = results(P(sequences), spec)
            automatic = jax.sharding.auto_axes(functools.partial(function, request), out_sharding=specs)
            # The scores may be on a mesh that nobody has set.
            with jax.sharding.use_abstract_mesh(sharding.mesh):
                return automatic(scores, *rest)

        return call

    return decorate


def mapped_over(axis: str | tuple[str, ...] | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a batch's arrays and a number, called on each device of this axis with its own sequences.

    XLA does not know how to divide a kernel: it would gather what it reads, or refuse. They come first in all arrays.
    """
    if axis is None:
        return function
    names = {axis} if isinstance(axis, str) else set(axis)
    return jax.shard_map(function, axis_names=names, in_specs=(P(axis), P()), out_specs=P(axis), check_vma=False)


def is_xlas_to_divide(x: jax.Array) -> bool:
    """Some axis of the mesh that the array is on is left to XLA."""
    return any(kind != AxisType.Manual for kind in jax.typeof(x).sharding.mesh.axis_types)


def divided(function: Callable[..., list[jax.Array]]) -> Callable[..., list[jax.Array]]:
    """A function of a batch's arrays that XLA calls on each device with its own sequences, wherever they lie.

    It does not know how to divide a kernel, and would gather what it reads. Sequences come first in all arrays. TPUs'
    compiler cannot be told; and where axes are manual, whoever made them so has divided already.
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
    """Shardy's rule: the first axis of all is one, and every other axis is its own."""
    numbers = itertools.count()

    def axes(x: Any) -> str:
        return " ".join(["n", *(f"i{next(numbers)}" for _ in x.shape[1:])])

    return " -> ".join(", ".join(map(axes, jax.tree.leaves(side))) for side in sides)


def type_of(mesh: AbstractMesh, axis: str) -> AxisType:
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis]


def varying_like(examples: Any, values: Any) -> Any:
    """The values, said to vary over all manual axes that any of the examples varies over."""

    def axes(x: Any) -> frozenset[str]:
        return jax.typeof(x).manual_axis_type.varying

    wanted = frozenset().union(*map(axes, jax.tree.leaves(examples)))

    def cast(x: Any) -> Any:
        missing = tuple(wanted - axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, values)
