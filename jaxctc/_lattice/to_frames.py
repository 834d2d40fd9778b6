"""Bring what the steps of the recursion have back to the frames that they read: the inverse of `label_scores`.

A TPU multiplies with one-hot matrices and takes slices (see `products`); every other platform gathers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxctc._lattice import indexing, products
from jaxctc._lattice.frame_map import places_of_frames
from jaxctc._lattice.lattices import Lattice
from jaxctc._sizes import Size


class ToFrames(NamedTuple):
    """The way from the steps of both directions to the frames. What comes of it is unspecified beyond a length."""

    lattice: Lattice
    place: Int[Array, "T N"]
    """The place of each frame among the steps (see `places_of_frames`), which has the same number of steps."""

    @classmethod
    def of(cls, lattice: Lattice, frames: Size, count: Size) -> "ToFrames":
        """Return the way from `count` steps of each direction."""
        return cls(lattice, places_of_frames(lattice, frames, count))

    def numbers(self, x: Float[Array, "N 2 M"]) -> Float[Array, "T N"]:
        """Return the number that the step has that reads each frame."""
        (sequences, _, count), frames = x.shape, self.place.shape[0]

        def gathered() -> Array:
            return indexing.own_values(x.reshape(sequences, 2 * count), self.place[:, :, None])[:, :, 0]

        if x.size == 0:
            return jnp.zeros((frames, sequences), x.dtype)
        return self._form(lambda: products.by_frame(x, self.lattice, frames).T, gathered)

    def classes(self, x: Float[Array, "N 2 M K"], bin_of_class: Integer[Array, "N C"]) -> Float[Array, "T N C"]:
        """Return the number of each class that the step has that reads each frame.

        `x` has the numbers of the classes in K bins: one for each class, or one for each column of the lattice, where
        only the first column that holds a class has a number other than 0.
        """
        (sequences, classes), (count, bins), frames = bin_of_class.shape, x.shape[2:], self.place.shape[0]
        shape = frames, sequences, classes

        def gathered() -> Array:
            row = jnp.broadcast_to(self.place[:, :, None], shape)
            place = row * bins + jnp.broadcast_to(bin_of_class[None], shape).astype(jnp.int32)
            return indexing.own_values(x.reshape(sequences, 2 * count * bins), place)

        def multiplied() -> Array:
            found = products.by_frame(x, self.lattice, frames)
            if bins != classes:
                found = products.product("ntw,nwc->ntc", found, products.one_hot(self.lattice.labels, classes))
            return jnp.swapaxes(found, 0, 1)

        if sequences == 0:
            return jnp.zeros(shape, x.dtype)
        return self._form(multiplied, gathered)

    def _form(self, multiplied: Callable[[], Array], gathered: Callable[[], Array]) -> Array:
        """Return what suits the platform; slices of consecutive frames do where the frames have no other order."""
        return gathered() if self.lattice.frame_order is not None else indexing.on_tpu(multiplied, gathered)
