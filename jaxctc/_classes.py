"""From the posterior of the lattice's labels to the posterior of the classes.

Several columns may hold one class. A matrix product adds those up, so that no addition is atomic and the
result is the same from run to run on every backend; then each class takes what one column holds: a
gather, which fuses with whatever is made of it. The blank has what the labels leave of one.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxctc import _walk
from jaxctc._lattice import Lattice, row_of_indices
from jaxctc._types import Options


def class_posterior(
    posterior: Float[Array, "N 2 M W"], lattice: Lattice, frames: int, classes: int, options: Options
) -> Float[Array, "A B C"]:
    """The probability of each class at each frame, given the target; unspecified beyond a sequence's length."""
    sequences, columns = lattice.labels.shape
    if posterior.size == 0:
        shape = (sequences, frames, classes) if options.batch_first else (frames, sequences, classes)
        return jnp.zeros(shape, posterior.dtype)
    if classes <= 2 * columns:
        place = jnp.broadcast_to(row_of_indices(classes), (sequences, classes))
        fold = _fold(lattice, lattice.labels, classes, options.blank)
    else:  # only as many places as there are columns; the last of them is no label's, nor is the one before
        home = _first(lattice)
        place = _places(lattice, home, classes).at[:, options.blank].set(columns - 1)
        fold = _fold(lattice, home, columns, columns - 1)
    # The default precision of a product is low on TPU and GPU.
    folded = jnp.einsum("ndmw,ndwk->ndmk", posterior, fold.astype(posterior.dtype), precision=jax.lax.Precision.HIGHEST)

    @functools.partial(jax.vmap, out_axes=0 if options.batch_first else 1)
    def gather(folded: Array, direction: Array, step: Array, place: Array) -> Array:
        at = folded.at[direction[:, None], step[:, None], place[None]]
        return at.get(mode="promise_in_bounds")

    found = gather(folded, *_walk.steps_of_frames(lattice, frames), place)
    return found + jax.nn.one_hot(options.blank, classes, dtype=found.dtype)[None, None]


def _fold(lattice: Lattice, home: Int[Array, "N W"], places: int, blank: int) -> Int[Array, "N 2 W K"]:
    """Adds each label to its home, and takes it from the blank's."""
    place = row_of_indices(places)[None]
    fold = (home[:, :, None] == place).astype(jnp.int32) - (place == blank).astype(jnp.int32)
    return _walk.both_ways(jnp.where(_walk.exists(lattice)[:, :, None], fold, 0), lattice)


def _first(lattice: Lattice) -> Int[Array, "N W"]:
    """The first column that holds the same label."""
    same = lattice.labels[:, :, None] == lattice.labels[:, None, :]
    return jnp.argmax(same, axis=2).astype(jnp.int32)


def _places(lattice: Lattice, home: Int[Array, "N W"], classes: int) -> Int[Array, "N C"]:
    """The home of each class; the last column but one, which no target reaches, for those that do not occur."""
    sequences, columns = home.shape
    nowhere = jnp.full((sequences, classes), columns - 2, jnp.int32)
    aim = jnp.where(_walk.exists(lattice), lattice.labels, classes)
    return nowhere.at[row_of_indices(sequences).T, aim].set(home, mode="drop")
