"""Define what every module shares: axis names, the reductions, the description of one call.

Axis names in the annotations: T frames, N sequences, C classes (the blank included), S labels of the longest target,
W columns of the lattice: min(S, T) + 2, rounded up to a multiple of `Layout.column_multiple`. A and B are T and N in
the order in which the caller keeps them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import jax
from jaxtyping import Array, Integer

Reduction: TypeAlias = Literal["none", "mean", "sum", "batchmean", "mean_volume"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)

Implementation: TypeAlias = Literal["reference", "xla", "pallas"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
REGISTERED: dict[str, tuple[Any, "Layout"]] = {}
"""Kernels, and their layout, that `dispatch.register` has added under a name of their own."""

LOG_ZERO = -1e30
"""Stands for log 0. Scores at or below it mean probability zero; a million of them still fit in float32."""

ArrayLike: TypeAlias = Any
"""What functions take whose checks of the values are their own."""

if TYPE_CHECKING:

    class _Array(Protocol):
        """An array of JAX, numpy or another library; or a numpy number."""

        def __array__(self) -> Any: ...

    _Floats: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]
    FloatsLike: TypeAlias = _Array | float | _Floats | Sequence[_Array]
    IntegersLike: TypeAlias = _Array | int | Sequence[int] | Sequence[Sequence[int]] | Sequence[_Array]
else:
    # What they are is said by errors of our own, and not by a type checker at run time.
    FloatsLike = IntegersLike = Any


class Layout(NamedTuple):
    """How lattice and steps are laid out for the implementation that runs them; `dispatch` alone chooses one."""

    runs: str = "loops"
    """What runs: "loops" (those of XLA), "gpu_loops" (those of XLA for GPUs), the kernels of a platform ("tpu",
    "cuda"), or kernels registered by name.
    """
    column_multiple: int = 8
    """The lattice's columns are a multiple of this: a vector register of a CPU, or a row of a kernel."""
    segment_steps: int | None = None
    """The number of steps is a multiple of this; None leaves the choice to the loops."""

    @property
    def gpu(self) -> bool:
        """Whether what runs is made for GPUs alone, so that the forms for other platforms need not be traced."""
        return self.runs in ("gpu_loops", "cuda")


class Request(NamedTuple):
    """Describe what is static about one call: hashable, so that it keys a compilation. Built once, read by name."""

    blank: int = 0
    from_logits: bool = False
    batch_first: bool = False
    frame_axis: str | None = None
    """The mesh axis that the frames are sharded over."""
    sequences_at_once: int | None = None
    """The number of sequences in one chunk of the batch; None: all."""
    implementation: str | None = None
    """What the caller asked for; None leaves the choice to `dispatch`."""
    prefers_kernels: bool = False
    """Whether kernels run wherever they can, without being asked for by name."""
    sequence_axis: str | tuple[str, ...] | None = None
    """The mesh axis that the sequences are sharded over, where it is known: a kernel has to be told."""
    layout: Layout = Layout()


class Problem(NamedTuple):
    """One batch in canonical form: whatever can be checked without tracing has been checked."""

    scores: jax.Array
    """(T, N, C), or (N, T, C) with `batch_first`."""
    targets: Integer[Array, "N S"]
    input_lengths: Integer[Array, " N"]
    target_lengths: Integer[Array, " N"]
