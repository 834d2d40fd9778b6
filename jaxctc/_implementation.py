"""Who walks the lattice: the scan of `_both_ends`, or a kernel. The choice is made here alone.

What a walk's shape and type decide is known when tracing; the platform is when lowering, so that a program can be
made for a device that is not there. No kernel has run on the hardware that it is for yet: it runs where it is asked
for by name.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxctc import _both_ends
from jaxctc._both_ends import Fold, Posterior, States
from jaxctc._scaled import Scaled
from jaxctc._walk import Index, Walk


def likelihood(
    walk: Walk, start: Index, size: int, begin: States | None = None, implementation: str | None = None
) -> Scaled:
    """As `_both_ends.likelihood`."""

    def scan() -> Scaled:
        return _both_ends.likelihood(walk, start, size, begin)

    if implementation != "pallas":
        return scan()
    from jaxctc._kernels import _tpu

    _refuse(_objection(walk, begin))
    return _by_platform(scan, tpu=lambda: _tpu.likelihood(walk, start))


def posterior(
    walk: Walk,
    size: int,
    start: Index,
    begin: States | None = None,
    *,
    fold: Fold,
    implementation: str | None = None,
) -> tuple[Scaled, Posterior]:
    """As `_both_ends.posterior`."""

    def scan() -> tuple[Scaled, Posterior]:
        return _both_ends.posterior(walk, size, start, begin, fold=fold)

    if implementation != "pallas":
        return scan()
    from jaxctc._kernels import _tpu

    def tpu() -> tuple[Scaled, Posterior]:
        value, found = _tpu.posterior(walk, size, start)
        return value, found._replace(label=fold(found.label))

    _refuse(_objection(walk, begin))
    return _by_platform(scan, tpu=tpu)


def _objection(walk: Walk, begin: States | None) -> str | None:
    """Why no kernel is for this walk, or None."""
    from jaxctc._kernels import _tpu

    if walk.scores is None:
        return "the scores of all labels at all frames would take more than 512 MB, and the scan makes them as it goes"
    if begin is not None:
        return "the frames are on several devices"
    return _tpu.objection(walk.scores.shape, walk.scores.dtype)


def _refuse(objection: str | None) -> None:
    if objection is not None:
        raise ValueError(f"implementation is 'pallas', but there is no kernel for this: {objection}. Leave it to None.")


def _by_platform(scan: Callable[[], Any], **kernels: Callable[[], Any]) -> Any:
    """That of the platform for which the program is lowered."""

    def none() -> Any:
        return jax.tree.map(_no_kernel.bind, scan())

    return lax.platform_dependent(**kernels, default=none)


_no_kernel = Primitive("no_kernel")
"""Stands where the platform has no kernel: it can be traced, and not be lowered."""
_no_kernel.def_abstract_eval(lambda x: x)
batching.primitive_batchers[_no_kernel] = lambda arguments, axes: (_no_kernel.bind(*arguments), *axes)


def _lowered(context: mlir.LoweringRuleContext, *_: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise ValueError(
        f"implementation is 'pallas', and there are kernels for TPUs, but not for the platform {platforms}. "
        "Leave it to None."
    )


mlir.register_lowering(_no_kernel, _lowered)
