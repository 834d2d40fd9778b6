"""From one loss a sequence to what the caller asked for."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxctc._types import Reduction


def reduce(
    losses: Float[Array, " N"], target_lengths: Integer[Array, " N"], reduction: Reduction, zero_infinity: bool
) -> Float[Array, "..."]:
    """(N,) losses to (N,) or ()."""
    if zero_infinity:
        losses = jnp.where(jnp.isposinf(losses), 0, losses)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "batchmean":
        return losses.mean()
    counts = jnp.maximum(target_lengths, 0).astype(losses.dtype)
    if reduction == "mean_volume":
        return losses.sum() / jnp.maximum(counts.sum(), 1)
    return (losses / jnp.maximum(counts, 1)).mean()
