"""Join the two directions: compute the likelihood, and the posterior of the states on both sides of the join."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice import indexing, products


def flush_negligible(probability: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(probability <= scaled.negligible(probability.dtype), 0, probability)


class Join(NamedTuple):
    """The likelihood and the posterior that follow from joining the two directions."""

    likelihood: Scaled
    """The likelihood of each sequence, (N,)."""
    blank: Float[Array, "N 2 W"]
    label: Float[Array, "N 2 W"]
    """The posterior after the last step of each direction, in its own order of labels."""


def join_directions(blank: Scaled, label: Scaled, emissions: ScaledEmissions) -> Join:
    """Join each direction's last states with those of the other direction, after one more step without an emission.

    The states are those after the last step, (N, 2, W); blanks do not have their own frame's emission yet. Seen from
    either direction, the other one is what comes after it.
    """
    last = emissions.target_lengths

    blank = blank * Scaled(*(x[:, :, -1:] for x in emissions.blank))
    into_blank = equations.into_blank(blank, scaled.from_left(label))
    into_label = equations.into_label(label, equations.entering_label(blank, into_blank, emissions.skip))
    joint = blank * _across(into_blank, last), label * _across(into_label, last - 1)
    whole = scaled.total(*joint, axis=2)
    at_blank, at_label = (flush_negligible(scaled.fraction(scaled.renormalized(x), whole)) for x in joint)
    return Join(Scaled(*(x[:, 0, 0] for x in whole)), at_blank, at_label)


def _across(a: Scaled, last: Int[Array, " N"]) -> Scaled:
    """Return what the other direction has in the states of this one: its columns from `last` down to 0."""
    sequences, _, columns = a.mantissa.shape
    there = last[:, None, None] - lax.broadcasted_iota(jnp.int32, a.mantissa.shape, 2)

    def picked(x: Array) -> Array:
        return products.picked(x[:, ::-1], there)

    def gathered(x: Array) -> Array:
        other = 1 - lax.broadcasted_iota(jnp.int32, x.shape, 1)
        place = (other * columns + jnp.maximum(there, 0)).reshape(1, sequences, 2 * columns)
        return indexing.own_values(x.reshape(sequences, 2 * columns), place).reshape(x.shape)

    found = Scaled(*(indexing.on_tpu(functools.partial(picked, x), functools.partial(gathered, x)) for x in a))
    return scaled.where(there >= 0, found, scaled.zeros((), a.mantissa.dtype))
