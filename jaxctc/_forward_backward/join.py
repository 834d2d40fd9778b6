"""Join the two directions: compute the likelihood, and the posterior of the states on both sides of the join."""

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


def join_directions(
    blank: Scaled, label: Scaled, emissions: ScaledEmissions, label_before: Scaled | None = None
) -> Join:
    """Join each direction's last states with those of the other direction, after one more step without an emission.

    The states are those after the last step, (N, 2, W); blanks do not have their own frame's emission yet. Seen from
    either direction, the other one is what comes after it. `label_before` has in each column the label of the column to
    the left; it is computed where it is None.
    """
    blank = blank * Scaled(*(x[:, :, -1:] for x in emissions.blank))
    into_blank = equations.into_blank(blank, scaled.from_left(label) if label_before is None else label_before)
    into_label = equations.into_label(label, equations.entering_label(blank, into_blank, emissions.skip))
    before, after = (_together(*both) for both in ((blank, label), (into_blank, into_label)))
    joint = before * _across(after, emissions.target_lengths)
    whole = scaled.total(joint, axis=(2, 3))
    posterior = flush_negligible(scaled.fraction(scaled.renormalized(joint), whole))
    return Join(Scaled(*(x[:, 0, 0, 0] for x in whole)), posterior[:, :, 0], posterior[:, :, 1])


def _together(blank: Scaled, label: Scaled) -> Scaled:
    """Return blanks and labels in one, (N, 2, 2, W), so that what follows is compiled once for both."""
    return Scaled(*(jnp.stack(both, axis=2) for both in zip(blank, label, strict=True)))


def _across(states: Scaled, target_lengths: Int[Array, " N"]) -> Scaled:
    """Return what the other direction has in the states of this one: its columns from the last down to 0.

    The first axis of size 2 is that of the directions, the second has blanks and labels. The last blank is in column
    `target_lengths`, and the last label in the one before.
    """
    shape, row = states.mantissa.shape, 4 * states.mantissa.shape[3]
    direction, kind, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2, 3))
    there = target_lengths[:, None, None, None] - kind - column

    def picked() -> Scaled:
        # One kind at a time: libtpu 0.0.42 aborts where both are reversed in one array.
        kinds = [Scaled(*(products.picked(x[:, ::-1, k], there[:, :, k]) for x in states)) for k in range(shape[2])]
        return _together(*kinds)

    def gathered() -> Scaled:
        place = (((1 - direction) * 2 + kind) * shape[3] + jnp.maximum(there, 0)).reshape(1, shape[0], row)
        return Scaled(*(indexing.own_values(x.reshape(shape[0], row), place).reshape(shape) for x in states))

    return scaled.where(there >= 0, indexing.on_tpu(picked, gathered), scaled.zeros((), states.mantissa.dtype))
