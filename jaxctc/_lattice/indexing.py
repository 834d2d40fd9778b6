"""Choose how a platform takes elements by their index: a TPU by products and slices, every other platform by gathers.

A TPU gathers element by element, so that it multiplies with one-hot matrices and takes slices (see `products`).
`on_tpu` makes that choice when a program is lowered, here and in the modules that have both forms of an operation.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxctc import _platforms
from jaxctc._lattice import products
from jaxctc._lattice.lattices import Lattice
from jaxctc._mesh import is_xlas_to_divide

_T = TypeVar("_T")


def on_tpu(multiplied: Callable[[], _T], elsewhere: Callable[[], _T]) -> _T:
    """Return what the first function returns where the program is lowered for a TPU, else what the second returns."""
    return _platforms.form(elsewhere, tpu=multiplied)


def as_bits(x: Array, index: Array) -> tuple[Array, Array]:
    """Return an array of bfloat16 as uint16, to take elements from it by this index; any other array as it is.

    XLA on a CPU converts the whole operand of a bfloat16 gather or slice to float32 first, even if little of it is
    taken. `from_bits` is the inverse; neither has a derivative.
    """
    if x.dtype != jnp.bfloat16:
        return x, index
    # Without the barrier XLA would move the conversion of all elements out of the loop in which the index changes.
    x, index = lax.optimization_barrier((x, index))
    return lax.bitcast_convert_type(x, jnp.uint16), index


def from_bits(x: Array, dtype: jnp.dtype) -> Array:
    """Return the array of this type of which `as_bits` made `x`."""
    return lax.bitcast_convert_type(x, dtype) if dtype == jnp.bfloat16 else x


@jax.custom_jvp
def of_classes(scores: Float[Array, "A B C"], classes: Int[Array, "A B"]) -> Float[Array, "A B"]:
    """Return the score of one class in each frame, differentiable."""
    bits, classes = as_bits(scores, classes)
    taken = jnp.take_along_axis(bits, classes[:, :, None], axis=2, mode="promise_in_bounds")[:, :, 0]
    return from_bits(taken, scores.dtype)


@of_classes.defjvp
def _of_classes_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    change = jnp.take_along_axis(tangents[0], primals[1][:, :, None], axis=2, mode="promise_in_bounds")[:, :, 0]
    return of_classes(*primals), change


def labels_with_reversed(labels: Int[Array, "N W"], lattice: Lattice) -> Int[Array, "N 2 W"]:
    """Return the labels as they are, and with the target reversed; unspecified beyond its end."""

    def gathered() -> Array:
        sequences, columns = labels.shape
        shape = sequences, 2, columns
        direction, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        turned = jnp.maximum(jnp.broadcast_to(lattice.target_lengths[:, None, None], shape) - 1 - column, 0)
        place = jnp.where(direction == 0, column, turned).reshape(1, sequences, 2 * columns)
        return own_values(labels, place).reshape(shape)

    return on_tpu(lambda: products.with_reversed(labels, lattice), gathered)


def own_values(x: Array, place: Int[Array, "X N Y"]) -> Array:
    """Return what each sequence has at these indices of its own row of `x`, which is (N, columns)."""

    def by_row() -> Array:
        return jnp.take_along_axis(x[None], place, axis=2, mode="promise_in_bounds")

    def flat() -> Array:
        # An index of one number needs no kernel of its own. Where XLA divides the sequences, devices would communicate.
        index = place + x.shape[1] * lax.broadcasted_iota(jnp.int32, place.shape, 1)
        return x.reshape(-1).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)

    if is_xlas_to_divide(x) or is_xlas_to_divide(place):
        return by_row()
    return _platforms.form(by_row, cuda=flat, rocm=flat)
