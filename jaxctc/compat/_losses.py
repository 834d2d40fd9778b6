"""Compile the losses of a batch of logits."""

import functools

import jax
from jaxtyping import Array, Float

from jaxctc._autodiff.loss_rule import losses
from jaxctc._types import Problem, Request


@functools.partial(jax.jit, static_argnames="request")
def compiled_losses(problem: Problem, request: Request) -> Float[Array, " N"]:
    """Return one loss a sequence."""
    return losses(request, *problem)
