"""Turn a computed loss into the one that the contract promises: NaN, infinity, and no rounding below zero."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._types import Request


def finished(
    loss: Float[Array, " N"],
    invalid: Bool[Array, " N"],
    infeasible: Bool[Array, " N"],
    request: Request,
    frames: int,
    dtype: jnp.dtype,
) -> Float[Array, " N"]:
    """Return NaN for invalid rows, +inf for infeasible ones, and else the loss without what rounding took below 0.

    `frames` and `dtype` are those of the caller's scores. Of logits a loss is never negative. Rows of log probabilities
    that are normalized in the caller's precision may sum to a little more than one, so that the loss may come out below
    0 by `frames` times that precision; what is further below is the true loss of scores that are no distribution.
    """
    if request.from_logits:
        loss = jnp.where(loss <= 0, 0, loss)
    else:
        slack = frames * float(jnp.finfo(dtype).eps)
        loss = jnp.where((loss <= 0) & (loss >= -slack), 0, loss)
    return jnp.where(invalid, jnp.nan, jnp.where(infeasible, jnp.inf, loss))
