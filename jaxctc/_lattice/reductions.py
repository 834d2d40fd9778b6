"""Reduce an axis of several arrays of one shape in one loop.

XLA on a CPU divides the reduction of one array into windows, whose code is long, or hands it to a library, which can be
no part of a larger kernel (`_platforms.in_one_kernel`). It does neither with a reduction of several arrays, and a GPU
needs one kernel for all of them.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def maximum(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the largest number of both arrays along the last axis, if none is NaN."""
    return larger(*_reduced((a, b), -np.inf, larger, -1))


def larger(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the larger number. NaN cannot occur, and a CPU needs four instructions to respect it (`jnp.maximum`)."""
    return lax.select(lax.lt(a, b), b, a)


def sums(*arrays: Float[Array, "..."], axis: int = -1) -> tuple[Float[Array, "..."], ...]:
    """Return the sum of each of two or more arrays along an axis."""
    return _reduced(arrays, 0.0, jnp.add, axis)


def _reduced(
    arrays: tuple[Array, ...], start: float, combine: Callable[[Array, Array], Array], axis: int
) -> tuple[Float[Array, "..."], ...]:
    starts = tuple(np.array(start, x.dtype) for x in arrays)
    return tuple(lax.reduce(arrays, starts, lambda a, b: tuple(map(combine, a, b)), (axis % arrays[0].ndim,)))
