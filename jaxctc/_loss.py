"""The losses of a batch, one a sequence, and their derivatives of every order.

The losses and their gradient come from the recursion at both ends (`_both_ends`). The gradient's own
derivative, which few need, comes from `_plain`, the losses written as plainly as can be, which JAX
differentiates by itself as often as it is asked to.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxctc import _both_ends, _emissions, _lattice, _recursion, _walk
from jaxctc._classes import class_posterior
from jaxctc._emissions import frames_of
from jaxctc._lattice import Lattice, accumulator, frames_first
from jaxctc._log_space import LOG_ZERO
from jaxctc._scaled import Scaled
from jaxctc._types import Options, Problem
from jaxctc._walk import Walk

_BLOCK = 16
"""Steps of a loss without a gradient whose scores are fetched at once."""


class _Setting(NamedTuple):
    """Everything about a batch but its likelihoods."""

    walk: Walk
    log_normaliser: Float[Array, "A B"] | None
    """Of logits: their log-sum-exp."""
    live: Bool[Array, "A B"]
    """The frames within each sequence's length."""
    broken: Bool[Array, " N"]
    """The loss is NaN: illegal lengths or labels, or a NaN or +inf score that counts."""
    infeasible: Bool[Array, " N"]
    """The loss is +inf, known before any recursion."""
    start: _both_ends.Index
    """The first of the steps that reads a live frame."""


def _log_normaliser(logits: Float[Array, "A B C"]) -> Float[Array, "A B"]:
    dtype = accumulator(logits.dtype)
    peak = logits.max(axis=2).astype(dtype)
    shift = jnp.where(jnp.isneginf(peak), 0, peak)
    return peak + jnp.log(jnp.exp(logits.astype(dtype) - shift[:, :, None]).sum(axis=2))


def _start(
    steps: int, scores: Float[Array, "A B C"], longest: Int[Array, ""] | None, options: Options
) -> _both_ends.Index:
    """The first of the steps that reads a live frame, if no sequence is longer than `longest`."""
    if longest is None:
        return steps - -(-frames_of(scores, options) // 2)
    return jnp.clip(steps - (longest + 1) // 2, 0, steps)


def _set_up(
    problem: Problem, lattice: Lattice, options: Options, size: int, longest: Int[Array, ""] | None
) -> _Setting:
    """In segments of `size` steps, if no sequence is longer than `longest`."""
    scores = problem.scores
    steps = _both_ends.even(frames_of(scores, options), size)
    start = _start(steps, scores, longest, options)
    live = frames_first(_emissions.live(lattice, frames_of(scores, options)), options)
    log_normaliser = _log_normaliser(scores) if options.from_logits else None
    walk = _walk.build(scores, log_normaliser, lattice, options, steps, size, start)
    poisoned = walk.poisoned
    if log_normaliser is not None:
        poisoned = poisoned | frames_first(live & ~(log_normaliser < jnp.inf), options).any(axis=0)
    return _Setting(
        walk,
        log_normaliser,
        live,
        broken=~lattice.legal | (lattice.possible & poisoned),
        infeasible=~lattice.possible | walk.blocked,
        start=start,
    )


def _losses(likelihood: Scaled, setting: _Setting, problem: Problem, options: Options) -> Float[Array, " N"]:
    """Puts back what was taken out of the scores; then infinities, NaN and rounding below zero."""
    loss = -_walk.log_likelihood(setting.walk, likelihood)
    if options.from_logits:
        loss = jnp.maximum(loss, 0)
    else:
        # Rows that are normalised in the caller's precision may sum to a little more than one.
        slack = frames_of(problem.scores, options) * float(jnp.finfo(problem.scores.dtype).eps)
        loss = jnp.where((loss <= 0) & (loss >= -slack), 0, loss)
    impossible = setting.infeasible | (likelihood.exponent < LOG_ZERO / 2)
    return jnp.where(setting.broken, jnp.nan, jnp.where(impossible, jnp.inf, loss))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses(
    options: Options,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    frames: Int[Array, ""] | None = None,
) -> Float[Array, " N"]:
    """Minus the log probability of each target: no reduction, no derivative paid for that is not asked for.

    `frames`, if given, is no smaller than any input length: frames beyond it cost nothing.
    """
    problem = Problem(scores, targets, input_lengths, target_lengths)
    lattice = _lattice.build(problem, options)
    setting = _set_up(problem, lattice, options, _BLOCK, frames)
    likelihood = _both_ends.likelihood(setting.walk, setting.start)
    return _losses(likelihood, setting, problem, options)


@losses.defjvp
def _losses_jvp(options, primals, tangents):
    value, gradient, counts = losses_and_gradient(options, *primals)
    return value, _along(gradient, counts, tangents[0], options)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses_and_gradient(
    options: Options,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    frames: Int[Array, ""] | None = None,
) -> tuple[Float[Array, " N"], Float[Array, "A B C"], Bool[Array, "A B C"]]:
    """The losses, the derivative of each with respect to its own scores, and where that can be other than 0."""
    problem = Problem(scores, targets, input_lengths, target_lengths)
    lattice = _lattice.build(problem, options)
    size = _both_ends.segment_size(frames_of(scores, options), lattice, accumulator(scores.dtype))
    setting = _set_up(problem, lattice, options, size, frames)
    likelihood, posterior = _both_ends.posterior(setting.walk, size, setting.start)
    value = _losses(likelihood, setting, problem, options)
    found = class_posterior(posterior, lattice, frames_of(scores, options), scores.shape[2], options)

    rows = jnp.stack([jnp.isfinite(value), jnp.isnan(value)])
    # Where an illegal length hides the live frames, all of them must show that the row is broken.
    live = frames_first(setting.live, options) | ~lattice.legal[None]
    finite, nan = (frames_first(live & row[None], options)[:, :, None] for row in rows)
    wide = scores.astype(found.dtype)
    counts = finite & ~(wide <= LOG_ZERO)
    gradient = -found
    if setting.log_normaliser is not None:
        gradient = jnp.exp(wide - setting.log_normaliser[:, :, None]) - found
    gradient = jnp.where(counts, gradient, 0)
    if setting.log_normaliser is None:
        counts = counts & (gradient != 0)
    return value, jnp.where(nan, jnp.nan, gradient), counts | nan


@losses_and_gradient.defjvp
def _losses_and_gradient_jvp(options, primals, tangents):
    value, gradient, counts = losses_and_gradient(options, *primals)
    scores, *rest, _ = primals

    def derivative(scores):
        return jax.grad(lambda scores: _plain(options, scores, *rest).sum())(scores)

    _, change = jax.jvp(derivative, (scores,), (tangents[0],))
    # What is broken stays so; and nothing but what counts can change.
    change = jnp.where(jnp.isnan(gradient), jnp.nan, jnp.where(counts, change.astype(gradient.dtype), 0))
    no_tangent = jnp.zeros(counts.shape, jax.dtypes.float0)
    return (value, gradient, counts), (_along(gradient, counts, tangents[0], options), change, no_tangent)


def _along(
    gradient: Float[Array, "A B C"], counts: Bool[Array, "A B C"], tangent: Float[Array, "A B C"], options: Options
) -> Float[Array, " N"]:
    """The derivative of each sequence's loss along a tangent of the scores."""
    # A product and a sum, no dot: its default precision is low on TPU and GPU. And `where` first:
    # zero times the tangent of a NaN would be NaN.
    terms = gradient * jnp.where(counts, tangent.astype(gradient.dtype), 0)
    return frames_first(terms.sum(axis=2), options).sum(axis=0)


def _plain(
    options: Options,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
) -> Float[Array, " N"]:
    """The losses by the forward recursion alone, right where they are finite."""
    lattice = _lattice.build(Problem(scores, targets, input_lengths, target_lengths), options)
    emitted = _emissions.build(_emissions.log_probs(scores, lattice, options), lattice, options)
    log_likelihood = _recursion.log_likelihood(emitted.states, _emissions.rules(lattice))
    return -(log_likelihood + emitted.peak.sum(axis=0))
