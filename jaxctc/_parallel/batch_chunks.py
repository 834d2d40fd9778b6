"""Process a batch that is too large to be processed at once in chunks, one after the other.

`jax.lax.map(..., batch_size=)` does the same for arrays whose first axis is that of the sequences. The scores of a
batch are seldom laid out so: they, and the gradient, would be transposed. On a CPU at T = 200, N = 1024, C = 64, S = 40
in chunks of 128, loss and gradient would need 118 MB of temporary memory, not 42, and twice the time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxctc._lattice import indexing
from jaxctc._lattice.lattices import Lattice
from jaxctc._mesh import varying_like
from jaxctc._sizes import is_at_most, smaller
from jaxctc._slices import put_in_axis, read_in_axis
from jaxctc._tracing import fori_loop
from jaxctc._types import Request


def in_chunks(function: Callable[..., Any], request: Request) -> Callable[..., Any]:
    """Return a function of scores and their lattice that calls `function` with one chunk of the sequences at a time.

    A chunk has `Request.sequences_at_once` sequences. Each chunk writes its results into the arrays for the whole
    batch, so that they are in memory only once. The last chunk is as long as the others: JAX moves its start back into
    the chunk before, and it computes the results of some sequences a second time.
    """
    axis = 0 if request.batch_first else 1

    def call(scores: jax.Array, lattice: Lattice, *rest: Any) -> Any:
        sequences = scores.shape[axis]
        if request.sequences_at_once is None or is_at_most(sequences, request.sequences_at_once):
            return function(scores, lattice, *rest)
        most = smaller(sequences, request.sequences_at_once)

        def chunk_of(x: jax.Array, first: Int[Array, ""]) -> jax.Array:
            return read_in_axis(x, first, most, axis)

        def part(first: Int[Array, ""]) -> Any:
            some = jax.tree.map(lambda x: read_in_axis(x, first, most, 0), lattice)
            return function(indexing.taken(chunk_of, scores, first), some, *rest)

        def along(x: Any) -> int:
            return axis if x.ndim == scores.ndim else 0

        def room(x: jax.ShapeDtypeStruct) -> Array:
            shape = list(x.shape)
            shape[along(x)] = sequences
            return varying_like(scores, jnp.zeros(shape, x.dtype))

        def put(i: Int[Array, ""], found: Any) -> Any:
            def into(x: Array, y: Array) -> Array:
                return put_in_axis(x, y, i * most, along(x))

            return jax.tree.map(into, found, part(i * most))

        found = jax.tree.map(room, jax.eval_shape(part, jnp.int32(0)))
        return fori_loop(0, -(-sequences // most), put, found)

    return call
