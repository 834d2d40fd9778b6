"""Choose the implementation of the bidirectional recursion: XLA's loops, or a platform's kernels.

Whatever depends on the choice (the multiple of the lattice's columns, the size of a segment, whose functions run) is
one `Layout`, chosen here before the lattice is built, so that a platform's default is program for program what an
explicit request runs. Shapes and types are known when tracing, the platform when lowering (`_platforms`), so that a
program can be made for a device that is not there. GPUs without a kernel run loops of their own (`gpu_loops`), if the
scores can be stored and the frames are on one device. Unless it is asked for, or preferred (`set_implementation`), a
kernel runs only on platforms in `PROVEN`. An explicit request runs the kernel or raises with the reason.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxctc._forward_backward import gpu_loops, scaled_emissions, segments
from jaxctc._kernels.implementations import GpuLoops, Implementation, Kernels, Loops
from jaxctc._lattice.lattices import accumulation_dtype, column_count, frames_of
from jaxctc._platforms import by_platform
from jaxctc._sizes import is_known
from jaxctc._types import IMPLEMENTATIONS, REGISTERED, Layout, Problem, Request

PROVEN: frozenset[str] = frozenset()
"""Platforms whose kernels are the default: on whose hardware `make gpu-check` or its like has passed, none yet."""

_COLUMNS = 128
"""Lanes of a TPU's register, threads of a GPU's warpgroup. With fewer columns a GPU's kernel has to copy the scores."""
_GPU_COLUMNS = 2
"""The loops for GPUs take a multiple of this number of columns, so that a row is read in pairs."""
_STEPS = 16
"""The kernels for GPUs take a multiple of this number of steps; they would have to copy anything else."""

_T = TypeVar("_T")


def choose(
    run: Callable[..., _T], request: Request, problem: Problem, *rest: Any, results: Any, every_blank: bool = False
) -> _T:
    """Return what `run` gives for the request with the layout of the implementation that serves it.

    `run` is a function of a request, the problem and the rest, and may use no other traced value. `results` has the
    shapes and types of what it returns, for it is traced when it is lowered. `every_blank` says that the posterior of
    each blank is wanted, for which a TPU's kernel has less room.
    """
    if request.implementation in REGISTERED:
        _, layout = REGISTERED[request.implementation]
        if why := _objection(request, problem, layout):
            raise _no_kernel_error(request, why)
        return run(request._replace(layout=layout), problem, *rest)
    everywhere = functools.partial(run, request._replace(layout=Layout()))
    asked = request.implementation == "pallas"
    preferred = asked or request.prefers_kernels
    loops = {} if asked else _loops(run, request, problem)
    by_loops = functools.partial(by_platform, everywhere, loops, results)
    if request.implementation == "xla" or not (preferred or PROVEN):
        return by_loops(problem, *rest)
    objections = _objections(request, problem, every_blank=every_blank)
    usable = [platform for platform, why in objections.items() if why is None and (preferred or platform in PROVEN)]
    against = tuple((platform, why) for platform, why in objections.items() if why is not None)
    if asked and not usable:
        reasons = dict.fromkeys(why for _, why in against)
        each = "; ".join(f"on {name}, {why}" for name, why in against)
        raise _no_kernel_error(request, next(iter(reasons)) if len(reasons) == 1 else each)

    if not usable:
        return by_loops(problem, *rest)

    def no_kernel(*operands: Any) -> _T:
        return jax.tree.map(
            functools.partial(_no_kernel.bind, request=request, objections=against), everywhere(*operands)
        )

    kernels: dict[str, Callable[..., _T]] = {
        name: functools.partial(run, request._replace(layout=_layout(name))) for name in usable
    }
    # Kernels are traced on every platform: JAX has to see that a program needs to know its devices.
    default: Callable[..., _T] = no_kernel if asked else by_loops
    return lax.platform_dependent(problem, *rest, default=default, **kernels)


def _loops(run: Callable[..., _T], request: Request, problem: Problem) -> dict[str, Callable[..., _T]]:
    """Return, by platform, what runs the loops that are made for this platform, if they can serve this batch."""
    if not _sizes_are_known(problem):
        return {}
    layout = Layout("gpu_loops", _GPU_COLUMNS, gpu_loops.turn_size(frames_of(problem.scores, request)))
    frames, columns, dtype = _score_sizes(request, problem, layout)
    if request.frame_axis is not None or frames * columns * dtype.itemsize > gpu_loops.LARGE:
        return {}
    on_gpu = functools.partial(run, request._replace(layout=layout))
    return {"cuda": on_gpu, "rocm": on_gpu}


def register(name: str, kernels: Any, *, column_multiple: int = 8, segment_steps: int | None = None) -> None:
    """Make ``implementation=name`` run these kernels on every platform.

    It is how the tests run the kernels in Pallas's interpreter, and how to try new ones.

    Args:
        name: What a caller writes.
        kernels: An object with `likelihood`, `posterior` and `PRECISION`, as `implementations.KernelModule` has them.
        column_multiple: The lattice has a multiple of this number of columns.
        segment_steps: Each direction has a multiple of this number of steps; None: as many as the loops take.

    Raises:
        ValueError: The name is taken, by an implementation or by a platform.
    """
    if name in (*IMPLEMENTATIONS, "loops", "gpu_loops", "tpu", "cuda"):
        raise ValueError(f"name is {name!r}, which is taken: choose another, such as {'my-' + name!r}.")
    REGISTERED[name] = kernels, Layout(name, column_multiple, segment_steps)


def register_gpu_loops(name: str, turn: int) -> None:
    """Make ``implementation=name`` run the loops for GPUs on every platform, in turns of so many steps: for tests."""
    REGISTERED[name] = None, Layout("gpu_loops", _GPU_COLUMNS, turn)


def implementation(request: Request) -> Implementation:
    """Return the implementation that the request's layout is for."""
    match request.layout.runs:
        case "loops":
            return Loops()
        case "gpu_loops":
            return GpuLoops()
        case name:
            return Kernels(_kernels(name), request.sequence_axis)


def _layout(platform: str) -> Layout:
    return Layout(platform, _COLUMNS, _STEPS)


def _kernels(platform: str) -> ModuleType:
    """Return the module of a platform's kernels; Pallas takes long to import, so that only its users pay for it."""
    if platform in REGISTERED:
        return REGISTERED[platform][0]
    if platform == "tpu":
        from jaxctc._kernels import tpu

        return tpu
    from jaxctc._kernels import gpu

    return gpu


def _objection(request: Request, problem: Problem, layout: Layout) -> str | None:
    """Return why kernels of this layout cannot serve this batch, or None if they can."""
    if not _sizes_are_known(problem):
        return "its sizes are symbolic, and a kernel is made for sizes that are known"
    if request.frame_axis is not None:
        return "the frames are on several devices"
    if not scaled_emissions.stores_scores(*_score_sizes(request, problem, layout)):
        return "its scores would take more than 512 MB, and only the loops recompute them as they go"
    return None


def _sizes_are_known(problem: Problem) -> bool:
    return is_known(*problem.scores.shape, problem.targets.shape[1])


def _score_sizes(request: Request, problem: Problem, layout: Layout) -> tuple[int, int, jnp.dtype]:
    """Return the number of frames and of the columns in all sequences that are scored at once, and the type."""
    sequences, longest = problem.targets.shape
    frames = frames_of(problem.scores, request)
    columns = min(sequences, request.sequences_at_once or sequences) * column_count(longest, frames, layout)
    return frames, columns, accumulation_dtype(problem.scores.dtype)


def _objections(request: Request, problem: Problem, *, every_blank: bool) -> dict[str, str | None]:
    """Return, by platform, why its kernels cannot serve this batch, or None."""
    layout = _layout("tpu")
    if why := _objection(request, problem, layout):
        return dict.fromkeys(("tpu", "cuda"), why)
    (sequences, longest), scores = problem.targets.shape, problem.scores
    frames, dtype = frames_of(scores, request), accumulation_dtype(scores.dtype)
    sequences = min(sequences, request.sequences_at_once or sequences)
    shape = sequences, 2, segments.step_count(frames, _STEPS), column_count(longest, frames, layout)
    found = {"tpu": _kernels("tpu").objection(shape, dtype, every_blank=every_blank)}
    try:
        gpu = _kernels("cuda")
    except ModuleNotFoundError:
        found["cuda"] = "Pallas needs absl-py: install jaxctc[gpu]"
    else:
        varies = bool(jax.typeof(scores).manual_axis_type.varying)
        found["cuda"] = gpu.objection(dtype, varies=varies)
    return found


def _no_kernel_error(request: Request, why: str) -> ValueError:
    asked = request.implementation
    return ValueError(f"implementation is {asked!r}, but there is no kernel for this: {why}. Leave it to None.")


_no_kernel = Primitive("no_kernel")
"""Stands where the platform has no kernel: it can be traced, and not be lowered."""
_no_kernel.def_abstract_eval(lambda x, **_: x)
batching.primitive_batchers[_no_kernel] = lambda arguments, axes, **parameters: (
    _no_kernel.bind(*arguments, **parameters),
    *axes,
)


def _lowered(context: mlir.LoweringRuleContext, *_: Any, **parameters: Any) -> Any:
    raise _unavailable(context.module_context.platforms, **parameters)


def _evaluated(*_: Any, **parameters: Any) -> Any:
    """Raise the reason outside of `jax.jit` too, where `jax.disable_jit` has the primitive evaluated."""
    raise _unavailable((jax.default_backend(),), **parameters)


def _unavailable(platforms: Any, request: Request, objections: tuple[tuple[str, str], ...]) -> ValueError:
    why = [why for platform, why in objections if platform in platforms]
    names = ", ".join(platforms)
    return _no_kernel_error(
        request, "; ".join(why) or f"there are kernels for TPUs and NVIDIA GPUs, not for the platform {names}"
    )


mlir.register_lowering(_no_kernel, _lowered)
_no_kernel.def_impl(_evaluated)


def require_xla_or_reference(request: Request, why: str) -> None:
    """Raise the reason if the request asks for kernels where there are none."""
    if request.implementation not in (None, "xla", "reference"):
        raise _no_kernel_error(request, why)
