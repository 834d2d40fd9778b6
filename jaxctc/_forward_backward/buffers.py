"""Store the states of the recursion in buffers that XLA updates in place on a CPU.

Each step updates its buffers in place. Even and odd steps have separate buffers: XLA would copy a buffer that is read
and written in the same step, and it would give a result that has no buffer to several threads, which takes longer than
computing it. A few columns of zeros before the first column serve as its left neighbour. A state is a complex number
that holds a mantissa and an exponent, so that XLA does not compute twice what both have in common.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float, Inexact

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled, pack, unpack
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._mesh import varying_like
from jaxctc._sizes import Index, Size
from jaxctc._slices import put, read

MARGIN = 8
"""Columns of zeros before the first one; as many as a vector register holds, so that the other columns stay aligned."""


class StateBuffers(NamedTuple):
    """The packed states after each of K steps, margins included; blanks do not have their own frame's emission yet."""

    blank: Complex[Array, "K *rows V"]
    label: Complex[Array, "K *rows V"]

    def read(self, name: str, k: Index, shift: int = 0) -> Scaled:
        states = getattr(self, name)
        _, *rows, width = states.shape
        return unpack(read(states, (k, *_zeros(rows), MARGIN + shift), (1, *rows, width - MARGIN))[0])

    def write(self, name: str, k: Index, value: Scaled) -> "StateBuffers":
        where = k, *_zeros(value.mantissa.shape[:-1]), MARGIN
        return self._replace(**{name: write(getattr(self, name), pack(value)[None], where)})

    def at(self, k: Index) -> "StateBuffers":
        """Return the states after one step."""
        states = (read(x, (k, *_zeros(x.shape[1:])), (1, *x.shape[1:])) for x in self)
        return lax.optimization_barrier(StateBuffers(*states))

    def put(self, k: Index, states: "StateBuffers") -> "StateBuffers":
        return StateBuffers(*(put(x, y, (k, *_zeros(x.shape[1:]))) for x, y in zip(self, states, strict=True)))


def empty_states(emissions: ScaledEmissions, count: Size) -> StateBuffers:
    """Return buffers in which no state has been reached."""
    *rows, columns = emissions.skip.shape
    shape = (count, *rows, MARGIN + columns)
    zero = varying_like(emissions.blank, pack(scaled.zeros(shape, emissions.blank.mantissa.dtype)))
    return StateBuffers(zero, zero)


def initial_states(emissions: ScaledEmissions) -> StateBuffers:
    """Return the states before the first frame, in which every path is in blank 0."""
    empty = empty_states(emissions, 1)
    here = lax.broadcasted_iota(jnp.int32, empty.blank.shape, empty.blank.ndim - 1) == MARGIN
    return empty._replace(blank=jnp.where(here, 0, empty.blank))


def of_step(x: Float[Array, "*rows M W"], i: Index) -> Float[Array, "*rows W"]:
    *rows, _, columns = x.shape
    return jnp.squeeze(read(x, (*_zeros(rows), i, 0), (*rows, 1, columns)), -2)


def put_step(x: Float[Array, "*rows M W"], i: Index, value: Float[Array, "*rows W"]) -> Float[Array, "*rows M W"]:
    """Write the value in the place of step i (see `write`)."""
    return write(x, value[..., None, :], (*_zeros(value.shape[:-1]), i, 0))


def write(buffer: Array, value: Array, where: tuple[Index, ...]) -> Array:
    """Write the value in place. The barrier keeps XLA from computing the value again for each of its readers."""
    return lax.optimization_barrier(put(buffer, value, where))


def _zeros(axes: Sequence[Size]) -> tuple[int, ...]:
    return (0,) * len(axes)


def zeros(like: Inexact[Array, "*rows W"], *shape: Size) -> Inexact[Array, "..."]:
    """Return zeros of this shape for each row."""
    return varying_like(like, jnp.zeros((*like.shape[:-1], *shape), like.dtype))
