"""The losses of a batch, one a sequence, and their derivatives of every order.

The losses and their gradient come from the recursion at both ends (`_both_ends`). The gradient's own
derivative, which few need, comes from `_plain`, the losses written as plainly as can be, which JAX
differentiates by itself as often as it is asked to.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import zero_from_primal
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxctc import _classes, _emissions, _frames, _implementation, _lattice, _recursion, _setting, _walk
from jaxctc._classes import Dominant
from jaxctc._lattice import Lattice, accumulator, frames_first, frames_of
from jaxctc._log_space import LOG_ZERO
from jaxctc._mesh import laid_out_like_scores
from jaxctc._setting import Setting
from jaxctc._slices import sliced
from jaxctc._types import Options, Problem
from jaxctc._walk import Index

_BLOCK = 16
"""Steps of a loss without a gradient whose scores are fetched at once."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@laid_out_like_scores(lambda sequences, _: sequences)
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
    count = frames_of(scores, options)

    def held(scores: Array, lattice: Lattice, index: Index | None = None) -> Float[Array, " N"]:
        setting = _setting_of(scores, lattice, options, _BLOCK, frames, index, ends=False)
        likelihood = _implementation.likelihood(setting.walk, setting.start, _BLOCK, setting.begin, options)
        return _setting.losses(_frames.of_one(likelihood, index, options), setting, count, scores.dtype, options)

    lattice = _lattice.build(Problem(scores, targets, input_lengths, target_lengths), options)
    return _frames.divided(sliced(held, options), options, lambda _: P())(scores, lattice)


@losses.defjvp
def _losses_jvp(options, primals, tangents):
    value, gradient, counts = losses_and_gradient(options, *primals)
    return value, _along(gradient, counts, tangents[0], options)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@laid_out_like_scores(lambda sequences, scores: (sequences, scores, scores))
def losses_and_gradient(
    options: Options,
    scores: Float[Array, "A B C"],
    targets: Integer[Array, "N S"],
    input_lengths: Integer[Array, " N"],
    target_lengths: Integer[Array, " N"],
    frames: Int[Array, ""] | None = None,
) -> tuple[Float[Array, " N"], Float[Array, "A B C"], Bool[Array, "A B C"]]:
    """The losses, the derivative of each with respect to its own scores, and where that can be other than 0."""
    count, classes, dtype = frames_of(scores, options), scores.shape[2], accumulator(scores.dtype)

    def held(scores: Array, lattice: Lattice, index: Index | None = None) -> tuple[Array, Array, Array]:
        size = _implementation.segment_size(frames_of(scores, options), lattice, dtype, options)
        setting = _setting_of(scores, lattice, options, size, frames, index, ends=True)
        places = _classes.places(lattice, classes, dtype)
        likelihood, posterior = _implementation.posterior(
            setting.walk, size, setting.start, setting.begin, options, fold=places.folded
        )
        likelihood = _frames.of_one(likelihood, index, options)
        value = _setting.losses(likelihood, setting, count, scores.dtype, options)
        found = _classes.class_posterior(posterior, places, setting.lattice, frames_of(scores, options), options)
        top = None
        if options.from_logits:
            top = _classes.dominant(posterior, places, setting.lattice, frames_of(scores, options), options)
        return value, *_gradient(scores, found, top, value, setting, options)

    lattice = _lattice.build(Problem(scores, targets, input_lengths, target_lengths), options)
    return _frames.divided(sliced(held, options), options, lambda spec: (P(), spec, spec))(scores, lattice)


def _setting_of(
    scores: Float[Array, "A B C"],
    lattice: Lattice,
    options: Options,
    size: int,
    frames: Int[Array, ""] | None,
    index: Index | None,
    *,
    ends: bool,
) -> Setting:
    """Of all frames, or of those that the device of this index holds."""
    keep = _walk.keeps_scores(frames_of(scores, options), lattice, accumulator(scores.dtype))
    if index is None:
        return _setting.build(scores, lattice, options, size, frames, keep=keep)
    return _frames.build(scores, lattice, options, size, index, keep=keep, ends=ends)


def _gradient(
    scores: Float[Array, "A B C"],
    posterior: Float[Array, "A B C"],
    top: Dominant | None,
    value: Float[Array, " N"],
    setting: Setting,
    options: Options,
) -> tuple[Float[Array, "A B C"], Bool[Array, "A B C"]]:
    """And where it can be other than 0."""
    rows = jnp.stack([jnp.isfinite(value), jnp.isnan(value)])
    # Where an illegal length hides the live frames, all of them must show that the row is broken.
    live = frames_first(setting.live, options) | ~setting.lattice.legal[None]
    finite, nan = (frames_first(live & row[None], options)[:, :, None] for row in rows)
    wide = scores.astype(posterior.dtype)
    counts = finite & ~(wide <= LOG_ZERO)
    gradient = -posterior
    if setting.normaliser is not None:
        assert top is not None
        peak, excess, best, others = setting.normaliser
        # Two probabilities of nearly one differ by what is missing from them, which has more digits.
        agreed = jnp.where(top.label == best, best, -1)
        agreed, missing = jax.lax.optimization_barrier((agreed[:, :, None], (top.others - others)[:, :, None]))
        gradient = jnp.exp((wide - peak[:, :, None]) - excess[:, :, None]) - posterior
        classes = jnp.arange(wide.shape[2], dtype=best.dtype)[None, None]
        gradient = jnp.where(classes == agreed, missing, gradient)
    gradient = jnp.where(counts, gradient, 0)
    if setting.normaliser is None:
        counts = counts & (gradient != 0)
    return jnp.where(nan, jnp.nan, gradient), counts | nan


@losses_and_gradient.defjvp
def _losses_and_gradient_jvp(options, primals, tangents):
    value, gradient, counts = losses_and_gradient(options, *primals)
    scores, *rest, _ = primals

    def derivative(scores):
        return jax.grad(lambda scores: _plain(options, scores, *rest).sum())(scores)

    _, change = jax.jvp(derivative, (scores,), (tangents[0],))
    # What is broken stays so; and nothing but what counts can change.
    change = jnp.where(jnp.isnan(gradient), jnp.nan, jnp.where(counts, change.astype(gradient.dtype), 0))
    no_tangent = zero_from_primal(counts)
    return (value, gradient, counts), (_along(gradient, counts, tangents[0], options), change, no_tangent)


def _along(
    gradient: Float[Array, "A B C"], counts: Bool[Array, "A B C"], tangent: Float[Array, "A B C"], options: Options
) -> Float[Array, " N"]:
    """The derivative of each sequence's loss along a tangent of the scores."""
    # A product and a sum, no dot: its default precision is low on TPU and GPU. And `where` first:
    # zero times the tangent of a NaN would be NaN.
    terms = gradient * jnp.where(counts, tangent.astype(gradient.dtype), 0)
    return frames_first(terms.sum(axis=2), options).sum(axis=0)


@laid_out_like_scores(lambda sequences, _: sequences)
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
    log_likelihood = _recursion.log_likelihood(emitted.states, _emissions.rules_of(lattice))
    return -(log_likelihood + emitted.peak.sum(axis=0))
