"""Compute the losses of a batch, one for each sequence, and their derivatives of every order.

Production computes the losses and their gradient by the bidirectional recursion. The derivative of the gradient, which
few callers need, is that of `_log_space_losses`: the forward recursion in logarithms, which JAX can differentiate any
number of times. ``implementation="reference"`` uses neither: JAX differentiates the reference.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import zero_from_primal
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxctc._forward_backward import occupancy, prepared
from jaxctc._forward_backward.prepared import PreparedBatch
from jaxctc._kernels import dispatch
from jaxctc._lattice import lattices, outcome
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frames_first
from jaxctc._mesh import sharded_like_scores
from jaxctc._own_derivative import differentiated_by
from jaxctc._parallel import frame_blocks
from jaxctc._parallel.batch_chunks import in_chunks
from jaxctc._reference import log_emissions, recursion
from jaxctc._reference import losses as reference
from jaxctc._types import LOG_ZERO, Problem, Request

_CERTAIN = 0.25
"""The probability of all classes but one below which that one is subtracted as what it lacks to one."""


def losses(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    max_input_length: Int[Array, ""] | None = None,
    frame_mask: Bool[Array, "N T"] | None = None,
) -> Float[Array, " N"]:
    """Return minus the log probability of each target; a derivative is computed only if it is asked for.

    No sequence is longer than `max_input_length`, if that is given; frames beyond it cost nothing. `frame_mask` says
    which frames are valid, as many as `input_lengths`; without it they are the first ones of each sequence.
    """
    if request.implementation == "reference":
        scores = lattices.padding_last(scores, frame_mask, request)
        return _reference_losses(request, scores, targets, input_lengths, target_lengths)
    return _losses(request, scores, targets, input_lengths, target_lengths, max_input_length, frame_mask)


def losses_and_gradient(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    max_input_length: Int[Array, ""] | None = None,
) -> tuple[Float[Array, " N"], Float[Array, "A B C"], Bool[Array, "A B C"]]:
    """Return the losses, the derivative of each with respect to its own scores, and where that can be other than 0.

    The derivative has the type that the losses are computed in, float32 or float64.
    """
    rest = targets, input_lengths, target_lengths
    if request.implementation != "reference":
        return _losses_and_gradient(request, scores, *rest, max_input_length)
    wide = scores.astype(accumulation_dtype(scores.dtype))
    value, pull_back = jax.vjp(lambda x: _reference_losses(request, x, *rest, dtype=scores.dtype), wide)
    (gradient,) = pull_back(jnp.ones_like(value))
    return value, gradient, gradient != 0


@sharded_like_scores(lambda sequences, _: sequences)
def _reference_losses(request: Request, *problem: Array, dtype: jnp.dtype | None = None) -> Float[Array, " N"]:
    def chunk(scores: Array, lattice: Lattice) -> Float[Array, " N"]:
        return reference.losses(scores, lattice, request, dtype)

    lattice = lattices.build_lattice(Problem(*problem), request)
    return in_chunks(chunk, request)(problem[0], lattice)


def _losses_and_tangent(request: Request, arguments: tuple[Any, ...], tangent: Array) -> tuple[Array, Array]:
    value, gradient, gradient_mask = _losses_and_gradient(request, *arguments)
    return value, _directional_derivative(gradient, gradient_mask, tangent, request)


@differentiated_by(_losses_and_tangent)
@sharded_like_scores(lambda sequences, _: sequences)
def _losses(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    max_input_length: Int[Array, ""] | None = None,
    frame_mask: Bool[Array, "N T"] | None = None,
) -> Float[Array, " N"]:
    def run(
        request: Request,
        problem: Problem,
        max_input_length: Int[Array, ""] | None,
        frame_mask: Bool[Array, "N T"] | None,
    ) -> Float[Array, " N"]:
        def chunk(scores: Array, lattice: Lattice, prepare: Callable[..., PreparedBatch]) -> Float[Array, " N"]:
            batch = prepare(scores, lattice, request, max_input_length, backward=False)
            likelihood = dispatch.implementation(request).likelihood(batch)
            return prepared.losses_of(likelihood, batch, scores.dtype, request)

        lattice = lattices.build_lattice(problem, request, frame_mask)
        return frame_blocks.over_devices(in_chunks(chunk, request), request, lambda _: P())(problem.scores, lattice)

    problem = Problem(scores, targets, input_lengths, target_lengths)
    return dispatch.choose(run, request, problem, max_input_length, frame_mask, results=_results(problem)[0])


def _gradient_and_tangents(
    request: Request, arguments: tuple[Any, ...], tangent: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Any]]:
    value, gradient, gradient_mask = _losses_and_gradient(request, *arguments)
    scores, *rest, _, frame_mask = arguments

    def derivative(scores: Array) -> Array:
        return jax.grad(lambda scores: _log_space_losses(request, scores, *rest, frame_mask).sum())(scores)

    _, change = jax.jvp(derivative, (scores,), (tangent,))
    # Rows that are NaN stay NaN, and only elements that count can change.
    change = outcome.nan_where(jnp.isnan(gradient), jnp.where(gradient_mask, change.astype(gradient.dtype), 0))
    along = _directional_derivative(gradient, gradient_mask, tangent, request)
    return (value, gradient, gradient_mask), (along, change, zero_from_primal(gradient_mask))


@differentiated_by(_gradient_and_tangents)
@sharded_like_scores(lambda sequences, scores: (sequences, scores, scores))
def _losses_and_gradient(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    max_input_length: Int[Array, ""] | None = None,
    frame_mask: Bool[Array, "N T"] | None = None,
) -> tuple[Float[Array, " N"], Float[Array, "A B C"], Bool[Array, "A B C"]]:
    def run(
        request: Request,
        problem: Problem,
        max_input_length: Int[Array, ""] | None,
        frame_mask: Bool[Array, "N T"] | None,
    ) -> tuple[Array, Array, Array]:
        def chunk(scores: Array, lattice: Lattice, prepare: Callable[..., PreparedBatch]) -> tuple[Array, Array, Array]:
            batch = prepare(scores, lattice, request, max_input_length, backward=True)
            class_scatter = occupancy.class_scatter(lattice, scores.shape[2], gpu=request.layout.gpu)
            passes = dispatch.implementation(request)
            likelihood, posterior = passes.posterior(batch, scatter=class_scatter.to_classes)
            found = occupancy.class_posterior(posterior, class_scatter, batch.to_frames, request)
            rest = None
            if request.from_logits:
                rest = occupancy.all_but_best(posterior, class_scatter, batch.emissions.best, batch.to_frames, request)
            value = prepared.losses_of(likelihood, batch, scores.dtype, request)
            return value, *_gradient(scores, found, rest, value, batch, request)

        lattice = lattices.build_lattice(problem, request, frame_mask)
        results = frame_blocks.over_devices(in_chunks(chunk, request), request, lambda spec: (P(), spec, spec))
        return results(problem.scores, lattice)

    problem = Problem(scores, targets, input_lengths, target_lengths)
    return dispatch.choose(run, request, problem, max_input_length, frame_mask, results=_results(problem))


def _results(problem: Problem) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return the shapes and types of losses, gradient and gradient mask."""
    shape, dtype = problem.scores.shape, accumulation_dtype(problem.scores.dtype)
    return (
        jax.ShapeDtypeStruct(problem.input_lengths.shape, dtype),
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
    )


def _gradient(
    scores: Float[Array, "A B C"],
    posterior: Float[Array, "A B C"],
    all_but_best: Float[Array, "A B"] | None,
    value: Float[Array, " N"],
    batch: PreparedBatch,
    request: Request,
) -> tuple[Float[Array, "A B C"], Bool[Array, "A B C"]]:
    """Return the derivative of each loss with respect to its own scores, and where it can be other than 0."""
    if scores.dtype != posterior.dtype:
        # Otherwise XLA would store what both this and the normalizer convert, all scores in float32.
        scores, value = jax.lax.optimization_barrier((scores, value))
    rows = jnp.stack([jnp.isfinite(value), jnp.isnan(value)])
    # Where an illegal length hides which frames count, all of them must show that the row is invalid.
    frame_mask = frames_first(batch.frame_mask, request) | ~batch.lattice.legal[None]
    finite, nan = (frames_first(frame_mask & row[None], request)[:, :, None] for row in rows)
    wide = scores.astype(posterior.dtype)
    gradient_mask = finite & ~(wide <= LOG_ZERO)
    gradient = -posterior
    if batch.normalizer is not None:
        assert all_but_best is not None
        peak, excess, best, others = batch.normalizer
        # Two probabilities of nearly one are subtracted as what they lack to one, which has more digits.
        certain = jnp.where(all_but_best < _CERTAIN, best, -1)
        certain, missing = jax.lax.optimization_barrier((certain[:, :, None], (all_but_best - others)[:, :, None]))
        gradient = jnp.exp((wide - peak[:, :, None]) - excess[:, :, None]) - posterior
        classes = jnp.arange(wide.shape[2], dtype=best.dtype)[None, None]
        gradient = jnp.where(classes == certain, missing, gradient)
    gradient = jnp.where(gradient_mask, gradient, 0)
    if batch.normalizer is None:
        gradient_mask = gradient_mask & (gradient != 0)
    return outcome.nan_where(nan, gradient), gradient_mask | nan


def _directional_derivative(
    gradient: Float[Array, "A B C"],
    gradient_mask: Bool[Array, "A B C"],
    tangent: Float[Array, "A B C"],
    request: Request,
) -> Float[Array, " N"]:
    """Return the derivative of each sequence's loss along a tangent of the scores."""
    # This is a product and a sum, because a dot has a low default precision on TPU and GPU. `where` comes first,
    # because zero times a tangent that is NaN would be NaN.
    terms = gradient * jnp.where(gradient_mask, tangent.astype(gradient.dtype), 0)
    return frames_first(terms.sum(axis=2), request).sum(axis=0)


@sharded_like_scores(lambda sequences, _: sequences)
def _log_space_losses(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    frame_mask: Bool[Array, "N T"] | None = None,
) -> Float[Array, " N"]:
    """Return the losses by the forward recursion in logarithms; they are right only where they are finite."""

    def chunk(scores: Array, lattice: Lattice) -> Float[Array, " N"]:
        emitted = log_emissions.build_emissions(log_emissions.log_probs(scores, lattice, request), lattice, request)
        log_likelihood = recursion.log_likelihood(emitted.states, log_emissions.topology_of(lattice))
        return -(log_likelihood + emitted.peak.sum(axis=0))

    scores = lattices.padding_last(scores, frame_mask, request)
    lattice = lattices.build_lattice(Problem(scores, targets, input_lengths, target_lengths), request)
    # Without a checkpoint a derivative would store what it needs of all chunks at once; with it that is computed again.
    each = chunk if request.sequences_at_once is None else jax.checkpoint(chunk)
    return in_chunks(each, request)(scores, lattice)
