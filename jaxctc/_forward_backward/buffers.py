"""Store the states of the recursion in buffers that XLA updates in place on a CPU.

Each step updates its buffers in place. Even and odd steps have separate buffers: XLA would copy a buffer that is read
and written in the same step, and it would give a result that has no buffer to several threads, which takes longer than
computing it. A few columns of zeros before the first column serve as its left neighbour. A state is a complex number
that holds a mantissa and an exponent, so that XLA does not compute twice what both have in common.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled, pack, unpack
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice.frame_map import Index
from jaxctc._mesh import varying_like
from jaxctc._sizes import Size

MARGIN = 8
"""Columns of zeros before the first one; as many as a vector register holds, so that the other columns stay aligned."""


class StateBuffers(NamedTuple):
    """The packed states after each of K steps, margins included; blanks do not have their own frame's emission yet."""

    blank: Complex[Array, "K N 2 V"]
    label: Complex[Array, "K N 2 V"]

    def read(self, name: str, k: Index, shift: int = 0) -> Scaled:
        rows = getattr(self, name)
        size = (1, *rows.shape[1:3], rows.shape[3] - MARGIN)
        return unpack(read(rows, (k, 0, 0, MARGIN + shift), size)[0])

    def write(self, name: str, k: Index, value: Scaled) -> "StateBuffers":
        return self._replace(**{name: write(getattr(self, name), pack(value)[None], (k, 0, 0, MARGIN))})

    def row(self, k: Index) -> "StateBuffers":
        rows = (read(x, (k, 0, 0, 0), (1, *x.shape[1:])) for x in self)
        return lax.optimization_barrier(StateBuffers(*rows))

    def put(self, k: Index, row: "StateBuffers") -> "StateBuffers":
        return StateBuffers(*(put(x, y, (k, 0, 0, 0)) for x, y in zip(self, row, strict=True)))


def empty_states(emissions: ScaledEmissions, count: Size) -> StateBuffers:
    """Return rows in which no state has been reached."""
    sequences, directions, columns = emissions.skip.shape
    shape = (count, sequences, directions, MARGIN + columns)
    zero = varying_like(emissions.blank, pack(scaled.zeros(shape, emissions.blank.mantissa.dtype)))
    return StateBuffers(zero, zero)


def initial_states(emissions: ScaledEmissions) -> StateBuffers:
    """Return one row, with the state before the first frame, in which every path is in blank 0."""
    empty = empty_states(emissions, 1)
    here = lax.broadcasted_iota(jnp.int32, empty.blank.shape, 3) == MARGIN
    return empty._replace(blank=jnp.where(here, 0, empty.blank))


def row_of(x: Float[Array, "N 2 M W"], i: Index) -> Float[Array, "N 2 W"]:
    return read(x, (0, 0, i, 0), (*x.shape[:2], 1, x.shape[3]))[:, :, 0]


def write(buffer: Array, value: Array, where: tuple[Index, ...]) -> Array:
    """Write the value in place. The barrier keeps XLA from computing the value again for each of its readers."""
    return lax.optimization_barrier(put(buffer, value, where))


def put(buffer: Array, value: Array, where: tuple[Index, ...]) -> Array:
    return lax.dynamic_update_slice(buffer, value, _place(where), allow_negative_indices=False)


def read(buffer: Array, where: tuple[Index, ...], size: tuple[Size, ...]) -> Array:
    return lax.dynamic_slice(buffer, _place(where), size, allow_negative_indices=False)


def _place(where: tuple[Index, ...]) -> tuple[np.int32 | Array, ...]:
    """Return the indices in one type, whatever type the loops have given to each."""
    return tuple(
        np.int32(i) if isinstance(i, int) else lax.convert_element_type(jnp.asarray(i), jnp.int32) for i in where
    )


def zero_rows(like: Float[Array, "N 2 ..."], *shape: Size) -> Float[Array, "N 2 ..."]:
    return varying_like(like, jnp.zeros((*like.shape[:2], *shape), like.dtype))


def interleaved(even: Float[Array, "N 2 H ..."], odd: Float[Array, "N 2 H ..."]) -> Float[Array, "N 2 K ..."]:
    sequences, _, half, *rest = even.shape
    return jnp.stack([even, odd], axis=3).reshape(sequences, 2, 2 * half, *rest)
