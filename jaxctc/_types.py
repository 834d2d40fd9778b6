"""The words that every module shares: axis names, the reductions, the options of one call.

Axis names in the annotations: T frames, N sequences, C classes (blank included), S labels of the
longest target, W = min(S, T) + 1 columns of the lattice. A and B are T and N in the order in which
the caller keeps them.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
from jaxtyping import Array, Integer

Reduction: TypeAlias = Literal["none", "mean", "sum", "batchmean", "mean_volume"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)

Implementation: TypeAlias = Literal["scan", "pallas"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

LOG_ZERO = -1e30
"""Stands for log 0. Scores at or below it mean probability zero; a million of them still fit in float32."""

ArrayLike: TypeAlias = Any
"""What the public functions take: JAX arrays, numpy arrays, nested sequences, plain numbers."""


class Request(NamedTuple):
    """What is static about one call: hashable, so that it keys a compilation."""

    blank: int = 0
    from_logits: bool = False
    batch_first: bool = False
    frame_axis: str | None = None
    """The mesh axis that the frames lie along."""
    sequences_at_once: int | None = None
    """The sequences that are worked on at once; all, if it is not said."""
    implementation: str | None = None
    """Who walks the lattice (see `dispatch`)."""
    sequence_axis: str | tuple[str, ...] | None = None
    """The mesh axis that the sequences lie along, where that is known: a kernel has to be told."""


class Problem(NamedTuple):
    """One batch in canonical form: whatever can be checked without tracing has been checked."""

    scores: jax.Array
    """(T, N, C), or (N, T, C) with `batch_first`."""
    targets: Integer[Array, "N S"]
    input_lengths: Integer[Array, " N"]
    target_lengths: Integer[Array, " N"]
