"""Every public function that takes arrays, each called in one way: for tests that hold for all of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import compat, variants

TYPES = {
    *("Alignment", "Beams", "Common", "Decoded", "Diagnosis", "Finding", "Posteriors", "Statistics", "TokenSpan"),
    *("PaddedBatch", "WordSpan"),
}
ON_THE_HOST = {"decoded_spans", "diagnose", "merge_tokens", "merge_words", "pad_to_sizes", "plot_alignment"}
"""They read arrays as numpy does, and are never traced."""


def _batch_first(function):
    def call(scores, targets, input_lengths, target_lengths):
        return function(targets, scores.swapaxes(0, 1), target_lengths, input_lengths)

    return call


def _optax(function):
    def paddings(lengths, size):
        return (jnp.arange(size, dtype=jnp.int32)[None] >= lengths[:, None]).astype(jnp.float32)

    def call(scores, targets, input_lengths, target_lengths):
        frames, labels = paddings(input_lengths, scores.shape[0]), paddings(target_lengths, targets.shape[1])
        return function(scores.swapaxes(0, 1), frames, targets, labels)

    return call


def _decoded(function, **options):
    return lambda scores, _, input_lengths, __: function(scores, input_lengths, **options)


def _prior(scores, *rest):
    return variants.prior_ctc_loss(scores, *rest, log_priors=jax.lax.iota(scores.dtype, scores.shape[2]) / 8)


def _torchaudio(scores, *rest):
    return compat.torchaudio_forced_align(scores.swapaxes(0, 1), *rest)


def _keras(scores, targets, _, target_lengths):
    """Its targets end where they are 0, and all frames count."""
    inside = jnp.arange(targets.shape[1], dtype=jnp.int32)[None] < target_lengths[:, None]
    return compat.keras_ctc(jnp.where(inside, targets, 0), scores.swapaxes(0, 1))


LOSSES = {
    "ctc_loss": jaxctc.ctc_loss,
    "ctc_loss_with_logits": jaxctc.ctc_loss_with_logits,
    "prior_ctc_loss": _prior,
    "entropy_ctc_loss": functools.partial(variants.entropy_ctc_loss, weight=0.1),
    "focal_ctc_loss": functools.partial(variants.focal_ctc_loss, gamma=1.5),
    "smoothed_ctc_loss": functools.partial(variants.smoothed_ctc_loss, weight=0.1),
    "delay_penalised_ctc_loss": functools.partial(variants.delay_penalised_ctc_loss, penalty=0.1),
    "wildcard_ctc_loss": variants.wildcard_ctc_loss,
    "star_ctc_loss": functools.partial(variants.star_ctc_loss, penalty=0.5),
    "optax_ctc_loss": _optax(compat.optax_ctc_loss),
    "keras_ctc": _keras,
    "keras_ctc_loss": _batch_first(compat.keras_ctc_loss),
    "tensorflow_ctc_loss": lambda scores, targets, frames, labels: compat.tensorflow_ctc_loss(
        targets, scores, labels, frames
    ),
}
WITH_GRADIENT = LOSSES | {
    "ctc_posteriors": jaxctc.ctc_posteriors,
    "ctc_statistics": jaxctc.ctc_statistics,
    "optax_ctc_loss_with_forward_probs": _optax(compat.optax_ctc_loss_with_forward_probs),
}
FUNCTIONS = WITH_GRADIENT | {
    "forced_align": jaxctc.forced_align,
    "torchaudio_forced_align": _torchaudio,
    "greedy_decode": _decoded(jaxctc.greedy_decode),
    "beam_search_decode": _decoded(jaxctc.beam_search_decode, beam_width=3),
    "keras_ctc_decode": lambda scores, _, lengths, __: compat.keras_ctc_decode(scores.swapaxes(0, 1), lengths),
    "tensorflow_ctc_greedy_decoder": _decoded(compat.tensorflow_ctc_greedy_decoder, blank_index=0),
    "tensorflow_ctc_beam_search_decoder": _decoded(compat.tensorflow_ctc_beam_search_decoder, beam_width=3),
    "label_priors": _decoded(variants.label_priors),
}
"""By name: functions of scores (T, N, C), targets (N, S), input lengths and target lengths (N,)."""
WITHOUT_DERIVATIVE = {"label_priors"}
WITHOUT_RESULT = {"check_batch", "set_implementation"}
"""They compute nothing from the scores."""


def every(functions, *quick):
    """Parametrize by name; `make test` leaves all but the `quick` ones to `make test-all`."""
    marks = {name: () if name in quick else pytest.mark.full for name in functions}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


def problem(frames: int = 6, sequences: int = 2, classes: int = 4, seed: int = 0) -> list[Any]:
    """Return a batch in which every target is feasible, and lengths differ."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(frames, sequences, classes)).astype(np.float32) * 2
    scores -= np.log(np.exp(scores).sum(axis=2, keepdims=True))
    targets = np.arange(1, classes, dtype=np.int32)[None, :2].repeat(sequences, axis=0)
    input_lengths = frames - np.arange(sequences, dtype=np.int32) % 2
    target_lengths = 2 - np.arange(sequences, dtype=np.int32) % 3
    return [jnp.asarray(x) for x in (scores, targets, input_lengths, target_lengths)]


def finite_total(results: Any) -> jax.Array:
    """Return one number that depends on every finite float of the results."""
    found = [
        jnp.where(jnp.isfinite(x), x, 0) for x in jax.tree.leaves(results) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return sum((x**2).sum() for x in found)


def gradient_of(function):
    return jax.grad(lambda scores, *rest: finite_total(function(scores, *rest)))


def result_and_gradient(function):
    """Return what gives the result of a function and the gradient of all its numbers, by one pass forward."""

    def total(*arguments):
        found = function(*arguments)
        return finite_total(found), found

    return jax.grad(total, has_aux=True)
