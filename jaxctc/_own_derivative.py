"""Give a function a derivative of its own, which JAX keeps whatever it does with the function.

`jax.custom_jvp` alone does not: where JAX differentiates a `lax.scan`, it drops such rules from what the scan computes
of the values alone. A second derivative would then differentiate the function itself. A primitive keeps its rule. It
is bound within the `custom_jvp`, whose function JAX traces only where it needs the value.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

_Rule = Callable[..., tuple[list[jax.Array], list[jax.Array]]]
"""A function of a tangent of the first operand and of all operands. It returns the results, and the tangents of those
results that are floating-point numbers."""


def differentiated_by(rule: Callable[..., tuple[Any, Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a function of something static, an array, and further arrays that have no derivative.

    `rule` takes what is static, a tuple of the other arguments, and a tangent of the first array. It returns the
    results and their tangents; a tangent of a result that is no floating-point number is not used.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
        @functools.wraps(function)
        def call(static: Hashable, *arguments: Any) -> Any:
            if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
                return function(static, *arguments)  # a scan is a loop in Python then, which drops nothing
            operands, tree = jax.tree.flatten(arguments)

            def value(*operands: jax.Array) -> Any:
                return function(static, *jax.tree.unflatten(tree, operands))

            def value_and_tangents(tangent: jax.Array, *operands: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
                results, tangents = map(jax.tree.leaves, rule(static, jax.tree.unflatten(tree, operands), tangent))
                return results, [dx for x, dx in zip(results, tangents, strict=True) if _is_inexact(x)]

            jaxpr, shapes = jax.make_jaxpr(value, return_shape=True)(*operands)
            found = _own_derivative.bind(*operands, jaxpr=jaxpr, rule=value_and_tangents)
            return jax.tree.unflatten(jax.tree.structure(shapes), found)

        @call.defjvp
        def _(static: Hashable, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            return rule(static, primals, tangents[0])

        return call

    return decorate


def _is_inexact(x: jax.Array | jax.core.ShapedArray) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


_own_derivative = Primitive("own_derivative")
_own_derivative.multiple_results = True


def _run(*operands: jax.Array, jaxpr: ClosedJaxpr, rule: _Rule) -> list[jax.Array]:  # noqa: ARG001
    return jaxpr_as_fun(jaxpr)(*operands)


_own_derivative.def_impl(_run)
# Kernels that are interpreted have effects. Parameters have the names by which they are bound.
_own_derivative.def_effectful_abstract_eval(lambda *_, jaxpr, rule: (jaxpr.out_avals, jaxpr.effects))  # noqa: ARG005


def _differentiated(
    primals: Any, tangents: Any, *, jaxpr: ClosedJaxpr, rule: _Rule
) -> tuple[list[jax.Array], list[Any]]:
    results, changes = rule(ad.instantiate_zeros(tangents[0]), *primals)
    each = iter(changes)
    return results, [next(each) if _is_inexact(aval) else ad.Zero(aval.to_tangent_aval()) for aval in jaxpr.out_avals]


ad.primitive_jvps[_own_derivative] = _differentiated


def _batched(
    axis: Any, operands: Any, places: Any, *, jaxpr: ClosedJaxpr, rule: _Rule
) -> tuple[list[jax.Array], list[int | None]]:
    def mapped(function: Callable[..., Any], places: tuple[Any, ...]) -> Callable[..., Any]:
        return jax.vmap(function, places, axis_size=axis.size, spmd_axis_name=axis.spmd_name)

    if all(place is None for place in places):
        found = _own_derivative.bind(*operands, jaxpr=jaxpr, rule=rule)
        return found, [None] * len(found)
    places = tuple(places)
    each = jax.make_jaxpr(mapped(jaxpr_as_fun(jaxpr), places))(*operands)
    found = _own_derivative.bind(*operands, jaxpr=each, rule=mapped(rule, (places[0], *places)))
    return found, [0] * len(found)


batching.fancy_primitive_batchers[_own_derivative] = _batched


def _lowered(context: mlir.LoweringRuleContext, *operands: Any, jaxpr: ClosedJaxpr, rule: _Rule) -> Any:  # noqa: ARG001
    return mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)(context, *operands)


mlir.register_lowering(_own_derivative, _lowered)
