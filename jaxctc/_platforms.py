"""Trace a program for a platform when it is lowered for that platform, and no earlier.

`jax.lax.platform_dependent` traces the programs for all platforms wherever one is lowered: everybody would pay for a
GPU's program. Here a primitive carries functions, of which lowering traces the one that it needs. A program that is
never lowered is never traced: that of the loss alone, where the gradient is asked for.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AxisType

from jaxctc._sizes import is_known
from jaxctc._tracing import in_place, jit

_T = TypeVar("_T")
_Form = Callable[..., list[jax.Array]]
"""A function of the flat operands that returns flat results."""
_Forms = tuple[tuple[str, _Form], ...]
_DEFAULT = "default"
ONE_KERNEL = jax.__version_info__ < (0, 12)
"""Whether `in_one_kernel` does what it says. From JAX 0.12 on XLA makes each loop a kernel of its own accord: there it
would gain nothing, and XLA promises nothing about such calls."""


class _Lowering(NamedTuple):
    """What is known when a program is traced because it is lowered."""

    platform: str | None = None
    """The platform, if it is one."""
    one_kernel: bool = False
    """Whether `in_one_kernel` may do what it says."""
    one_device: bool = False
    """Whether the program is known to run on one device."""


_lowering: contextvars.ContextVar[_Lowering] = contextvars.ContextVar("lowering", default=_Lowering())  # noqa: B039


def by_platform(
    default: Callable[..., _T], others: Mapping[str, Callable[..., _T]], results: Any, *operands: Any
) -> _T:
    """Return what the function for the platform returns, of the `others` by name, or the default.

    The functions may use no traced value but their operands. `results` has the shapes and types of what they return.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if jax.config.jax_disable_jit or AxisType.Manual in mesh.axis_types:  # type: ignore[attr-defined]
        # Without jit nothing is lowered; and what is traced within a `jax.shard_map` has to be traced there.
        return lax.platform_dependent(*operands, default=default, **others) if others else default(*operands)
    leaves, tree = jax.tree.flatten(operands)
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]

    def flat(form: Callable[..., _T]) -> _Form:
        def run(*leaves: jax.Array) -> list[jax.Array]:
            # A program may be lowered where these settings have changed again.
            context = contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh)
            with jax.enable_x64(x64), context:
                return jax.tree.leaves(form(*jax.tree.unflatten(tree, leaves)))

        return run

    forms = tuple((name, flat(form)) for name, form in {_DEFAULT: default, **others}.items())
    found = _by_platform.bind(*leaves, forms=forms, results=_zeros(results))
    return jax.tree.unflatten(jax.tree.structure(results), found)


def form(default: Callable[[], _T], **others: Callable[[], _T]) -> _T:
    """Return what the function for the platform returns, of the `others` by name, or the default.

    Where the platform is known, as in what `by_platform` traces, no other function is called.
    """
    platform = _lowering.get().platform
    if platform is None:
        return lax.platform_dependent(default=default, **others)
    return others.get(platform, default)()


def is_for_one_device() -> bool:
    """Return whether the program is known to be lowered for one device: there XLA divides no array."""
    return _lowering.get().one_device


def apart(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return a function that does the same and, on a CPU, is a call in XLA's program: nothing is fused with it."""
    called = _called(function)
    return lambda *operands: form(lambda: function(*operands), cpu=lambda: called(*operands))


def in_one_kernel(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return a function that does the same; where it is lowered for a CPU alone, it is one kernel, loops included.

    Elsewhere every operation in a loop is a kernel of its own, which takes 25 ms to compile and a microsecond to start.
    XLA does this with small loops of its own accord. It aborts if it finds an operand that is not used: the function
    uses all, whatever their values, and no other array. There can be no reduction that XLA would hand to a library (see
    `reductions`).
    """
    if not _lowering.get().one_kernel:
        return function
    called = _called(function, xla_cpu_small_call="true")
    # Without the barrier XLA would move an operand that is constant into the call.
    return lambda *operands: called(*lax.optimization_barrier(operands))


def _called(function: Callable[..., _T], **attributes: str) -> Callable[..., _T]:
    # Attributes of its results become those of the call. Without them XLA would inline it.
    return lambda *operands: set_xla_metadata(jit(function)(*operands), inlineable="false", **attributes)


@contextlib.contextmanager
def _lowering_for(platforms: Sequence[str], operands: Sequence[jax.Array], *, one_device: bool) -> Iterator[None]:
    platform = platforms[0] if len(platforms) == 1 else None
    sizes = [size for x in operands for size in x.shape]
    # Where an array is empty, XLA removes what uses it, and finds operands that are not used.
    one_kernel = ONE_KERNEL and platform == "cpu" and is_known(*sizes) and 0 not in sizes
    token = _lowering.set(_Lowering(platform, one_kernel, one_device))
    try:
        with in_place():
            yield
    finally:
        _lowering.reset(token)


def _zeros(like: Any) -> ClosedJaxpr:
    """Return a program whose results are of these shapes and types, for JAX to know them by."""
    return jax.make_jaxpr(lambda: [jnp.zeros(x.shape, x.dtype) for x in jax.tree.leaves(like)])()


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


def _run(*operands: jax.Array, forms: _Forms, results: ClosedJaxpr) -> list[jax.Array]:
    if jax.config.jax_debug_nans or jax.config.jax_debug_infs:  # type: ignore[attr-defined]
        # JAX looks for the operation that made a NaN: it runs what was compiled once more, one by one.
        return dict(forms)[_DEFAULT](*operands)
    return jax.jit(lambda *operands: _by_platform.bind(*operands, forms=forms, results=results))(*operands)


_by_platform.def_impl(_run)
_by_platform.def_abstract_eval(lambda *_, forms, results: results.out_avals)  # noqa: ARG005, named as they are bound


def _batched(
    axis: Any, operands: Any, places: Any, *, forms: _Forms, results: ClosedJaxpr
) -> tuple[list[jax.Array], list[int | None]]:
    if all(place is None for place in places):
        found = _by_platform.bind(*operands, forms=forms, results=results)
        return found, [None] * len(found)

    def mapped(form: _Form) -> _Form:
        return jax.vmap(form, tuple(places), axis_size=axis.size, spmd_axis_name=axis.spmd_name)

    each = [jax.ShapeDtypeStruct((axis.size, *x.shape), x.dtype) for x in results.out_avals]
    found = _by_platform.bind(
        *operands, forms=tuple((name, mapped(form)) for name, form in forms), results=_zeros(each)
    )
    return found, [0] * len(found)


batching.fancy_primitive_batchers[_by_platform] = _batched


def _lowered(context: mlir.LoweringRuleContext, *operands: Any, forms: _Forms, results: ClosedJaxpr) -> Any:  # noqa: ARG001
    module = context.module_context
    platforms = context.platforms or module.platforms
    mine = {name: form for name, form in forms if name in (_DEFAULT, *platforms)}
    # A program that is exported for one device may be called on a batch that is sharded over several.
    exported = module.lowering_parameters.for_export
    one_device = getattr(module.axis_context, "num_devices", None) == 1 and not exported

    def run(*operands: jax.Array) -> list[jax.Array]:
        with _lowering_for(platforms, operands, one_device=one_device):
            if len(platforms) > 1:
                return lax.platform_dependent(*operands, **mine)
            return mine.get(platforms[0], mine[_DEFAULT])(*operands)

    return mlir.lower_fun(run, multiple_results=True)(context, *operands)


mlir.register_lowering(_by_platform, _lowered)
