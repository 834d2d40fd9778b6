"""From the posterior of the lattice's labels to the posterior of the classes.

Several columns may hold one class. A matrix product adds those up, so that no addition is atomic and the
result is the same from run to run on every backend; then each class takes what one column holds: a
gather, which fuses with whatever is made of it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxctc import _walk
from jaxctc._both_ends import Posterior
from jaxctc._lattice import Lattice, row_of_indices
from jaxctc._types import Options


def class_posterior(
    posterior: Posterior, lattice: Lattice, frames: int, classes: int, options: Options
) -> Float[Array, "A B C"]:
    """The probability of each class at each frame, given the target; unspecified beyond a sequence's length."""
    sequences, columns = lattice.labels.shape
    if posterior.label.size == 0:
        shape = (sequences, frames, classes) if options.batch_first else (frames, sequences, classes)
        return jnp.zeros(shape, posterior.label.dtype)
    if classes <= 2 * columns:
        place = jnp.broadcast_to(row_of_indices(classes), (sequences, classes))
        fold = _fold(lattice, lattice.labels, classes)
    else:  # only as many places as there are columns
        home = _first(lattice)
        place = _places(lattice, home, classes)
        fold = _fold(lattice, home, columns)
    fold = fold.astype(posterior.label.dtype)
    # The default precision of a product is low on TPU and GPU.
    folded = jnp.einsum("ndmw,ndwk->ndmk", posterior.label, fold, precision=jax.lax.Precision.HIGHEST)
    is_blank = row_of_indices(classes) == options.blank

    @functools.partial(jax.vmap, out_axes=0 if options.batch_first else 1)
    def gather(folded: Array, blank: Array, direction: Array, step: Array, place: Array) -> Array:
        labels = folded.at[direction[:, None], step[:, None], place[None]].get(mode="promise_in_bounds")
        blanks = blank.at[direction, step].get(mode="promise_in_bounds")
        return jnp.where(is_blank, blanks[:, None], labels)

    return gather(folded, posterior.blank, *_walk.steps_of_frames(lattice, frames, posterior.label.shape[2]), place)


def _fold(lattice: Lattice, home: Int[Array, "N W"], places: int) -> Bool[Array, "N 2 W K"]:
    """Which column is to be added to which place."""
    fold = _walk.exists(lattice)[:, :, None] & (home[:, :, None] == row_of_indices(places)[None])
    return _walk.both_ways(fold, lattice)


def _first(lattice: Lattice) -> Int[Array, "N W"]:
    """The first column that holds the same label."""
    same = lattice.labels[:, :, None] == lattice.labels[:, None, :]
    return jnp.argmax(same, axis=2).astype(jnp.int32)


def _places(lattice: Lattice, home: Int[Array, "N W"], classes: int) -> Int[Array, "N C"]:
    """The home of each class; the last column, which no target reaches, for those that do not occur."""
    nowhere = jnp.full(classes, home.shape[1] - 1, jnp.int32)
    aim = jnp.where(_walk.exists(lattice), lattice.labels, classes)
    # Mapped, for a scatter that names its sequences would not stay on the devices that hold them.
    return jax.vmap(lambda aim, home: nowhere.at[aim].set(home, mode="drop"))(aim, home)
