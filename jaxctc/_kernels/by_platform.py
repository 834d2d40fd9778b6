"""Trace the program for a platform when it is lowered for that platform, and no earlier.

`jax.lax.platform_dependent` traces the programs for all platforms wherever one is lowered: everybody would pay for a
GPU's program. Here a primitive carries the program for most platforms, traced, and functions that make the others.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import AxisType

_T = TypeVar("_T")
_Form = Callable[..., list[jax.Array]]
"""A function of the flat operands that returns flat results."""


def by_platform(default: Callable[..., _T], others: Mapping[str, Callable[..., _T]], *operands: Any) -> _T:
    """Return what the function for the platform returns, of the `others` by name, or the default.

    The functions may use no traced value but their operands.
    """
    if not others:
        return default(*operands)
    mesh = jax.sharding.get_abstract_mesh()
    if jax.config.jax_disable_jit or AxisType.Manual in mesh.axis_types:  # type: ignore[attr-defined]
        # Without jit nothing is lowered; and what is traced within a `jax.shard_map` has to be traced there.
        return lax.platform_dependent(*operands, default=default, **others)
    leaves, tree = jax.tree.flatten(operands)
    traced, results = jax.make_jaxpr(default, return_shape=True)(*operands)
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]

    def flat(form: Callable[..., _T]) -> _Form:
        def run(*leaves: jax.Array) -> list[jax.Array]:
            # A program may be lowered where these settings have changed again.
            context = contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh)
            with jax.enable_x64(x64), context:
                return jax.tree.leaves(form(*jax.tree.unflatten(tree, leaves)))

        return run

    forms = tuple((name, flat(form)) for name, form in others.items())
    found = _by_platform.bind(*leaves, default=traced, forms=forms)
    return jax.tree.unflatten(jax.tree.structure(results), found)


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


def _run(*operands: jax.Array, **parameters: Any) -> list[jax.Array]:
    if jax.config.jax_debug_nans or jax.config.jax_debug_infs:  # type: ignore[attr-defined]
        # JAX looks for the operation that made a NaN: it runs what was compiled once more, one by one.
        return jaxpr_as_fun(parameters["default"])(*operands)
    return jax.jit(lambda *operands: _by_platform.bind(*operands, **parameters))(*operands)


_by_platform.def_impl(_run)
_by_platform.def_abstract_eval(lambda *_, default, forms: default.out_avals)  # noqa: ARG005, named as they are bound


def _batched(
    axis: Any, operands: Any, places: Any, *, default: ClosedJaxpr, forms: tuple[tuple[str, _Form], ...]
) -> tuple[list[jax.Array], list[int | None]]:
    if all(place is None for place in places):
        found = _by_platform.bind(*operands, default=default, forms=forms)
        return found, [None] * len(found)

    def mapped(form: _Form) -> _Form:
        return jax.vmap(form, tuple(places), axis_size=axis.size, spmd_axis_name=axis.spmd_name)

    traced = jax.make_jaxpr(mapped(jaxpr_as_fun(default)))(*operands)
    found = _by_platform.bind(*operands, default=traced, forms=tuple((name, mapped(form)) for name, form in forms))
    return found, [0] * len(found)


batching.fancy_primitive_batchers[_by_platform] = _batched


def _lowered(
    context: mlir.LoweringRuleContext, *operands: Any, default: ClosedJaxpr, forms: tuple[tuple[str, _Form], ...]
) -> Any:
    platforms = context.platforms or context.module_context.platforms
    mine = {name: form for name, form in forms if name in platforms}

    def run(*operands: jax.Array) -> list[jax.Array]:
        if len(platforms) > 1 and mine:
            return lax.platform_dependent(*operands, default=jaxpr_as_fun(default), **mine)
        return next(iter(mine.values()), jaxpr_as_fun(default))(*operands)

    return mlir.lower_fun(run, multiple_results=True)(context, *operands)


mlir.register_lowering(_by_platform, _lowered)
