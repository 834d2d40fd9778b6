"""Compute the losses that `jaxctc.variants` documents, one a sequence.

Each function takes a request, a problem and the loss's own parameters as arrays of the accumulation dtype. The first
group changes or extends the value of `loss_rule.losses`, and takes its implementations and its derivatives. The second
group has paths of its own: it goes through the plain recursion, which JAX differentiates.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxctc._autodiff import loss_rule, posterior_rule
from jaxctc._kernels import dispatch
from jaxctc._lattice import lattices, outcome
from jaxctc._lattice.lattices import Lattice, accumulation_dtype, frames_first, frames_of, row_of_indices
from jaxctc._mesh import sharded_like_scores
from jaxctc._reference import log_emissions, recursion
from jaxctc._reference.log_emissions import Emissions
from jaxctc._reference.log_space import logaddexp
from jaxctc._reference.recursion import LogStates, Topology
from jaxctc._types import LOG_ZERO, ArrayLike, Problem, Request

Losses: TypeAlias = Callable[..., Float[Array, " N"]]
"""A function of a request, a problem and parameters of its own that returns one loss a sequence."""


@functools.partial(jax.jit, static_argnames="request")
def label_priors(
    scores: Float[Array, "A B C"], input_lengths: Integer[Array, " N"], request: Request
) -> Float[Array, " C"]:
    """Return the logarithm of each class's mean probability over all frames, without a derivative."""
    mask = _frame_mask(input_lengths, scores, request)[:, :, None]
    scores = jax.lax.stop_gradient(scores.astype(accumulation_dtype(scores.dtype)))
    probabilities = jnp.where(mask, jnp.exp(scores), 0).sum(axis=(0, 1))
    return jnp.log(probabilities) - jnp.log(mask.sum(dtype=jnp.int32).astype(scores.dtype))


def over_priors(
    scores: Float[Array, "... C"], log_priors: Float[Array, " C"], scale: ArrayLike
) -> Float[Array, "... C"]:
    """Return the log probabilities less the log priors times `scale`; priors of -inf change nothing."""
    priors = jax.lax.stop_gradient(log_priors)
    priors = jnp.where(jnp.isneginf(priors), 0, priors).astype(accumulation_dtype(scores.dtype))
    return scores.astype(priors.dtype) - scale * jnp.broadcast_to(priors, scores.shape)


# Functions of the loss


def plain(request: Request, problem: Problem) -> Float[Array, " N"]:
    """Return the CTC losses."""
    return loss_rule.losses(request, *problem)


def entropy(request: Request, problem: Problem, weight: Array) -> Float[Array, " N"]:
    """Return the CTC losses less the weighted entropy of the paths."""
    return loss_rule.losses(request, *problem) - weight * posterior_rule.path_entropy(request, problem)


def focal(request: Request, problem: Problem, gamma: Array, alpha: Array) -> Float[Array, " N"]:
    """Return the CTC losses, of which small ones are made smaller."""
    loss = loss_rule.losses(request, *problem)
    # At infinity the derivative would be zero times infinity, and at 0 that of 0 to the power of gamma may be NaN too.
    regular = (loss > 0) & ~jnp.isposinf(loss)
    safe_loss = jnp.where(regular, loss, 1)
    weighted = alpha * jnp.power(-jnp.expm1(-safe_loss), gamma) * safe_loss
    # With gamma 0 the weight is alpha everywhere.
    irregular = jnp.where(jnp.isposinf(loss) | jnp.isnan(loss) | (gamma == 0), alpha * loss, 0)
    return jnp.where(regular, weighted, irregular)


def smoothed(request: Request, problem: Problem, weight: Array) -> Float[Array, " N"]:
    """Return the mean of the CTC losses and of the divergence from the uniform distribution, so weighted."""
    loss = loss_rule.losses(request, *problem)
    input_lengths = lattices.build_lattice(problem, request).input_lengths
    # An infinite loss is infinite whatever the divergence, and has no gradient: its scores are not read.
    mask = _frame_mask(input_lengths, problem.scores, request) & frames_first(~jnp.isposinf(loss)[None], request)
    scores = jnp.where(mask[:, :, None], problem.scores.astype(weight.dtype), 0)
    divergence = jnp.where(mask, -scores.mean(axis=2) - jnp.log(jnp.asarray(scores.shape[2], weight.dtype)), 0)
    return (1 - weight) * loss + weight * frames_first(divergence, request).sum(axis=0)


def _frame_mask(
    input_lengths: Integer[Array, " N"], scores: Float[Array, "A B C"], request: Request
) -> Bool[Array, "A B"]:
    return frames_first(lattices.frame_mask(input_lengths, frames_of(scores, request)), request)


# Sums over other paths

_sharded = sharded_like_scores(lambda sequences, _: sequences)


@_sharded
def delayed(request: Request, problem: Problem, penalty: Array) -> Float[Array, " N"]:
    """Return the losses of paths whose labels are rewarded for beginning early."""
    lattice, emissions = _emissions(request, problem)
    frame = row_of_indices(frames_of(problem.scores, request)).T
    reward = penalty * ((lattice.input_lengths[None] - 1 - 2 * frame).astype(penalty.dtype) / 2)
    blank, label = emissions.states
    # Every frame of a label emits the reward, and every frame but the first takes it back.
    topology = log_emissions.topology_of(lattice)._replace(self_loop_score=-reward)
    emissions = emissions._replace(states=LogStates(blank, label + reward[:, :, None]))
    return _losses(emissions, topology, lattice, request)


@functools.cache
def wildcard(begin: bool, end: bool) -> Losses:
    """Return the function of one choice of wildcards: always the same object, so that `jax.jit` compiles it once."""
    return functools.partial(_wildcard, begin=begin, end=end)


@_sharded
def _wildcard(request: Request, problem: Problem, *, begin: bool, end: bool) -> Float[Array, " N"]:
    # Not relative: the peaks of all frames would be added to paths that leave some of them out.
    lattice, emissions = _emissions(request, problem, relative=False)
    topology = log_emissions.topology_of(lattice)._replace(begins_anywhere=begin, ends_anywhere=end)
    return _losses(emissions, topology, lattice, request)


@_sharded
def star(request: Request, problem: Problem, penalty: Array) -> Float[Array, " N"]:
    """Return the losses of paths that may have further labels before, between and after those of the target."""
    lattice = lattices.build_lattice(problem, request)
    feasible = lattice.input_lengths >= lattice.target_lengths  # equal labels need no blank between them
    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    log_probs = jnp.where(feasible[None, :, None], log_probs, 0)
    emissions = log_emissions.build_emissions(log_probs, lattice, request, feasible=feasible)
    blank, label = emissions.states
    star = _other_labels(log_probs, lattice, request) - emissions.peak[:, :, None] - penalty
    # A star has the predecessors and successors of the blank beside it, so that one state serves both.
    blank_or_star = logaddexp(jnp.broadcast_to(blank, star.shape), jnp.maximum(star, LOG_ZERO))
    topology = log_emissions.topology_of(lattice)
    topology = topology._replace(skip=jnp.ones_like(topology.skip), self_loop_score=LOG_ZERO)
    return _losses(emissions._replace(states=LogStates(blank_or_star, label)), topology, lattice, request, feasible)


def _other_labels(log_probs: Float[Array, "T N C"], lattice: Lattice, request: Request) -> Float[Array, "T N W"]:
    """Return the log probability of all labels but that of each column; of all where a column has no label."""
    is_blank = (row_of_indices(log_probs.shape[2]) == request.blank)[None]
    labels = jnp.where(is_blank, LOG_ZERO, log_probs)
    peak = jax.lax.stop_gradient(labels.max(axis=2, keepdims=True))
    p = jnp.where(is_blank, 0, jnp.exp(labels - peak))
    # Sums of the classes before each one and after it: the sum of all less its own would leave nothing but rounding.
    zero = jnp.zeros_like(p[:, :, :1])
    before = jnp.concatenate([zero, jnp.cumsum(p, axis=2)[:, :, :-1]], axis=2)
    after = jnp.concatenate([jnp.flip(jnp.cumsum(jnp.flip(p, 2), axis=2), 2)[:, :, 1:], zero], axis=2)
    others = jnp.take_along_axis(before + after, lattice.labels[None], axis=2, mode="promise_in_bounds")
    positive = others > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, others, 1)) + peak, LOG_ZERO)


def _emissions(request: Request, problem: Problem, *, relative: bool = True) -> tuple[Lattice, Emissions]:
    lattice = lattices.build_lattice(problem, request)
    log_probs = log_emissions.log_probs(problem.scores, lattice, request)
    return lattice, log_emissions.build_emissions(log_probs, lattice, request, relative=relative)


def _losses(
    emissions: Emissions,
    topology: Topology,
    lattice: Lattice,
    request: Request,
    feasible: Bool[Array, " N"] | None = None,
) -> Float[Array, " N"]:
    """Return minus the log likelihood of the paths of a topology: +inf where there are none, NaN for invalid rows."""
    dispatch.require_xla_or_reference(request, "these paths are not those of ctc_loss")
    value = recursion.log_likelihood(emissions.states, topology)
    infeasible = ~(lattice.feasible if feasible is None else feasible) | (value < LOG_ZERO / 2)
    # Subtracted from 0: minus the logarithm of 1 would be -0.0.
    loss = jnp.where(infeasible, jnp.inf, 0 - (value + emissions.peak.sum(axis=0)))
    # A product, so that the gradient of an invalid row is NaN as well.
    return loss * outcome.nan_where(~lattice.legal, jnp.ones_like(loss))
