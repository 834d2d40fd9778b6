"""Fetch the scores that the steps of the recursion read: those of the lattice's labels and of the blank.

A TPU multiplies with one-hot matrices and takes slices (see `products`); every other platform gathers.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxctc import _platforms
from jaxctc._lattice import indexing, products
from jaxctc._lattice.frame_map import FrameMap
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, row_of_indices
from jaxctc._mesh import is_xlas_to_divide
from jaxctc._sizes import is_at_most, larger
from jaxctc._types import Request

_HUGE = 2.0**127
"""The largest power of two of float32 and of bfloat16: all that is not below it counts as infinite."""


class Fetched(NamedTuple):
    """The scores that K steps of either direction read, in the type of the caller's scores but for `best`."""

    labels: Float[Array, "N 2 K W"]
    """A column without a label has the score of another label of the target, or of the blank."""
    best: Float[Array, "N 2 K"]
    """The best of these labels' scores, in the type that is computed in."""
    blank: Float[Array, "N 2 K"]


class LabelScores(NamedTuple):
    """The scores of a batch, of which each step reads those of one frame."""

    scores: Float[Array, "A B C"]
    labels: Int[Array, "N 2 W"]
    """The class of each column, in each direction's own order."""
    lattice: Lattice
    request: Request

    def fetch(self, frame_map: FrameMap) -> Fetched:
        """Return the scores that the steps of a frame map read, as the platform fetches them fastest."""
        if self.request.layout.gpu:
            return self.gathered(frame_map)
        return indexing.on_tpu(lambda: self.multiplied(frame_map), lambda: self.gathered(frame_map))

    def gathered(self, frame_map: FrameMap) -> Fetched:
        """Return the same as `fetch`, by gathers."""
        scores, labels, request = self.scores, self.labels, self.request
        sequence_axis = 0 if request.batch_first else 1
        gather = functools.partial(_gathered, request.blank, sequence_axis, request.layout.gpu)

        # Where the classes are on several devices, a second gather would communicate a second time.
        divided = is_xlas_to_divide(scores)

        def once() -> Fetched:
            # What XLA fuses with a gather is no longer done eight at a time. The barrier prevents this; what jax 0.10
            # reshapes the result by is fused with the code that uses it all the same, unless the gather is a call.
            run = gather if divided else _platforms.apart(gather)
            used, blank = lax.optimization_barrier(run(scores, frame_map.frame, labels))
            return Fetched(used, _best(used), blank)

        def twice() -> Fetched:
            # On a GPU a second gather takes no longer than writing the result of the first to memory and reading it.
            used, blank = gather(scores, frame_map.frame, labels)
            again, _ = gather(scores, lax.optimization_barrier(frame_map.frame), labels)
            return Fetched(again, _best(used), blank)

        if scores.shape[1 - sequence_axis] == 0:
            none = jnp.zeros(frame_map.frame.shape, scores.dtype)
            return Fetched(jnp.zeros((*none.shape, labels.shape[2]), scores.dtype), none, none)
        if divided:
            return once()
        return twice() if request.layout.gpu else _platforms.form(once, cuda=twice, rocm=twice)

    def multiplied(self, frame_map: FrameMap) -> Fetched:
        """Return the same as `fetch`, but +inf for a NaN: by products, and by slices of consecutive frames."""
        scores = self.scores if self.request.batch_first else jnp.swapaxes(self.scores, 0, 1)
        (_, frames, classes), count = scores.shape, frame_map.frame.shape[2]
        # Where every frame may be read, the classes are selected first, so that the labels' scores alone are moved.
        select_first = is_at_most(frames, 2 * count) and is_at_most(self.labels.shape[2] + 1, classes)
        behind = larger(frames // 2 + count - frames, 0)

        def steps(x: Float[Array, "N T *X"]) -> Float[Array, "N 2 K *X"]:
            if frame_map.middle is None:
                return jax.vmap(lambda x, frame: x.at[frame].get(mode="promise_in_bounds"))(x, frame_map.frame)
            both = products.rows(products.padded(x, count, behind), frame_map.middle, 2 * count)
            return jnp.stack([both[:, :count], both[:, count:][:, ::-1]], axis=1)

        used = emitted(scores, self.labels, self.lattice, steps, select_first=select_first).astype(scores.dtype)
        # The last column has the class of the blank.
        return Fetched(used, _best(used), used[..., -1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)  # traced once, however often it is called
def _gathered(
    blank: int,
    sequence_axis: int,
    gpu: bool,
    scores: Float[Array, "A B C"],
    frame: Int[Array, "N 2 K"],
    labels: Int[Array, "N 2 W"],
) -> tuple[Float[Array, "N 2 K W"], Float[Array, "N 2 K"]]:
    @functools.partial(jax.vmap, in_axes=(sequence_axis, 0, 0))
    def gather(scores: Array, frame: Array, labels: Array) -> tuple[Array, Array]:
        # No index is negative; for one that might be, there would be another kernel.
        at = (scores.at[frame[:, :, None], labels[:, None, :]], scores[:, blank].at[frame])
        used, blanks = (x.get(mode="promise_in_bounds", wrap_negative_indices=False) for x in at)
        return used, blanks

    if gpu:  # which converts only what it takes
        return gather(scores, frame, labels)
    return indexing.taken(gather, scores, frame, labels)


def _best(used: Float[Array, "N 2 K W"]) -> Float[Array, "N 2 K"]:
    return used.astype(accumulation_dtype(used.dtype)).max(axis=3)


def emitted(
    scores: Float[Array, "N T C"],
    labels: Int[Array, "N 2 W"],
    lattice: Lattice,
    steps: Callable[[Float[Array, "N T X"]], Float[Array, "N 2 K X"]],
    *,
    select_first: bool,
) -> Float[Array, "N 2 K W"]:
    """Return the scores of the labels in the frames that `steps` picks, from all scores or from the labels' alone.

    The result has +inf for a NaN, and `-_HUGE` for -inf.
    """
    classes, columns = scores.shape[2], labels.shape[2]
    if scores.dtype == jnp.float16:
        scores = scores.astype(jnp.float32)
    # A NaN is not below anything.
    x = jnp.where(scores < _HUGE, jnp.maximum(scores, -_HUGE), _HUGE)
    if select_first:
        x = products.product("ntc,nwc->ntw", x, products.one_hot(lattice.labels, classes))
        straight = jnp.broadcast_to(row_of_indices(columns), lattice.labels.shape)
        labels = jnp.stack([straight, products.reverse(lattice)], axis=1)
    x = products.product("ndkc,ndwc->ndkw", steps(x), products.one_hot(labels, x.shape[2]))
    return jnp.where(x < _HUGE, x, jnp.inf)
