"""Compute the posterior of the classes from the posterior of the lattice's labels.

Several columns may hold the same class. A matrix product adds them up (the class scatter), so that no addition is
atomic and every run gives the same result on every backend. Then each class reads its sum: by a gather, which XLA fuses
with the code that uses it, or on a TPU by another product (see `to_frames`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from jaxctc import _platforms
from jaxctc._forward_backward.bidirectional import Posterior
from jaxctc._forward_backward.scaled_emissions import is_other
from jaxctc._lattice import indexing, products
from jaxctc._lattice.lattices import Lattice, frames_first, has_label, row_of_indices
from jaxctc._lattice.to_frames import ToFrames
from jaxctc._sizes import LARGEST_INDEX, Size, is_at_most
from jaxctc._types import Request


class ClassScatter(NamedTuple):
    """Which of K bins the posterior of each column is added to, and which bin each class reads.

    Each class has a bin of its own, or there are only as many bins as columns: then the bin of a class is the first
    column that holds it.
    """

    bin_of_column: Int[Array, "N 2 W"]
    """The bin of each column, in each direction's own order; -1 where there is no label."""
    class_of_bin: Int[Array, "N K"]
    """The class of each bin."""
    first_column: Int[Array, "N W"] | None
    """The first column that holds the label of each column; None where each class has a bin of its own."""
    lattice: Lattice
    classes: Size
    gpu: bool

    def to_classes(
        self, label: Float[Array, "N 2 M W"], precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST
    ) -> Float[Array, "N 2 M K"]:
        bin_of_column = self.bin_of_column
        if self.gpu:
            # The matrix takes memory only once the forward pass is over.
            label, bin_of_column = lax.optimization_barrier((label, bin_of_column))
        matrix = products.one_hot(bin_of_column, self.class_of_bin.shape[1]).astype(label.dtype)
        # The default precision of a product is low on TPU and GPU.
        return jnp.einsum("ndmw,ndwk->ndmk", label, matrix, precision=precision)

    def bin_of_class(self, label: Float[Array, "N 2 M K"]) -> Integer[Array, "N C"]:
        """Return the bin that each class reads; it takes a GPU's memory only once `label`, the posterior, is known."""
        if self.first_column is None:
            return self.class_of_bin
        if not self.gpu:
            return _bins_of_classes(self.lattice, self.first_column, self.classes)
        # The condition never holds. It reads one element of `label`, so that XLA cannot compute the bins earlier.
        number = label[:, 0, -1, 0]
        target_lengths = jnp.where(jnp.isnan(number) & (number > 0), 0, self.lattice.target_lengths)
        return _compared_bins(self.lattice._replace(target_lengths=target_lengths), self.classes)


def class_scatter(lattice: Lattice, classes: Size, *, gpu: bool = False) -> ClassScatter:
    """Return the class scatter of this lattice; `gpu` asks for the form that takes a GPU few kernels, little memory."""
    sequences, columns = lattice.labels.shape
    # On a CPU up to twice as many bins take less time than to look up the bin of each class; a GPU has them in memory.
    if is_at_most(classes, columns if gpu else 2 * columns):
        first_column, bins = None, lattice.labels
        class_of_bin = jnp.broadcast_to(row_of_indices(classes), (sequences, classes))
    else:
        bins = first_column = _first_columns(lattice)
        class_of_bin = lattice.labels
    return ClassScatter(_bins_of_columns(lattice, bins), class_of_bin, first_column, lattice, classes, gpu)


def class_posterior(
    posterior: Posterior, class_scatter: ClassScatter, to_frames: ToFrames, request: Request
) -> Float[Array, "A B C"]:
    """Return the probability of each class at each frame, given the target; unspecified beyond a sequence's length.

    The labels of `posterior` have been added up by `ClassScatter.to_classes`.
    """
    label = to_frames.classes(posterior.label, class_scatter.bin_of_class(posterior.label))
    blank = to_frames.numbers(posterior.blank)[:, :, None]
    # In a comparison with a number of each frame XLA makes no kernel of its own for the classes.
    blank_class = jnp.where(blank >= 0, request.blank, -1)
    is_blank = lax.broadcasted_iota(jnp.int32, label.shape, 2) == blank_class
    return frames_first(jnp.where(is_blank, blank, label), request)


def all_but_best(
    posterior: Posterior,
    class_scatter: ClassScatter,
    best: Float[Array, "N 2 M"],
    to_frames: ToFrames,
    request: Request,
) -> Float[Array, "A B"]:
    """Return the probability of all classes of each frame together but for one, which `best` gives for each step.

    It has more digits than one minus the probability of that class has. The labels of `posterior` have been added up by
    `ClassScatter.to_classes`.
    """
    label = class_scatter.class_of_bin[:, None, None].astype(best.dtype)
    labels = (posterior.label * is_other(label, best[..., None])).sum(axis=3)
    blank = posterior.blank * is_other(jnp.asarray(request.blank, best.dtype), best)
    return frames_first(to_frames.numbers(labels + blank), request)


def _bins_of_columns(lattice: Lattice, bins: Int[Array, "N W"]) -> Int[Array, "N 2 W"]:
    """Return the bins of the columns of both directions, from those of the forward one."""
    return jnp.where(has_label(lattice)[:, None], indexing.labels_with_reversed(bins, lattice), -1)


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
    sequences, columns = first_column.shape
    nowhere = columns - 1
    if _platforms.is_for_one_device() and is_at_most(sequences * classes, LARGEST_INDEX):
        # An index of two numbers needs a kernel of its own, with long code.
        row = lax.broadcasted_iota(jnp.int32, first_column.shape, 0)
        aim = jnp.where(has_label(lattice), row * classes + lattice.labels, sequences * classes)
        bins = jnp.full(sequences * classes, nowhere, jnp.int32).at[aim].set(first_column, mode="drop")
        return bins.reshape(sequences, classes)
    aim = jnp.where(has_label(lattice), lattice.labels, classes)
    # Under `vmap`: a scatter with indices of sequences would not stay on the devices that hold the sequences.
    empty = jnp.full(classes, nowhere, jnp.int32)
    return jax.vmap(lambda aim, first_column: empty.at[aim].set(first_column, mode="drop"))(aim, first_column)
