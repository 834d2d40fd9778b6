"""The losses, their gradient and its derivative as operators that PyTorch's compiler takes for opaque.

Each takes a batch whose shapes are settled: scores (T, N, C), or (N, T, C) with `batch_first`; targets
(N, S) or end to end; lengths (N,). Values are checked here, where they are at hand under every
transform.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

from bridge._dlpack import crossing, integers_to_jax, to_jax, to_torch
from jaxctc._arguments import canonical
from jaxctc._lattice import accumulator, frames_first, row_of_indices
from jaxctc._loss import losses as jax_losses
from jaxctc._types import Options, Problem

Settings: TypeAlias = tuple[int, bool, bool, bool]
"""blank, from_logits, batch_first, normalized: everything about a call that is no tensor."""


def _problem(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
) -> tuple[Problem, Options]:
    labels, frames, counts = (integers_to_jax(x, scores.device) for x in (targets, input_lengths, target_lengths))
    name = "logits" if from_logits else "log_probs"
    try:
        problem, options, _ = canonical(name, to_jax(scores), labels, frames, counts, blank, batch_first, None)
    except ValueError as error:  # PyTorch raises RuntimeError for illegal values
        raise RuntimeError(str(error)) from None
    return problem, options


_losses = jax.jit(jax_losses, static_argnums=0)


def _gradient_of(options: Options, normalized: bool, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """The losses, and the gradient of each with respect to its own scores."""
    value, pull_back = jax.vjp(lambda scores: jax_losses(options, scores, *problem[1:]), problem.scores)
    (gradient,) = pull_back(jnp.ones_like(value))
    if not normalized or options.from_logits:
        return value, gradient
    # PyTorch's own: behind a log-softmax it is the same, for exp(log_probs) is normal to all that it lets through.
    scores = problem.scores
    infinite = jnp.isposinf(value)
    frames = scores.shape[1 if options.batch_first else 0]
    live = problem.input_lengths[None] > row_of_indices(frames).T
    nan = frames_first(live & infinite[None], options)[:, :, None]
    live = frames_first(live, options)[:, :, None]
    probabilities = jnp.exp(scores.astype(accumulator(scores.dtype))).astype(scores.dtype)
    # Whatever the row's own frames, a NaN that says "illegal" must stay.
    gradient = jnp.where(live, probabilities + gradient, gradient)
    return value, jnp.where(nan, jnp.nan, gradient)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses_and_gradient(options: Options, normalized: bool, *problem: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _gradient_of(options, normalized, Problem(*problem))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hessian_product(
    options: Options, normalized: bool, direction: jax.Array, scores: jax.Array, *rest: jax.Array
) -> jax.Array:
    return jax.jvp(lambda x: _gradient_of(options, normalized, Problem(x, *rest))[1], (scores,), (direction,))[1]


@torch.library.custom_op("jaxctc::losses", mutates_args=())
def losses(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
) -> Tensor:
    with crossing(scores):
        problem, options = _problem(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first)
        return to_torch(_losses(options, *problem))


@torch.library.custom_op("jaxctc::losses_and_gradient", mutates_args=())
def losses_and_gradient(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
    normalized: bool,
) -> tuple[Tensor, Tensor]:
    with crossing(scores):
        problem, options = _problem(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first)
        value, gradient = _losses_and_gradient(options, normalized, *problem)
        return to_torch(value), to_torch(gradient)


@torch.library.custom_op("jaxctc::hessian_product", mutates_args=())
def hessian_product(
    direction: Tensor,
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    from_logits: bool,
    batch_first: bool,
    normalized: bool,
) -> Tensor:
    """Each loss's matrix of second derivatives times its own part of `direction`."""
    with crossing(scores):
        problem, options = _problem(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first)
        return to_torch(_hessian_product(options, normalized, to_jax(direction), *problem))


def _fake_losses(scores: Tensor, batch_first: bool) -> Tensor:
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return scores.new_empty((scores.shape[0 if batch_first else 1],), dtype=wide)


@losses.register_fake
def _(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first):  # noqa: ARG001
    return _fake_losses(scores, batch_first)


@losses_and_gradient.register_fake
def _(scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first, normalized):  # noqa: ARG001
    return _fake_losses(scores, batch_first), scores.new_empty(scores.shape)


@hessian_product.register_fake
def _(direction, scores, targets, input_lengths, target_lengths, blank, from_logits, batch_first, normalized):  # noqa: ARG001
    return scores.new_empty(scores.shape)
