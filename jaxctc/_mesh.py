"""What meshes ask for whose axes are not left to XLA alone.

Where axes are explicit (`jax.sharding.AxisType.Explicit`) every operation has to say how its result is laid out. The
lattice leaves that to XLA's partitioner, which finds what is best by itself, as it does where axes are automatic; only
the results' layout is said: that of the scores. Within `jax.shard_map`, where axes are manual, what a loop starts from
must be said to vary from device to device, as what it becomes does.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxctc._types import Options


def laid_out_like_scores(results: Callable[[P, P], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function of options, scores and more; `results` makes the results' specs.

    Of two: that of a vector with one element a sequence, and that of the scores.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(options: Options, scores: jax.Array, *rest: Any) -> Any:
            scores, *rest = varying_like((scores, *rest), (scores, *rest))
            sharding = jax.typeof(scores).sharding
            if AxisType.Explicit not in sharding.mesh.axis_types:
                return function(options, scores, *rest)
            spec = sharding.spec
            specs = results(P(spec[0 if options.batch_first else 1]), spec)
            automatic = jax.sharding.auto_axes(functools.partial(function, options), out_sharding=specs)
            # The scores may be on a mesh that nobody has set.
            with jax.sharding.use_abstract_mesh(sharding.mesh):
                return automatic(scores, *rest)

        return call

    return decorate


def varying_like(examples: Any, values: Any) -> Any:
    """The values, said to vary over all manual axes that any of the examples varies over."""

    def axes(x: Any) -> frozenset[str]:
        return jax.typeof(x).manual_axis_type.varying

    wanted = frozenset().union(*map(axes, jax.tree.leaves(examples)))

    def cast(x: Any) -> Any:
        missing = tuple(wanted - axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, values)
