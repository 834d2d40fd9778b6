"""The words that every module shares: axis names, the reductions, the options of one problem.

Axis names in the annotations: T frames, N sequences, C classes (blank included), S labels of the
longest target, W = min(S, T) + 1 columns of the lattice.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from jaxtyping import Array, Float, Int

Reduction: TypeAlias = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)

#: What the public functions take: JAX arrays, numpy arrays, or (for lengths) plain numbers.
ArrayLike: TypeAlias = Any
Lengths: TypeAlias = Array | Sequence[int] | int | Any

Scores: TypeAlias = Float[Array, "A B C"]
"""(T, N, C), or (N, T, C) with `batch_first`."""


class Options(NamedTuple):
    """What is static about one call: hashable, so that it can key a compilation."""

    blank: int = 0
    from_logits: bool = False
    batch_first: bool = False


class Problem(NamedTuple):
    """One batch in canonical form: everything checked that can be checked without tracing."""

    scores: Float[Array, "A B C"]
    targets: Int[Array, "N S"]
    input_lengths: Int[Array, " N"]
    target_lengths: Int[Array, " N"]
