"""Reduce arrays along axes, in forms that XLA compiles itself.

On a CPU it hands the sum or the maximum of one float32 array to a library, which can be no part of a larger kernel
(`_platforms.in_one_kernel`). It knows them by the function that combines two numbers.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def maximum(x: Float[Array, "..."], axis: tuple[int, ...]) -> Float[Array, "..."]:
    """Return the largest number along some axes, if none is NaN."""
    return lax.reduce(x, np.array(-np.inf, x.dtype), lambda a, b: lax.select(a < b, b, a), axis)


def sum_of_probabilities(x: Float[Array, "..."], axis: tuple[int, ...]) -> Float[Array, "..."]:
    """Return the sum along some axes of numbers of which none is negative."""
    return lax.reduce(x, np.zeros((), x.dtype), lambda a, b: a + jnp.abs(b), axis)


def sums(*arrays: Float[Array, "..."], axis: tuple[int, ...]) -> tuple[Float[Array, "..."], ...]:
    """Return the sum of each of two or more arrays along some axes, computed in one loop over all arrays.

    A GPU needs one kernel for all of them, in which no thread adds up many numbers. On a CPU one thread adds all
    numbers up, one after the other.
    """
    zeros = tuple(np.zeros((), x.dtype) for x in arrays)
    return tuple(lax.reduce(arrays, zeros, lambda a, b: tuple(map(jnp.add, a, b)), axis))
