"""Read and write slices that begin at an index which is not negative: JAX would look for negative ones each time.

A slice that would end beyond the array begins earlier, as those of `jax.lax` do.
"""

from jax import lax
from jaxtyping import Array, Shaped

from jaxctc._sizes import Index, Size, as_int32


def read(x: Shaped[Array, "..."], where: tuple[Index, ...], size: tuple[Size, ...]) -> Shaped[Array, "..."]:
    """Return the slice of this size that begins there."""
    return lax.dynamic_slice(x, tuple(map(as_int32, where)), size, allow_negative_indices=False)


def put(x: Shaped[Array, "..."], value: Shaped[Array, "..."], where: tuple[Index, ...]) -> Shaped[Array, "..."]:
    """Return the array with the value in place of the slice that begins there."""
    return lax.dynamic_update_slice(x, value, tuple(map(as_int32, where)), allow_negative_indices=False)


def read_in_axis(x: Shaped[Array, "..."], first: Index, size: Size, axis: int) -> Shaped[Array, "..."]:
    """Return `size` elements of this axis, from `first` on."""
    axis %= x.ndim
    return read(x, _along(axis, first, x.ndim), (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def put_in_axis(x: Shaped[Array, "..."], value: Shaped[Array, "..."], first: Index, axis: int) -> Shaped[Array, "..."]:
    """Return the array with the value in place of elements of this axis, from `first` on."""
    return put(x, value, _along(axis % x.ndim, first, x.ndim))


def _along(axis: int, first: Index, axes: int) -> tuple[Index, ...]:
    return tuple(first if i == axis else 0 for i in range(axes))
