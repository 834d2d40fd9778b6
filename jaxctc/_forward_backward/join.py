"""Join the two directions: compute the likelihood, and the posterior of the states on both sides of the join."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact, Int

from jaxctc import _platforms
from jaxctc._forward_backward import equations, scaled
from jaxctc._forward_backward.buffers import MARGIN, write, zeros
from jaxctc._forward_backward.rows import by_direction, emissions_in_rows, in_rows
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice import indexing, products


def flush_negligible(probability: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(probability <= scaled.negligible(probability.dtype), 0, probability)


class Join(NamedTuple):
    """The likelihood and the posterior that follow from joining the two directions."""

    likelihood: Scaled
    """The likelihood of each sequence, (N,)."""
    blank: Float[Array, "*rows W"]
    label: Float[Array, "*rows W"]
    """The posterior after the last step of each direction, in its own order of labels."""


def join_directions(
    blank: Scaled, label: Scaled, emissions: ScaledEmissions, label_before: Scaled | None = None
) -> Join:
    """Join each direction's last states with those of the other direction, after one more step without an emission.

    The states are those after the last step, in rows as the emissions are, or (N, 2, W) as they are; blanks do not have
    their own frame's emission yet. Seen from either direction, the other one is what comes after it. `label_before` has
    in each column the label of the column to the left; it is computed where it is None.
    """
    if emissions.skip.ndim == 3:
        blank, label = (Scaled(*map(in_rows, x)) for x in (blank, label))
        label_before = None if label_before is None else Scaled(*map(in_rows, label_before))
        join = join_directions(blank, label, emissions_in_rows(emissions), label_before)
        return join._replace(blank=by_direction(join.blank), label=by_direction(join.label))

    blank = blank * Scaled(*(x[:, -1:] for x in emissions.blank))
    into_blank = equations.into_blank(blank, scaled.from_left(label) if label_before is None else label_before)
    into_label = equations.into_label(label, equations.entering_label(blank, into_blank, emissions.skip))
    before, after = (_together(*both) for both in ((blank, label), (into_blank, into_label)))
    joint = lax.optimization_barrier(before * _across(after, emissions.target_lengths))
    rows, kinds, columns = joint.mantissa.shape
    joint = _computed_once(Scaled(*(x.reshape(rows, kinds * columns) for x in joint)))
    whole = _computed_once(scaled.total(joint))
    found = flush_negligible(scaled.fraction(scaled.renormalized(joint), whole))
    posterior = _platforms.form(lambda: found, cpu=lambda: _in_a_buffer(found))
    likelihood = Scaled(*(by_direction(x)[:, 0, 0] for x in whole))
    return Join(likelihood, posterior[:, :columns], posterior[:, columns:])


def _computed_once(x: Scaled) -> Scaled:
    """Return the number itself, of which XLA on a CPU computes both parts at once, and once for all its readers."""
    return _platforms.form(lambda: x, cpu=lambda: scaled.unpack(_in_a_buffer(scaled.pack(x))))


def _in_a_buffer(x: Inexact[Array, "R X"]) -> Inexact[Array, "R X"]:
    """Return the array itself, written into a buffer.

    Without it, XLA would compute the array again for each array that is computed from it, and LLVM would compile each
    of these computations.
    """
    return write(zeros(x, x.shape[1] + MARGIN), x, (0, MARGIN))[:, MARGIN:]


def _together(blank: Scaled, label: Scaled) -> Scaled:
    """Return blanks and labels in one, (R, 2, W), so that what follows is compiled once for both."""
    return Scaled(*(jnp.stack(both, axis=1) for both in zip(blank, label, strict=True)))


def _across(states: Scaled, target_lengths: Int[Array, " N"]) -> Scaled:
    """Return what the other direction has in the states of this one: its columns from the last down to 0.

    Both have what `_together` returns. The last blank is in column `target_lengths`, and the last label in the one
    before.
    """
    shape = states.mantissa.shape
    sequences, size = shape[0] // 2, 4 * shape[2]
    # Where the sequences are sharded, a row's number depends on the device, which one kernel cannot ask for.
    whole_shape = sequences, 2, *shape[1:]
    direction, kind, column = (lax.broadcasted_iota(jnp.int32, whole_shape, axis) for axis in (1, 2, 3))
    there = in_rows(target_lengths[:, None, None, None] - kind - column)

    def picked() -> Scaled:
        # One kind at a time: libtpu 0.0.42 aborts where both are reversed in one array.
        def one_kind(k: int) -> Scaled:
            turned = (by_direction(x)[:, ::-1, k] for x in states)
            return Scaled(*(in_rows(products.picked(x, by_direction(there)[:, :, k])) for x in turned))

        return _together(one_kind(0), one_kind(1))

    def gathered() -> Scaled:
        first = in_rows(((1 - direction) * 2 + kind) * shape[2])
        place = (first + jnp.maximum(there, 0)).reshape(1, sequences, size)
        return Scaled(*(indexing.own_values(x.reshape(sequences, size), place).reshape(shape) for x in states))

    return scaled.where(there >= 0, indexing.on_tpu(picked, gathered), scaled.zeros((), states.mantissa.dtype))
