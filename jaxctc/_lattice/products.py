"""Replace gathers on a TPU by products with one-hot matrices, and by long slices.

A TPU gathers element by element, in about ten cycles each, which for a whole batch is a hundred times what its kernel
takes to run over the lattice. Its matrix unit selects classes from a frame in almost no time, and adds up those of
equal labels. The steps of a direction read consecutive frames, so that one slice of a sequence's frames has them all.

A product with ones and zeros is exact at the highest precision: the hardware splits a number into three parts of eight
binary digits each, and adds these up again. But zero times infinity is NaN. Infinite values and NaN are therefore
replaced by large finite ones before the product, and by infinite ones after it, where they have been selected. Values
that are not selected are discarded.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxctc._lattice.lattices import Lattice, accumulation_dtype, row_of_indices
from jaxctc._sizes import Size, is_known, larger


def one_hot(index: Int[Array, "*N W"], count: Size) -> Bool[Array, "*N W count"]:
    return index[..., None] == lax.broadcasted_iota(jnp.int32, (*index.shape, count), index.ndim)


def product(equation: str, x: Float[Array, "..."], ones: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Return the product with a matrix of ones and zeros; nothing is rounded but sums."""
    narrow = x.dtype == jnp.bfloat16
    # The default precision keeps all digits of a bfloat16.
    precision = lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST
    found = jnp.einsum(
        equation, x, ones.astype(x.dtype), precision=precision, preferred_element_type=accumulation_dtype(x.dtype)
    )
    return found.astype(x.dtype)


def picked(x: Shaped[Array, "*N W"], index: Int[Array, "*N W"]) -> Shaped[Array, "*N W"]:
    """Return the columns of these indices, by comparing all of them; 0 where there is no such column."""
    return jnp.where(one_hot(index, x.shape[-1]), x[..., None, :], 0).sum(axis=-1, dtype=x.dtype)


def with_reversed(x: Int[Array, "N W"], lattice: Lattice) -> Int[Array, "N 2 W"]:
    """Return the same as `indexing.labels_with_reversed`, with the value of the last column beyond the target's end."""
    return jnp.stack([x, picked(x, reverse(lattice))], axis=1)


def reverse(lattice: Lattice) -> Int[Array, "N W"]:
    """Return the columns from the target's last to its first; beyond its end the last one, which no target reaches."""
    columns = lattice.labels.shape[1]
    column = lattice.target_lengths[:, None] - 1 - row_of_indices(columns)
    return jnp.where(column < 0, columns - 1, column)


def by_frame(x: Float[Array, "N 2 M *X"], lattice: Lattice, frames: Size) -> Float[Array, "N T *X"]:
    """Return what the step that reads each frame has; unspecified beyond a sequence's length."""
    count = x.shape[2]
    both = jnp.concatenate([x[:, 0], x[:, 1, ::-1]], axis=1)
    return rows(padded(both, 0, larger(frames - count, 0)), count - lattice.halves[0], frames)


def padded(x: Float[Array, "N R *X"], before: Size, after: Size) -> Float[Array, "N Q *X"]:
    """Return the rows with rows of zeros before and after them.

    This concatenates, which XLA does where it computes the rows; it would pad in a separate pass.
    """
    parts = [jnp.zeros((x.shape[0], size, *x.shape[2:]), x.dtype) for size in (before, after)]
    return jnp.concatenate([parts[0], x, parts[1]], axis=1)


def rows(x: Float[Array, "N R *X"], first: Int[Array, " N"], count: Size) -> Float[Array, "N count *X"]:
    """Return `count` rows of each sequence, from the sequence's own `first` row on."""
    if x.ndim == 2 and is_known(x.shape[1]):
        return _slid(x, first)[:, :count]
    return jax.vmap(lambda x, first: lax.dynamic_slice_in_dim(x, first, count))(x, first)


@functools.partial(jax.jit, inline=True)  # traced once, however often it is called
def _slid(x: Float[Array, "N R"], by: Int[Array, " N"]) -> Float[Array, "N R"]:
    """Return each sequence moved to the left by its own number of rows.

    A TPU keeps these numbers in lanes: the whole batch is moved at once, by one power of two after the other.
    """
    for bit in range(x.shape[1].bit_length()):
        x = jnp.where((by >> bit & 1)[:, None] == 1, jnp.roll(x, -(1 << bit), axis=1), x)
    return x
