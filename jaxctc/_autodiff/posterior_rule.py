"""Compute the posterior of every state of the lattice, and of every class, with derivatives of every order.

Production computes the values by the bidirectional recursion, as it does the gradient of the losses. The derivatives
are those of `_log_space_posteriors`, which differentiates the log likelihood of the forward recursion in logarithms.
``implementation="reference"`` uses `_log_space_posteriors` for the values too.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxctc._autodiff.loss_rule import losses
from jaxctc._forward_backward import occupancy, prepared
from jaxctc._forward_backward.bidirectional import Posterior
from jaxctc._kernels import dispatch
from jaxctc._lattice import indexing, lattices, outcome, products
from jaxctc._lattice.frame_map import steps_of_frames
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frames_first, frames_of, row_of_indices
from jaxctc._mesh import sharded_like_scores
from jaxctc._own_derivative import differentiated_by
from jaxctc._reference import log_emissions, recursion
from jaxctc._reference.recursion import LogStates
from jaxctc._sizes import Size, larger
from jaxctc._types import LOG_ZERO, Problem, Request


def posteriors(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
) -> tuple[Float[Array, "A B states"], Float[Array, "A B C"]]:
    """Return the posteriors of the 2 S + 1 states, blank and label in turn, and of the classes.

    They are 0 where a target has no path, and NaN where its loss is.
    """
    problem = Problem(scores, targets, input_lengths, target_lengths)
    if request.implementation == "reference":
        lattice = lattices.build_lattice(problem, request)
        return _masked(_log_space_posteriors(request, problem), losses(request, *problem), lattice, request)
    return _posteriors(request, *problem)


def _posteriors_and_tangents(
    request: Request, arguments: tuple[Array, ...], tangent: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    value = _posteriors(request, *arguments)
    scores, *rest = arguments

    def by_recursion(scores: Array) -> tuple[Array, Array]:
        return _log_space_posteriors(request, Problem(scores, *rest))

    _, change = jax.jvp(by_recursion, (scores,), (tangent,))
    # Rows that are NaN stay NaN, and only posteriors other than 0 can change.
    return value, tuple(
        outcome.nan_where(jnp.isnan(x), jnp.where(x == 0, 0, dx)) for x, dx in zip(value, change, strict=True)
    )


@differentiated_by(_posteriors_and_tangents)
def _posteriors(
    request: Request,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
) -> tuple[Float[Array, "A B states"], Float[Array, "A B C"]]:
    def run(request: Request, problem: Problem) -> tuple[Array, Array]:
        scores = problem.scores
        frames = frames_of(scores, request)
        lattice = lattices.build_lattice(problem, request)
        batch = prepared.prepare(scores, lattice, request, backward=True)
        passes = dispatch.implementation(request)
        class_scatter = occupancy.class_scatter(lattice, scores.shape[2], gpu=request.layout.gpu)
        likelihood, posterior = passes.posterior(batch, every_blank=True)
        to_classes = posterior._replace(label=class_scatter.to_classes(posterior.label))
        if batch.emissions.scores is None:  # a caller that uses the classes alone needs no memory for all states
            likelihood, to_classes = passes.posterior(batch, scatter=class_scatter.to_classes)
        value = prepared.losses_of(likelihood, batch, scores.dtype, request)

        classes = occupancy.class_posterior(to_classes, class_scatter, batch.to_frames, request)
        states = _by_frame(posterior, lattice, frames, problem.targets.shape[1], request)
        return _masked((states, classes), value, lattice, request)

    problem = Problem(scores, targets, input_lengths, target_lengths)
    dtype, states = accumulation_dtype(scores.dtype), 2 * targets.shape[1] + 1
    results = jax.ShapeDtypeStruct((*scores.shape[:2], states), dtype), jax.ShapeDtypeStruct(scores.shape, dtype)
    return dispatch.choose(run, request, problem, every_blank=True, results=results)


def _masked(
    found: tuple[Float[Array, "A B states"], Float[Array, "A B C"]],
    value: Float[Array, " N"],
    lattice: Lattice,
    request: Request,
) -> tuple[Float[Array, "A B states"], Float[Array, "A B C"]]:
    """Return the posteriors, with 0 for sequences whose loss is infinite, and NaN for those whose loss is NaN."""
    frames = found[1].shape[1 if request.batch_first else 0]
    mask = lattices.frame_mask(lattice.input_lengths, frames) | ~lattice.legal[None]
    finite, nan = (
        frames_first(mask & row[None], request)[:, :, None] for row in (jnp.isfinite(value), jnp.isnan(value))
    )
    states, classes = (outcome.nan_where(nan, jnp.where(finite, x, 0)) for x in found)
    return states, classes


def _log_space_posteriors(
    request: Request, problem: Problem
) -> tuple[Float[Array, "A B states"], Float[Array, "A B C"]]:
    lattice = lattices.build_lattice(problem, request)

    def log_likelihood(each: LogStates, log_probs: Float[Array, "T N C"]) -> Float[Array, ""]:
        emitted = log_emissions.build_emissions(log_probs, lattice, request).states
        emitted = LogStates(*(x + y for x, y in zip(emitted, each, strict=True)))
        return recursion.log_likelihood(emitted, log_emissions.topology_of(lattice)).sum()

    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    nothing = jnp.zeros((*log_probs.shape[:2], lattice.labels.shape[1]), log_probs.dtype)
    each, classes = jax.grad(log_likelihood, argnums=(0, 1))(LogStates(nothing, nothing), log_probs)
    frame_mask = lattices.frame_mask(lattice.input_lengths, log_probs.shape[0])[:, :, None]
    blank, label = (jnp.where(frame_mask, x, 0) for x in each)
    states = _in_turn(blank, label, problem.targets.shape[1])
    return frames_first(states, request), frames_first(classes, request)


def _by_frame(
    posterior: Posterior, lattice: Lattice, frames: Size, longest: Size, request: Request
) -> Float[Array, "A B states"]:
    """Return the posterior of the states in the order of the frames and of the target's labels."""
    columns = lattice.labels.shape[1]
    each_label, each_blank = posterior.label, posterior.each_blank
    assert each_blank is not None

    @functools.partial(jax.vmap, out_axes=0 if request.batch_first else 1)
    def gather(label: Array, blank: Array, direction: Array, step: Array, length: Array) -> Array:
        def row(x: Array, last: Array) -> Array:
            column = row_of_indices(columns)
            turned = jnp.where(direction[:, None] == 1, last - column, column)
            found = x.at[direction[:, None], step[:, None], jnp.clip(turned, 0, columns - 1)]
            return jnp.where(column <= last, found.get(mode="promise_in_bounds"), 0)

        return _in_turn(row(blank, length), row(label, length - 1), longest)

    def multiplied() -> Array:
        def found(x: Array, length: Array) -> Array:
            ahead, back = x[:, 0], x[:, 1]
            # Each column up to the last one is selected once; columns beyond it have no 1 in the matrix.
            turned = products.one_hot(length[:, None] - 1 - row_of_indices(columns), columns)
            back = products.product("nmw,nvw->nmv", back, turned)
            inside = row_of_indices(columns)[None] < length[:, None, None]
            return products.by_frame(jnp.where(inside[:, None], jnp.stack([ahead, back], axis=1), 0), lattice, frames)

        blank, label = found(each_blank, lattice.target_lengths + 1), found(each_label, lattice.target_lengths)
        states = _in_turn(blank, label, longest)
        return states if request.batch_first else jnp.swapaxes(states, 0, 1)

    def gathered() -> Array:
        steps = steps_of_frames(lattice, frames, posterior.label.shape[2])
        return gather(each_label, each_blank, *steps, lattice.target_lengths)

    if posterior.label.size == 0:
        return frames_first(
            jnp.zeros((frames, lattice.labels.shape[0], 2 * longest + 1), posterior.label.dtype), request
        )
    return indexing.on_tpu(multiplied, gathered)


def _in_turn(blank: Float[Array, "... W"], label: Float[Array, "... W"], longest: Size) -> Float[Array, "... states"]:
    """Return blank 0, label 0, blank 1 and so on, 2 S + 1 states in all; those that no input can reach hold 0."""
    states = jnp.stack([blank, label], axis=-1).reshape(*blank.shape[:-1], 2 * blank.shape[-1])
    missing = larger(2 * longest + 1 - states.shape[-1], 0)
    states = jnp.pad(states, [(0, 0)] * (states.ndim - 1) + [(0, missing)])
    return states[..., : 2 * longest + 1]


@sharded_like_scores(lambda sequences, _: sequences)
def path_entropy(request: Request, problem: Problem) -> Float[Array, " N"]:
    """Return the entropy, in nats, of the distribution over each target's paths: log Z minus a path's mean score.

    The mean is a sum in the expectation semiring, which is what forward differentiation computes: the
    derivative of the log likelihood in the direction of the emissions themselves.
    """
    lattice = lattices.build_lattice(problem, request)
    topology = log_emissions.topology_of(lattice)
    emitted = log_emissions.build_emissions(
        log_emissions.log_probs(problem.scores, lattice, request), lattice, request
    ).states
    direction = LogStates(*(jnp.where(x <= LOG_ZERO / 2, 0, x) for x in emitted))
    value, mean = jax.jvp(lambda x: recursion.log_likelihood(x, topology), (emitted,), (direction,))
    # An entropy is below 0 only by rounding; where a target has no path it is 0.
    return jnp.where(value < LOG_ZERO / 2, 0, jnp.maximum(value - mean, 0))
