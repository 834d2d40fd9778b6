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
from jaxctc._own_derivative import differentiated_by
from jaxctc._sizes import LARGEST_INDEX, is_at_most

_T = TypeVar("_T")


def on_tpu(multiplied: Callable[[], _T], elsewhere: Callable[[], _T]) -> _T:
    """Return what the first function returns where the program is lowered for a TPU, else what the second returns."""
    return _platforms.form(elsewhere, tpu=multiplied)


def taken(take: Callable[..., _T], x: Array, *indices: Array) -> _T:
    """Return ``take(x, *indices)``, which is elements of `x` and nothing else; differentiable.

    XLA on a CPU converts the whole operand of a bfloat16 gather or slice to float32 first, even if little of it is
    taken. Here the bits are taken, as uint16.
    """
    return _taken_as_bits(take, x, *indices) if x.dtype == jnp.bfloat16 else take(x, *indices)


def _taken_and_tangent(take: Callable[..., _T], arguments: tuple[Array, ...], tangent: Array) -> tuple[_T, _T]:
    return _taken_as_bits(take, *arguments), take(tangent, *arguments[1:])


@differentiated_by(_taken_and_tangent)
def _taken_as_bits(take: Callable[..., _T], x: Array, *indices: Array) -> _T:
    # Without the barrier XLA would move the conversion of all elements out of the loop in which the indices change.
    x, *indices = lax.optimization_barrier((x, *indices))
    found = take(lax.bitcast_convert_type(x, jnp.uint16), *indices)
    return jax.tree.map(lambda bits: lax.bitcast_convert_type(bits, x.dtype), found)


def of_classes(scores: Float[Array, "A B C"], classes: Int[Array, "A B"]) -> Float[Array, "A B"]:
    """Return the score of one class in each frame."""

    def take(x: Array, classes: Array) -> Array:
        return jnp.take_along_axis(x, classes[:, :, None], axis=2, mode="promise_in_bounds")[:, :, 0]

    return taken(take, scores, classes)


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
        # An index of two numbers needs a kernel of its own, with long code. This index would have devices communicate
        # where XLA divides the sequences.
        index = place + x.shape[1] * lax.broadcasted_iota(jnp.int32, place.shape, 1)
        return x.reshape(-1).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)

    if is_xlas_to_divide(x) or is_xlas_to_divide(place) or not is_at_most(x.size, LARGEST_INDEX):
        return by_row()
    return flat() if _platforms.is_for_one_device() else _platforms.form(by_row, cuda=flat, rocm=flat)
