"""From the posterior of the lattice's labels to the posterior of the classes.

Several columns may hold one class. A matrix product adds those up, so that no addition is atomic and the
result is the same from run to run on every backend; then each class takes what one column holds: a
gather, which fuses with whatever is made of it, or on a TPU another product (see `indexing`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxctc._forward_backward.bidirectional import Posterior
from jaxctc._lattice import indexing, products
from jaxctc._lattice.frame_map import steps_of_frames
from jaxctc._lattice.lattices import Lattice, frames_first, has_label, row_of_indices
from jaxctc._types import Request

_MOST = 0.75
"""A probability that only one class of a frame can exceed, whatever its rounding."""


class ClassScatter(NamedTuple):
    """Where the posterior of each column goes, and where each class finds its own. Axes: K places."""

    scatter: Float[Array, "N 2 W K"]
    """1 where a column is to be added to a place."""
    of_class: Int[Array, "N C"]
    class_of: Int[Array, "N K"]

    def to_classes(
        self, label: Float[Array, "N 2 M W"], precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST
    ) -> Float[Array, "N 2 M K"]:
        # The default precision of a product is low on TPU and GPU.
        return jnp.einsum("ndmw,ndwk->ndmk", label, self.scatter, precision=precision)


def class_scatter(lattice: Lattice, classes: int, dtype: jnp.dtype) -> ClassScatter:
    sequences, columns = lattice.labels.shape
    if classes <= 2 * columns:
        of_class = jnp.broadcast_to(row_of_indices(classes), (sequences, classes))
        return ClassScatter(_scatter_matrix(lattice, lattice.labels, classes).astype(dtype), of_class, of_class)
    # Only as many places as there are columns.
    first_column = _first(lattice)
    return ClassScatter(
        _scatter_matrix(lattice, first_column, columns).astype(dtype),
        _places(lattice, first_column, classes),
        lattice.labels,
    )


def class_posterior(
    posterior: Posterior, class_scatter: ClassScatter, lattice: Lattice, frames: int, request: Request
) -> Float[Array, "A B C"]:
    """The probability of each class at each frame, given the target; unspecified beyond a sequence's length.

    Of the posterior with its labels folded.
    """
    sequences, classes = class_scatter.of_class.shape
    if sequences == 0:
        return jnp.zeros((0, frames, classes) if request.batch_first else (frames, 0, classes), posterior.label.dtype)
    is_blank = row_of_indices(classes) == request.blank

    def multiplied() -> Array:
        label = indexing.by_frame(posterior.label, lattice, frames)
        if label.shape[2] < classes:
            # No column holds anything but its class's home.
            label = products.product("ntw,nwc->ntc", label, products.one_hot(lattice.labels, classes))
        found = jnp.where(is_blank, indexing.by_frame(posterior.blank, lattice, frames)[:, :, None], label)
        return found if request.batch_first else jnp.swapaxes(found, 0, 1)

    @functools.partial(jax.vmap, out_axes=0 if request.batch_first else 1)
    def gather(to_classes: Array, blank: Array, direction: Array, step: Array, place: Array) -> Array:
        labels = to_classes.at[direction[:, None], step[:, None], place[None]].get(mode="promise_in_bounds")
        blanks = blank.at[direction, step].get(mode="promise_in_bounds")
        return jnp.where(is_blank, blanks[:, None], labels)

    def gathered() -> Array:
        steps = steps_of_frames(lattice, frames, posterior.blank.shape[2])
        return gather(posterior.label, posterior.blank, *steps, class_scatter.of_class)

    return indexing.on_tpu(multiplied, gathered)


class Dominant(NamedTuple):
    """The class of each frame whose posterior is more than `_MOST`."""

    label: Float[Array, "A B"]
    """Which it is; -1 where there is none."""
    others: Float[Array, "A B"]
    """The probability of all others together: what is missing from one, to more digits than one less that has."""


def dominant(
    posterior: Posterior, class_scatter: ClassScatter, lattice: Lattice, frames: int, request: Request
) -> Dominant:
    """Of the posterior with its labels folded."""

    def exceeds(x: Float[Array, "..."]) -> Float[Array, "..."]:
        # 0 or 1 without a comparison: a CPU adds and multiplies eight numbers at a time where it selects one.
        return jnp.clip((x - _MOST) * float(2.0**100), 0, 1)

    def sums(x: Float[Array, "..."], label: Array) -> tuple[Array, Array]:
        does = exceeds(x)
        return does * (label + 1), x * (1 - does)

    dtype = posterior.label.dtype
    labels, rest = (x.sum(axis=3) for x in sums(posterior.label, class_scatter.class_of[:, None, None].astype(dtype)))
    blank, without = sums(posterior.blank, jnp.asarray(request.blank, dtype))
    found = (indexing.to_frames(x, lattice, frames) for x in (labels + blank - 1, rest + without))
    return Dominant(*(frames_first(x, request) for x in found))


def _scatter_matrix(lattice: Lattice, first_column: Int[Array, "N W"], class_scatter: int) -> Bool[Array, "N 2 W K"]:
    """Which column is to be added to which place."""
    exists = has_label(lattice)[:, :, None]

    def compared() -> Array:
        return exists[:, None] & products.one_hot(indexing.both_ways(first_column, lattice), class_scatter)

    def gathered() -> Array:
        scatter = exists & (first_column[:, :, None] == row_of_indices(class_scatter)[None])
        return indexing.both_ways(scatter, lattice)

    return indexing.on_tpu(compared, gathered)


def _first(lattice: Lattice) -> Int[Array, "N W"]:
    """The first column that holds the same label."""
    same = lattice.labels[:, :, None] == lattice.labels[:, None, :]
    return jnp.argmax(same, axis=2).astype(jnp.int32)


def _places(lattice: Lattice, first_column: Int[Array, "N W"], classes: int) -> Int[Array, "N C"]:
    """The home of each class; the last column, which no target reaches, for those that do not occur."""
    nowhere = jnp.full(classes, first_column.shape[1] - 1, jnp.int32)
    aim = jnp.where(has_label(lattice), lattice.labels, classes)
    # Mapped, for a scatter that names its sequences would not stay on the devices that hold them.
    return jax.vmap(lambda aim, first_column: nowhere.at[aim].set(first_column, mode="drop"))(aim, first_column)
