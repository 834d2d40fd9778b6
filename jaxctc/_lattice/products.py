"""Replace gathers on a TPU by products with one-hot matrices, and by long slices.

A TPU gathers element by element, in about ten cycles each, which for a whole batch is a hundred times what its kernel
takes to run over the lattice. Its matrix unit selects classes from a frame in almost no time, and adds up those of
equal labels. The steps of a direction read consecutive frames, so that one slice of a sequence's frames has them all.

A product with ones and zeros is exact at the highest precision: the hardware splits a number into three parts of eight
binary digits each, and adds these up again. But zero times infinity is NaN. Infinite values and NaN are therefore
replaced by large finite ones before the product, and by infinite ones after it, where they have been selected. Values
that are not selected are discarded.

On every other platform, programs are the same as without this module.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxctc._lattice.frame_map import FrameMap, halves
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, row_of_indices
from jaxctc._sizes import Size, is_at_most, is_known, larger
from jaxctc._types import Request

Fetch: TypeAlias = Callable[[FrameMap], tuple[Float[Array, "N 2 K W"], Float[Array, "N 2 K"], Float[Array, "N 2 K"]]]
"""A function that returns the scores that the steps of a frame map read: those of the labels, the best of them, and
that of the blank. A column without a label has the score of another label of the target, or of the blank.
"""

_HUGE = 2.0**127
"""The largest power of two of float32 and of bfloat16: all that is not below it counts as infinite."""


def one_hot(index: Int[Array, "*N W"], count: Size) -> Bool[Array, "*N W count"]:
    return index[..., None] == lax.broadcasted_iota(jnp.int32, (*index.shape, count), index.ndim)


def product(equation: str, x: Float[Array, "..."], ones: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Return the product with a matrix of ones and zeros; nothing is rounded but sums."""
    narrow = x.dtype == jnp.bfloat16
    # The default precision keeps all digits of a bfloat16.
    precision = lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST
    found = jnp.einsum(
        equation, x, ones.astype(x.dtype), precision=precision, preferred_element_type=accumulation_dtype(x.dtype)
    )
    return found.astype(x.dtype)


def picked(x: Shaped[Array, "*N W"], index: Int[Array, "*N W"]) -> Shaped[Array, "*N W"]:
    """Return the columns of these indices, by comparing all of them; 0 where there is no such column."""
    return jnp.where(one_hot(index, x.shape[-1]), x[..., None, :], 0).sum(axis=-1, dtype=x.dtype)


def with_reversed(x: Int[Array, "N W"], lattice: Lattice) -> Int[Array, "N 2 W"]:
    """Return the same as `indexing.labels_with_reversed`, with the value of the last column beyond the target's end."""
    return jnp.stack([x, picked(x, reverse(lattice))], axis=1)


def reverse(lattice: Lattice) -> Int[Array, "N W"]:
    """Return the columns from the target's last to its first; beyond its end the last one, which no target reaches."""
    columns = lattice.labels.shape[1]
    column = lattice.target_lengths[:, None] - 1 - row_of_indices(columns)
    return jnp.where(column < 0, columns - 1, column)


def fetch(scores: Float[Array, "A B C"], labels: Int[Array, "N 2 W"], lattice: Lattice, request: Request) -> Fetch:
    """Return a function that fetches scores by products and slices."""
    axes = (0, 1) if request.batch_first else (1, 0)
    frames = scores.shape[axes[1]]

    def fetched(frame_map: FrameMap) -> tuple[Array, Array, Array]:
        count = frame_map.frame.shape[2]
        # Where every frame may be read, the classes are selected first, so that the labels' scores alone are moved.
        select_first = is_at_most(frames, 2 * count) and is_at_most(labels.shape[2] + 1, scores.shape[2])
        behind = larger(frames // 2 + count - frames, 0)

        def steps(x: Float[Array, "N T *X"]) -> Float[Array, "N 2 K *X"]:
            if frame_map.middle is None:
                return jax.vmap(lambda x, frame: x.at[frame].get(mode="promise_in_bounds"))(x, frame_map.frame)
            both = rows(padded(x, count, behind), frame_map.middle, 2 * count)
            return jnp.stack([both[:, :count], both[:, count:][:, ::-1]], axis=1)

        used = emitted(scores.transpose(*axes, 2), labels, lattice, steps, select_first=select_first)
        used = used.astype(scores.dtype)
        # The last column has the class of the blank.
        return used, best(used), used[..., -1]

    return fetched


def best(used: Float[Array, "N 2 K W"]) -> Float[Array, "N 2 K"]:
    """Return the best score of each step."""
    return used.astype(accumulation_dtype(used.dtype)).max(axis=3)


def emitted(
    scores: Float[Array, "N T C"],
    labels: Int[Array, "N 2 W"],
    lattice: Lattice,
    steps: Callable[[Float[Array, "N T X"]], Float[Array, "N 2 K X"]],
    *,
    select_first: bool,
) -> Float[Array, "N 2 K W"]:
    """Return the scores of the labels in the frames that `steps` takes, which it may take of the labels' scores alone.

    The result has +inf for a NaN, and `-_HUGE` for -inf.
    """
    classes, columns = scores.shape[2], labels.shape[2]
    if scores.dtype == jnp.float16:
        scores = scores.astype(jnp.float32)
    # A NaN is not below anything.
    x = jnp.where(scores < _HUGE, jnp.maximum(scores, -_HUGE), _HUGE)
    if select_first:
        x = product("ntc,nwc->ntw", x, one_hot(lattice.labels, classes))
        straight = jnp.broadcast_to(row_of_indices(columns), lattice.labels.shape)
        labels = jnp.stack([straight, reverse(lattice)], axis=1)
    x = product("ndkc,ndwc->ndkw", steps(x), one_hot(labels, x.shape[2]))
    return jnp.where(x < _HUGE, x, jnp.inf)


def by_frame(x: Float[Array, "N 2 M *X"], lattice: Lattice, frames: Size) -> Float[Array, "N T *X"]:
    """Return what the step that reads each frame has; unspecified beyond a sequence's length."""
    count = x.shape[2]
    both = jnp.concatenate([x[:, 0], x[:, 1, ::-1]], axis=1)
    return rows(padded(both, 0, larger(frames - count, 0)), count - halves(lattice)[0][:, 0], frames)


def padded(x: Float[Array, "N R *X"], before: Size, after: Size) -> Float[Array, "N Q *X"]:
    """Return the rows with rows of zeros before and after them.

    This concatenates, which XLA does where it computes the rows; it would pad in a separate pass.
    """
    parts = [jnp.zeros((x.shape[0], size, *x.shape[2:]), x.dtype) for size in (before, after)]
    return jnp.concatenate([parts[0], x, parts[1]], axis=1)


def rows(x: Float[Array, "N R *X"], first: Int[Array, " N"], count: Size) -> Float[Array, "N count *X"]:
    """Return `count` rows of each sequence, from the sequence's own `first` row on."""
    if x.ndim == 2 and is_known(x.shape[1]):
        return _slid(x, first)[:, :count]
    return jax.vmap(lambda x, first: lax.dynamic_slice_in_dim(x, first, count))(x, first)


@functools.partial(jax.jit, inline=True)  # traced once, however often it is called
def _slid(x: Float[Array, "N R"], by: Int[Array, " N"]) -> Float[Array, "N R"]:
    """Return each sequence moved to the left by its own number of rows.

    A TPU keeps these numbers in lanes: the whole batch is moved at once, by one power of two after the other.
    """
    for bit in range(x.shape[1].bit_length()):
        x = jnp.where((by >> bit & 1)[:, None] == 1, jnp.roll(x, -(1 << bit), axis=1), x)
    return x
