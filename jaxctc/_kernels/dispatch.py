"""Who walks the lattice: the scan of `bidirectional`, or a kernel. The choice is made here alone.

What a walk's shape and type decide is known when tracing; the platform is when lowering, so that a program can be
made for a device that is not there. Unasked, a kernel runs where it has been seen to be right on its own hardware and
can walk what there is; asked for by name it runs, or why it does not is said.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from jaxctc._forward_backward import bidirectional
from jaxctc._forward_backward.bidirectional import Posterior, Scatter, StateBuffers
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import Index, ScaledEmissions
from jaxctc._lattice.lattices import Lattice
from jaxctc._mesh import mapped_over
from jaxctc._types import Request

_PROVEN: frozenset[str] = frozenset()
"""Platforms on whose hardware `make gpu-check`, or its like, has passed: none yet."""
_WHOLE = 16
"""Steps, of which kernels for GPUs take a whole number of times; other walks they would have to copy."""


def segment_size(frames: int, lattice: Lattice, dtype: jnp.dtype, request: Request) -> int:
    """As `bidirectional.segment_size`; of kernels, whose own segments are what they have room for, any that suits all."""
    return _WHOLE if request.implementation == "pallas" else bidirectional.segment_size(frames, lattice, dtype)


def likelihood(
    emissions: ScaledEmissions, start: Index, size: int, begin: StateBuffers | None, request: Request
) -> Scaled:
    """As `bidirectional.likelihood`."""

    def scan() -> Scaled:
        return bidirectional.likelihood(emissions, start, size, begin)

    def kernel(kernels: ModuleType) -> Scaled:
        return mapped_over(request.sequence_axis, kernels.likelihood)(emissions, start)

    return _by_platform(scan, kernel, emissions, begin, request)


def posterior(
    emissions: ScaledEmissions,
    size: int,
    start: Index,
    begin: StateBuffers | None,
    request: Request,
    *,
    every_blank: bool = False,
    scatter: Scatter = lambda label, *_: label,
) -> tuple[Scaled, Posterior]:
    """As `bidirectional.posterior`."""

    def scan() -> tuple[Scaled, Posterior]:
        return bidirectional.posterior(emissions, size, start, begin, every_blank=every_blank, scatter=scatter)

    def kernel(kernels: ModuleType) -> tuple[Scaled, Posterior]:
        def of(emissions: ScaledEmissions, start: Index) -> tuple[Scaled, Posterior]:
            return kernels.posterior(emissions, emissions.steps, start, every_blank=every_blank)

        value, found = mapped_over(request.sequence_axis, of)(emissions, start)
        return value, found._replace(label=scatter(found.label, kernels.PRECISION))

    return _by_platform(scan, kernel, emissions, begin, request, every_blank=every_blank)


def _by_platform(
    scan: Callable[[], Any],
    kernel: Callable[[ModuleType], Any],
    emissions: ScaledEmissions,
    begin: StateBuffers | None,
    request: Request,
    *,
    every_blank: bool = False,
) -> Any:
    """What the kernels of the platform give for which the program is lowered, or the scan."""
    asked = request.implementation == "pallas"
    if request.implementation == "scan" or not (asked or _PROVEN):
        return scan()
    kernels: dict[str, ModuleType] = {}
    if begin is not None:
        why = "the frames are on several devices"
    elif emissions.scores is None:
        why = "its scores would take more than 512 MB, and only the scan makes them as it goes"
    else:
        kernels, objections = _kernels(emissions.scores, every_blank=every_blank)
        why = "; ".join(f"on {platform}, {why}" for platform, why in objections.items())
    if asked and not kernels:
        raise _no_kernel_error(why)

    def none() -> Any:
        return jax.tree.map(functools.partial(_no_kernel.bind, objections=tuple(objections.items())), scan())

    chosen = {name: functools.partial(kernel, of) for name, of in kernels.items() if asked or name in _PROVEN}
    return lax.platform_dependent(**chosen, default=none if asked else scan) if chosen else scan()


def _kernels(scores: Array, *, every_blank: bool) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Those for a walk of these scores, and why others are not for it, by platform."""
    from jaxctc._kernels import tpu

    found: dict[str, ModuleType] = {"tpu": tpu}
    objections = {"tpu": tpu.objection(scores.shape, scores.dtype, every_blank=every_blank)}
    try:
        from jaxctc._kernels import gpu
    except ModuleNotFoundError:
        objections["cuda"] = "Pallas needs absl-py: install jaxctc[gpu]"
    else:
        found["cuda"] = gpu
        varies = bool(jax.typeof(scores).manual_axis_type.varying)
        objections["cuda"] = gpu.objection(scores.dtype, varies=varies)
    against = {platform: why for platform, why in objections.items() if why is not None}
    return {platform: of for platform, of in found.items() if platform not in against}, against


def _no_kernel_error(why: str) -> ValueError:
    return ValueError(f"implementation is 'pallas', but there is no kernel for this: {why}. Leave it to None.")


_no_kernel = Primitive("no_kernel")
"""Stands where the platform has no kernel: it can be traced, and not be lowered."""
_no_kernel.def_abstract_eval(lambda x, **_: x)
batching.primitive_batchers[_no_kernel] = lambda arguments, axes, **request: (
    _no_kernel.bind(*arguments, **request),
    *axes,
)


def _lowered(context: mlir.LoweringRuleContext, *_: Any, objections: tuple[tuple[str, str], ...]) -> Any:
    platforms = context.module_context.platforms
    why = [why for platform, why in objections if platform in platforms]
    names = ", ".join(platforms)
    raise _no_kernel_error(
        "; ".join(why) or f"there are kernels for TPUs and NVIDIA GPUs, not for the platform {names}"
    )


mlir.register_lowering(_no_kernel, _lowered)
