"""Compute the posterior of the classes from the posterior of the lattice's labels.

Several columns may hold the same class. A matrix product adds them up (the class scatter), so that no addition is
atomic and every run gives the same result on every backend. Then each class reads its sum: by a gather, which XLA fuses
with the code that uses it, or on a TPU by another product (see `indexing`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxctc._forward_backward import sums
from jaxctc._forward_backward.bidirectional import Posterior
from jaxctc._lattice import indexing, lattices, products
from jaxctc._lattice.frame_map import places_of_frames
from jaxctc._lattice.lattices import Lattice, frames_first, has_label, row_of_indices
from jaxctc._sizes import Size, is_at_most
from jaxctc._types import Request

_MOST = 0.75
"""A probability that only one class of a frame can exceed, whatever its rounding."""


class ClassScatter(NamedTuple):
    """Which of K bins the posterior of each column is added to, and which bin each class reads."""

    scatter: Float[Array, "N 2 W K"]
    """1 where a column is added to a bin, else 0."""
    bin_of_class: Integer[Array, "N C"]
    """The bin of each class."""
    class_of_bin: Int[Array, "N K"]
    """The class of each bin."""

    def to_classes(
        self, label: Float[Array, "N 2 M W"], precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST
    ) -> Float[Array, "N 2 M K"]:
        # The default precision of a product is low on TPU and GPU.
        return jnp.einsum("ndmw,ndwk->ndmk", label, self.scatter, precision=precision)


def class_scatter(lattice: Lattice, classes: Size, dtype: jnp.dtype, *, gpu: bool = False) -> ClassScatter:
    """Return the class scatter of this lattice; `gpu` asks for the form that takes a GPU few kernels."""
    sequences, columns = lattice.labels.shape
    if is_at_most(classes, 2 * columns):
        bin_of_class = jnp.broadcast_to(row_of_indices(classes), (sequences, classes))
        matrix = _scatter_matrix(lattice, lattice.labels, classes)
        return ClassScatter(matrix.astype(dtype), bin_of_class, bin_of_class)
    # There are only as many bins as columns: each class has the first column that holds it.
    if gpu:
        bin_of_class = _compared_bins(lattice, classes)
        first_column = indexing.own_values(bin_of_class, lattice.labels[None])[0]
    else:
        first_column = _first_columns(lattice)
        bin_of_class = _bins_of_classes(lattice, first_column, classes)
    matrix = _scatter_matrix(lattice, first_column.astype(jnp.int32), columns)
    return ClassScatter(matrix.astype(dtype), bin_of_class, lattice.labels)


def class_posterior(
    posterior: Posterior, class_scatter: ClassScatter, lattice: Lattice, frames: Size, request: Request
) -> Float[Array, "A B C"]:
    """Return the probability of each class at each frame, given the target; unspecified beyond a sequence's length.

    The labels of `posterior` have been added up by `ClassScatter.to_classes`.
    """
    sequences, classes = class_scatter.bin_of_class.shape
    if sequences == 0:
        return jnp.zeros((0, frames, classes) if request.batch_first else (frames, 0, classes), posterior.label.dtype)
    shape = frames, sequences, classes

    def gathered() -> Array:
        row = places_of_frames(lattice, frames, posterior.blank.shape[2])[..., None]
        bin_of_class = jnp.broadcast_to(class_scatter.bin_of_class[None], shape).astype(jnp.int32)
        place = jnp.broadcast_to(row, shape) * posterior.label.shape[3] + bin_of_class
        label = indexing.own_values(posterior.label.reshape(sequences, -1), place)
        blank = indexing.own_values(posterior.blank.reshape(sequences, -1), row)
        # In a comparison with a number of each frame XLA makes no kernel of its own for the classes.
        frame_mask = lattices.frame_mask(lattice.input_lengths, frames, lattice.frame_order)
        blank_class = jnp.where(frame_mask, request.blank, -1)
        is_blank = lax.broadcasted_iota(jnp.int32, shape, 2) == blank_class[..., None]
        return frames_first(jnp.where(is_blank, blank, label), request)

    def multiplied() -> Array:
        label = products.by_frame(posterior.label, lattice, frames)
        if label.shape[2] != classes:
            # Of all columns that hold a class, only the first has a value, and the others have 0.
            label = products.product("ntw,nwc->ntc", label, products.one_hot(lattice.labels, classes))
        is_blank = row_of_indices(classes) == request.blank
        found = jnp.where(is_blank, products.by_frame(posterior.blank, lattice, frames)[:, :, None], label)
        return found if request.batch_first else jnp.swapaxes(found, 0, 1)

    return gathered() if lattice.frame_order is not None else indexing.on_tpu(multiplied, gathered)


class Dominant(NamedTuple):
    """The class of each frame whose posterior is more than `_MOST`."""

    label: Float[Array, "A B"]
    """The class; -1 where there is none."""
    others: Float[Array, "A B"]
    """The probability of all other classes together, with more digits than one minus that of `label` has."""


def dominant(
    posterior: Posterior, class_scatter: ClassScatter, lattice: Lattice, frames: Size, request: Request
) -> Dominant:
    """Return the dominant class of each frame, from a posterior whose labels `ClassScatter.to_classes` has added up."""

    def exceeds(x: Float[Array, "..."]) -> Float[Array, "..."]:
        # This gives 0 or 1 without a comparison: a CPU adds and multiplies eight numbers at a time, but selects one.
        return jnp.clip((x - _MOST) * float(2.0**100), 0, 1)

    def parts(x: Float[Array, "..."], label: Array) -> tuple[Array, Array]:
        does = exceeds(x)
        return does * (label + 1), x - x * does

    dtype = posterior.label.dtype
    each = parts(posterior.label, class_scatter.class_of_bin[:, None, None].astype(dtype))
    labels, rest = sums.together(each, 3) if request.layout.gpu else (x.sum(axis=3) for x in each)
    blank, without = parts(posterior.blank, jnp.asarray(request.blank, dtype))
    to_frames = functools.partial(indexing.to_frames, lattice=lattice, frames=frames)
    found = (to_frames(x) for x in (labels + blank - 1, rest + without))
    return Dominant(*(frames_first(x, request) for x in found))


def _scatter_matrix(lattice: Lattice, first_column: Int[Array, "N W"], bins: Size) -> Bool[Array, "N 2 W K"]:
    """Return which column is added to which bin."""
    both = indexing.labels_with_reversed(first_column, lattice)
    return products.one_hot(jnp.where(has_label(lattice)[:, None], both, -1), bins)


def _first_columns(lattice: Lattice) -> Int[Array, "N W"]:
    """Return, for each column, the first column that holds the same label."""
    same = lattice.labels[:, :, None] == lattice.labels[:, None, :]
    return jnp.argmax(same, axis=2).astype(jnp.int32)


def _compared_bins(lattice: Lattice, classes: Size) -> Integer[Array, "N C"]:
    """Return the same as `_bins_of_classes`, in one kernel and in as few bytes as hold it."""
    columns = lattice.labels.shape[1]
    dtype = next(x for x in (jnp.uint8, jnp.uint16, jnp.uint32) if columns <= jnp.iinfo(x).max)
    same = has_label(lattice)[:, :, None] & (lattice.labels[:, :, None] == row_of_indices(classes)[None])
    column = row_of_indices(columns).astype(dtype)[:, :, None]
    return jnp.where(same, column, jnp.asarray(columns - 1, dtype)).min(axis=1)


def _bins_of_classes(lattice: Lattice, first_column: Int[Array, "N W"], classes: Size) -> Int[Array, "N C"]:
    """Return the bin of each class; for classes that do not occur it is the last column, which no target reaches."""
    nowhere = jnp.full(classes, first_column.shape[1] - 1, jnp.int32)
    aim = jnp.where(has_label(lattice), lattice.labels, classes)
    # Under `vmap`: a scatter with indices of sequences would not stay on the devices that hold the sequences.
    return jax.vmap(lambda aim, first_column: nowhere.at[aim].set(first_column, mode="drop"))(aim, first_column)
