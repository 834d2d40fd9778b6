"""Join the two directions: compute the likelihood, and the posterior of the states on both sides of the join."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxctc._forward_backward import scaled
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
    """Join the last states of the forward direction, after one more step without an emission, with the backward ones.

    The states are those after the last step, (N, 2, W); blanks do not have their own frame's emission yet.
    """
    columns = emissions.skip.shape[2]
    length = emissions.target_lengths[:, None]
    column = lax.broadcasted_iota(jnp.int32, (1, columns), 1)

    def direction(a: Scaled, d: int) -> Scaled:
        return Scaled(*(x[:, d] for x in a))

    def reversed_columns(a: Any, last: Array) -> Any:
        """Return the columns of one array, or of each of two, in reverse order, from column `last` to column 0."""
        there = jnp.maximum(last - column, 0)
        return indexing.on_tpu(
            lambda: jax.tree.map(lambda x: products.picked(x, last - column), a),
            lambda: jax.tree.map(lambda x: jnp.take_along_axis(x, there, axis=1), a),
        )

    def reversed_or_zero(a: Array, last: Array) -> Array:
        return jnp.where(column <= last, reversed_columns(a, last), 0)

    def reversed_scaled(a: Scaled, last: Array) -> Scaled:
        zero = scaled.zeros(a.mantissa.shape, a.mantissa.dtype)
        return scaled.where(column <= last, reversed_columns(a, last), zero)

    def from_left(a: Scaled) -> Scaled:
        zero = scaled.zeros((a.mantissa.shape[0], 1), a.mantissa.dtype)
        return Scaled(*(jnp.concatenate([x, y[:, :-1]], axis=1) for x, y in zip(zero, a, strict=True)))

    blank = blank * Scaled(*(x[:, :, -1:] for x in emissions.blank))
    skip = emissions.skip[:, 0]
    prev_blank, prev_label = direction(blank, 0), direction(label, 0)
    into_blank = prev_blank + from_left(prev_label)
    entering = scaled.where(skip, into_blank, prev_blank)
    into_label = prev_label + entering

    joint_blank = into_blank * reversed_scaled(direction(blank, 1), length)
    joint_label = into_label * reversed_scaled(direction(label, 1), length - 1)
    both = Scaled(*(jnp.concatenate(x, axis=1) for x in zip(joint_blank, joint_label, strict=True)))
    whole = scaled.total(both, axis=(1,))

    at_blank, at_label = (
        jnp.where(column <= last, flush_negligible(scaled.fraction(scaled.renormalized(x), whole)), 0)
        for x, last in ((joint_blank, length), (joint_label, length - 1))
    )
    self_loop, entered = scaled.split(at_label, at_label * scaled.smaller_fraction(prev_label, entering))
    blank_mass = at_blank + jnp.where(skip, entered, 0)
    staying, leaving = scaled.split(blank_mass, blank_mass * scaled.smaller_fraction(prev_blank, from_left(prev_label)))
    arriving = jnp.pad(leaving, ((0, 0), (0, 1)))[:, 1:]
    return Join(
        Scaled(whole.mantissa[:, 0], whole.exponent[:, 0]),
        jnp.stack(
            [flush_negligible(staying + jnp.where(skip, 0, entered)), reversed_or_zero(at_blank, length)], axis=1
        ),
        jnp.stack([flush_negligible(self_loop + arriving), reversed_or_zero(at_label, length - 1)], axis=1),
    )
