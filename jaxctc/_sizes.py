"""Compare sizes of which some may be symbolic, as `jax.export` makes them: not all of these can be compared.

A choice that depends on sizes asks `is_at_most`, and takes the branch that is right for every size where the answer is
not known. The program of known sizes is the same as without this module.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

Size: TypeAlias = int | Any
"""A number, or the symbolic size of `jax.export`, whose type is private to JAX."""
Index: TypeAlias = Size | Int[Array, ""]
"""A number that says where in an axis, which may be known when the program runs."""

LARGEST_INDEX = 2**31 - 1
"""The largest number that an index of int32 can be."""


def is_known(*sizes: Size) -> bool:
    """Return whether all these sizes are numbers, and none is symbolic."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def is_at_most(size: Size, most: Size) -> bool:
    """Return whether the size is known to be at most the other."""
    try:
        return size <= most
    except jax.errors.InconclusiveDimensionOperation:
        return False


def smaller(size: Size, other: Size) -> Size:
    """Return the smaller size, which is symbolic where the two cannot be compared."""
    return min(size, other) if is_known(size, other) else jax.core.min_dim(size, other)


def larger(size: Size, other: Size) -> Size:
    """Return the larger size, which is symbolic where the two cannot be compared."""
    return max(size, other) if is_known(size, other) else jax.core.max_dim(size, other)


def as_int32(index: Index) -> np.int32 | Int[Array, ""]:
    """Return the index in the one type that all have, whatever type a caller or a loop has given it."""
    return np.int32(index) if isinstance(index, int) else lax.convert_element_type(jnp.asarray(index), jnp.int32)
