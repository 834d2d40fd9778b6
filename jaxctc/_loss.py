"""The losses of a batch, one a sequence, and their derivative."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxctc import _lattice, _recursion
from jaxctc._classes import subtract_posterior
from jaxctc._lattice import Emissions, Lattice, accumulator, frames_first
from jaxctc._log_space import LOG_ZERO
from jaxctc._types import Options, Problem


class _Normaliser(NamedTuple):
    """The log-softmax of logits, in two parts: log p = logit - peak - log_sum."""

    peak: Float[Array, "A B"]
    log_sum: Float[Array, "A B"]


class _Setting(NamedTuple):
    """Everything about a batch but its likelihoods."""

    lattice: Lattice
    emissions: Emissions
    normaliser: _Normaliser | None
    broken: Bool[Array, " N"]
    """The loss is NaN: illegal lengths or labels, or a NaN or +inf score that counts."""
    infeasible: Bool[Array, " N"]
    """The loss is +inf, known before any recursion."""


def _normaliser(logits: Float[Array, "A B C"]) -> _Normaliser:
    peak = jax.lax.stop_gradient(logits.max(axis=2)).astype(accumulator(logits.dtype))
    shift = jnp.where(jnp.isneginf(peak), 0, peak)
    exponentials = jnp.exp(logits.astype(peak.dtype) - shift[:, :, None])
    return _Normaliser(peak, jnp.log(exponentials.sum(axis=2)))


def _set_up(problem: Problem, options: Options) -> _Setting:
    lattice = _lattice.build(problem, options)
    normaliser = _normaliser(problem.scores) if options.from_logits else None
    offset = None
    if normaliser is not None:
        offset = jnp.where(jnp.isfinite(normaliser.peak), normaliser.peak, 0)
    emissions = _lattice.emissions(problem.scores, offset, lattice, options)
    poisoned = emissions.poisoned
    if normaliser is not None:
        peak = frames_first(normaliser.peak, options)
        poisoned = poisoned | (emissions.live & ~(peak < jnp.inf)).any(axis=0)
    return _Setting(
        lattice,
        emissions,
        normaliser,
        broken=~lattice.legal | (lattice.possible & poisoned),
        infeasible=~lattice.possible | emissions.blocked,
    )


def _walk(setting: _Setting) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What the recursion wants to know."""
    lattice = setting.lattice
    return setting.emissions.scores, lattice.skip, lattice.input_lengths, lattice.target_lengths


def _losses_from(
    log_likelihood: Float[Array, " N"], setting: _Setting, dtype: jnp.dtype, options: Options
) -> Float[Array, " N"]:
    """Puts back what was taken out of the scores; then infinities, NaN and rounding below zero."""
    _, emissions, normaliser, broken, infeasible = setting
    if normaliser is None:
        loss = -(emissions.peak.sum(axis=0) + log_likelihood)
        # Rows that are normalised in the caller's precision may sum to a little more than one.
        slack = emissions.live.shape[0] * float(jnp.finfo(dtype).eps)
        loss = jnp.where((loss <= 0) & (loss >= -slack), 0, loss)
    else:
        log_sum = frames_first(normaliser.log_sum, options)
        above = jnp.where(emissions.live, log_sum - emissions.peak, 0).sum(axis=0)
        loss = jnp.maximum(above - log_likelihood, 0)
    impossible = infeasible | (log_likelihood < LOG_ZERO / 2)
    return jnp.where(broken, jnp.nan, jnp.where(impossible, jnp.inf, loss))


def _gradient(
    posterior: Float[Array, "T N W"],
    losses: Float[Array, " N"],
    setting: _Setting,
    problem: Problem,
    options: Options,
) -> tuple[Float[Array, "A B C"], Bool[Array, "A B C"]]:
    """The derivative of each sequence's loss with respect to its scores, and where it can be other than 0."""
    scores = problem.scores
    lattice, emissions, normaliser, _, _ = setting
    # Where an illegal length hides the live frames, all of them must show that the row is broken.
    live = emissions.live | ~lattice.legal[None]
    finite = live & ~jnp.isposinf(losses)[None]
    counts = frames_first(finite, options)[:, :, None]
    posterior = jnp.where(finite[:, :, None], posterior, 0)
    if normaliser is None:
        base = jnp.zeros(scores.shape, posterior.dtype)
    else:
        peak, log_sum = (x[:, :, None] for x in normaliser)
        log_probs = scores.astype(posterior.dtype) - peak - log_sum
        counts = counts & ~(log_probs <= LOG_ZERO)
        base = jnp.where(counts, jnp.exp(log_probs), 0)
    gradient = subtract_posterior(base, posterior, lattice.labels, options)
    if normaliser is None:
        counts = counts & (gradient != 0)
    nan = frames_first(live & jnp.isnan(losses)[None], options)[:, :, None]
    return jnp.where(nan, jnp.nan, gradient), counts | nan


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses(
    options: Options,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
) -> Float[Array, " N"]:
    """Minus the log probability of each target: no reduction, no derivative paid for that is not asked for."""
    setting = _set_up(Problem(scores, targets, input_lengths, target_lengths), options)
    log_likelihood = _recursion.forward_log_likelihood(*_walk(setting))
    return _losses_from(log_likelihood, setting, scores.dtype, options)


@losses.defjvp
def _losses_jvp(options, primals, tangents):
    problem = Problem(*primals)
    setting = _set_up(problem, options)
    log_likelihood, posterior = _recursion.posterior(*_walk(setting))
    value = _losses_from(log_likelihood, setting, problem.scores.dtype, options)
    gradient, counts = _gradient(posterior, value, setting, problem, options)
    value = _with_gradient(options, jax.lax.stop_gradient(value), problem.scores, gradient, counts)
    return value, _along(gradient, counts, tangents[0], options)


def _along(
    gradient: Float[Array, "A B C"], counts: Bool[Array, "A B C"], tangent: Float[Array, "A B C"], options: Options
) -> Float[Array, " N"]:
    """The derivative of each sequence's loss along a tangent of the scores."""
    # A product and a sum, no dot: its default precision is low on TPU and GPU. And `where` first:
    # zero times the tangent of a NaN would be NaN.
    terms = gradient * jnp.where(counts, tangent.astype(gradient.dtype), 0)
    return frames_first(terms.sum(axis=2), options).sum(axis=0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_gradient(
    _options: Options,
    value: Float[Array, " N"],
    _scores: Float[Array, "A B C"],
    _gradient: Float[Array, "A B C"],
    _counts: Bool[Array, "A B C"],
) -> Float[Array, " N"]:
    """`value`, whose derivative with respect to the scores is `_gradient`.

    Whoever differentiates a function that used `jax.value_and_grad` differentiates this value too.
    """
    return value


@_with_gradient.defjvp
def _with_gradient_jvp(options, primals, tangents):
    _, _, gradient, counts = primals
    return _with_gradient(options, *primals), _along(gradient, counts, tangents[1], options)
