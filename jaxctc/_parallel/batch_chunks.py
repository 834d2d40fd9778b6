"""A batch in slices, one after the other, for one that is too large to be worked on all at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxctc._lattice.lattices import Lattice
from jaxctc._mesh import varying_like
from jaxctc._types import Request


def sliced(function: Callable[..., Any], request: Request) -> Callable[..., Any]:
    """A function of scores and their lattice, called with as many sequences at once as there may be.

    Its results are put in place slice by slice, so that they are there once. The last slice is as long as the others:
    JAX moves it back to begin within the one before, whose results it finds again.
    """
    axis = 0 if request.batch_first else 1
    most = request.sequences_at_once

    def call(scores: jax.Array, lattice: Lattice, *rest: Any) -> Any:
        sequences = scores.shape[axis]
        if most is None or sequences <= most:
            return function(scores, lattice, *rest)

        def part(first: Int[Array, ""]) -> Any:
            some = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, most), lattice)
            return function(lax.dynamic_slice_in_dim(scores, first, most, axis), some, *rest)

        def along(x: Any) -> int:
            return axis if x.ndim == scores.ndim else 0

        def room(x: jax.ShapeDtypeStruct) -> Array:
            shape = list(x.shape)
            shape[along(x)] = sequences
            return varying_like(scores, jnp.zeros(shape, x.dtype))

        def put(i: Int[Array, ""], found: Any) -> Any:
            def into(x: Array, y: Array) -> Array:
                return lax.dynamic_update_slice_in_dim(x, y, i * most, along(x))

            return jax.tree.map(into, found, part(i * most))

        found = jax.tree.map(room, jax.eval_shape(part, jnp.int32(0)))
        return lax.fori_loop(0, -(-sequences // most), put, found)

    return call
