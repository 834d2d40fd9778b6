"""Turn a computed loss into the one that the contract promises: NaN, infinity, and no rounding below zero."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxctc._sizes import Size
from jaxctc._types import Request


def finished(
    loss: Float[Array, " N"],
    invalid: Bool[Array, " N"],
    infeasible: Bool[Array, " N"],
    request: Request,
    frames: Size,
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
    return nan_where(invalid, jnp.where(infeasible, jnp.inf, loss))


def nan_where(condition: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the array with NaN where the condition holds.

    Under `jax.debug_nans` a constant would itself be reported as a NaN, though nothing takes its value. There NaN is
    the quotient of two zeros, so that it is reported where a result is NaN, and nowhere else.
    """
    if not jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        return jnp.where(condition, jnp.nan, x)
    return jnp.where(condition, 0, x) / jnp.where(condition, 0, 1).astype(x.dtype)
