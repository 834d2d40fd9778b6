r"""The CTC recursion as Graves et al. (2006) have it: what every other implementation is tested against.

A target of L labels becomes 2 L + 1 states, blank and label in turn, from the first blank to the last. With
:math:`\alpha_t(s)` the log probability of all beginnings of paths that are in state s at frame t,

.. math::

    \alpha_t(s) = \log p_t(\text{class of } s) + \begin{cases}
        \alpha_{t-1}(s) \oplus \alpha_{t-1}(s-1) \oplus \alpha_{t-1}(s-2) & \text{if the blank may be skipped} \\
        \alpha_{t-1}(s) \oplus \alpha_{t-1}(s-1) & \text{else}
    \end{cases}

where :math:`\oplus` adds probabilities that are kept as logarithms. The blank between two labels may be skipped if
they differ. Equations 6 to 8 of Graves, Fernandez, Gomez and Schmidhuber, ICML 2006.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxctc._mesh import varying_like
from jaxctc._reference.log_space import logaddexp
from jaxctc._types import LOG_ZERO


def ctc_loss(
    log_probs: Float[Array, "T C"],
    targets: Int[Array, " S"],
    input_length: Int[Array, ""],
    target_length: Int[Array, ""],
    blank: int,
) -> Float[Array, ""]:
    """Return minus the log probability of one target; at least ``-LOG_ZERO / 2`` if no path spells it."""
    states = jnp.full(2 * targets.shape[0] + 1, blank, targets.dtype).at[1::2].set(targets)
    may_skip = (states != blank) & (states != jnp.roll(states, 2))
    emissions = jnp.maximum(log_probs, LOG_ZERO)[:, states]

    def shifted(alpha: Float[Array, " states"], by: int) -> Float[Array, " states"]:
        return jnp.concatenate([jnp.full(by, LOG_ZERO, alpha.dtype), alpha])[: alpha.shape[0]]

    def frame(alpha, now):
        t, emission = now
        stay_or_step = logaddexp(alpha, shifted(alpha, 1))
        skip = jnp.where(may_skip, shifted(alpha, 2), LOG_ZERO)
        after = logaddexp(stay_or_step, skip) + emission
        return jnp.where(t < input_length, after, alpha), None

    # Before the first frame every path is in the first blank.
    initial = jnp.full(states.shape, LOG_ZERO, log_probs.dtype).at[0].set(0)
    initial = varying_like(emissions, initial)  # from device to device, within jax.shard_map
    alpha, _ = lax.scan(frame, initial, (jnp.arange(log_probs.shape[0], dtype=jnp.int32), emissions))
    last_blank, last_label = alpha[2 * target_length], shifted(alpha, 1)[2 * target_length]
    return -logaddexp(last_blank, last_label)


ctc_losses = jax.vmap(ctc_loss, in_axes=(1, 0, 0, 0, None))
"""The losses of a batch: log_probs (T, N, C), targets (N, S), lengths (N,) and (N,)."""
