"""Evaluate a loss function on a batch in canonical form, and reduce its losses to what the caller asked for."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxctc._inputs import checks
from jaxctc._types import Problem, Reduction, Request

Losses: TypeAlias = Callable[..., Float[Array, " N"]]
"""A function of the request, the problem and numbers of its own, which returns one loss a sequence."""


def reduced(
    function: Losses,
    parameters: tuple[Array, ...],
    batch: tuple[Problem, Request, bool],
    reduction: Reduction,
    zero_infinity: bool,
) -> Float[Array, "..."]:
    """Return the reduced losses of a batch as `canonical_batch` returns it; () for one sequence."""
    checks.reduction(reduction)
    zero_infinity = checks.flag("zero_infinity", zero_infinity)
    problem, request, batched = batch
    loss = _reduced(function, parameters, problem, request, reduction, zero_infinity)
    return loss if batched else loss.reshape(())


@functools.partial(jax.jit, static_argnames=("function", "request", "reduction", "zero_infinity"))
def _reduced(
    function: Losses,
    parameters: tuple[Array, ...],
    problem: Problem,
    request: Request,
    reduction: Reduction,
    zero_infinity: bool,
) -> Float[Array, "..."]:
    return reduce(function(request, problem, *parameters), problem.target_lengths, reduction, zero_infinity)


def reduce(
    losses: Float[Array, " N"], target_lengths: Integer[Array, " N"], reduction: Reduction, zero_infinity: bool
) -> Float[Array, "..."]:
    """Reduce (N,) losses to (N,) or ()."""
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
