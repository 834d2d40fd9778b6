r"""Define one step of the forward pass, and of the backward pass, for both the loops and the kernels.

Column s of the lattice holds two states, blank s and label s, which lies between blank s and blank s + 1. The forward
variables alpha are :math:`b` for blanks, without the emission of their own frame, and :math:`l` for labels. With
:math:`e` the emissions, relative to each frame's best, one step of the forward pass is

.. math::

    b'(s) &= b(s)\, e(\text{blank}) + l(s - 1) \\
    l'(s) &= \big(l(s) + (b'(s) \text{ if label } s \ne \text{label } s - 1 \text{, else }
        b(s)\, e(\text{blank}))\big)\, e(\text{label } s)

The backward pass needs no emissions: given the posterior (occupancy) of the states after a step, each state's is
divided among the states that it came from, in proportion to their forward variables (the transition posteriors).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled


def into_blank(prev_blank: Scaled, label_before: Scaled) -> Scaled:
    """Return blank s after a step, from itself and from label s - 1. `prev_blank` has its own frame's emission."""
    return prev_blank + label_before


def entering_label(prev_blank: Scaled, blank: Scaled, may_skip: Bool[Array, "..."]) -> Scaled:
    """Return what enters label s: all of blank s after the step, and so label s - 1 too, where it may be skipped."""
    return scaled.where(may_skip, blank, prev_blank)


def into_label(label: Scaled, entering: Scaled) -> Scaled:
    """Return label s after a step but for its emission: what stays in it, and what enters it."""
    return label + entering


def back_into_blank(
    blank: Float[Array, "..."], entered: Float[Array, "..."], may_skip: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """Return the posterior of all that came into blank s in a step: what is there, and what went on to label s."""
    return blank + jnp.where(may_skip, entered, 0)


def back_in_blank(
    staying: Float[Array, "..."], entered: Float[Array, "..."], may_skip: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """Return the posterior of blank s before a step: what stayed in it, and what entered label s from it alone."""
    return staying + jnp.where(may_skip, 0, entered)
