"""Against PyTorch in float64: 1,200 drawn cases, real speech, and a very long target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import AS_FOR_USERS
from oracles import torch_float64

import jaxctc
from jaxctc._tools.conformance.oracle import log_softmax

pytest.importorskip("torch")

CASES = 300
"""Sequences a batch; each has its own scale, lengths and labels, and its own number of labels to draw from."""
SHAPES = [(60, 12, 25), (31, 20, 4)]
"""(T, C, S), even and odd, and with either way of spreading labels over classes: few shapes, each compiled."""


def draw(shape, seed, feasible=True):
    frames, classes, longest = shape
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(np.log(0.1), np.log(50), (1, CASES, 1)))
    scores = rng.normal(size=(frames, CASES, classes)) * scale
    targets = rng.integers(1, rng.integers(2, classes + 1, (CASES, 1)), (CASES, longest))
    target_lengths = rng.integers(0, longest + 1, CASES)
    inside = np.arange(longest - 1) < target_lengths[:, None] - 1
    repeats = ((targets[:, 1:] == targets[:, :-1]) & inside).sum(axis=1)
    if feasible:  # torch's gradient of an infeasible row is NaN
        target_lengths = np.where(target_lengths + repeats > frames, frames // 2, target_lengths)
        repeats = np.minimum(repeats, target_lengths)
    input_lengths = rng.integers(np.minimum(target_lengths + repeats, frames), frames + 1)
    problem = (x.astype(np.int32) for x in (targets, input_lengths, target_lengths))
    return scores.astype(np.float32), *problem


def loss_and_gradient(function, scores, *problem):
    loss, pull_back = jax.vjp(lambda x: function(x, *problem, reduction="none"), scores)
    return loss, pull_back(jnp.ones_like(loss))[0]


def both_precisions(function, scores, *problem):
    of_float64 = jax.jit(loss_and_gradient, static_argnums=0)
    of_float32 = jax.jit(loss_and_gradient, static_argnums=0, compiler_options=AS_FOR_USERS)
    narrow = [np.asarray(x, np.float64) for x in of_float32(function, scores, *problem)]
    with jax.enable_x64(True):
        wide = [np.asarray(x) for x in of_float64(function, scores.astype(np.float64), *problem)]
    return narrow, wide


@pytest.mark.parametrize(("shape", "logits"), [(SHAPES[0], False), (SHAPES[1], True)], ids=str)
def test_drawn_cases(shape, logits):
    scores, *problem = draw(shape, seed=sum(shape))
    if logits:
        function, log_probs = jaxctc.ctc_loss_with_logits, log_softmax(scores)
    else:
        function, scores = jaxctc.ctc_loss, log_softmax(scores).astype(np.float32)
        log_probs = scores.astype(np.float64)
    expected, posterior = torch_float64(log_probs, *problem)
    assert np.isfinite(expected).all()
    base = np.exp(log_probs) * (posterior.sum(axis=2, keepdims=True) > 0.5) if logits else 0

    (loss, gradient), (wide_loss, wide_gradient) = both_precisions(function, scores, *problem)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(base - gradient, posterior, rtol=0, atol=2e-4)
    np.testing.assert_allclose(wide_loss, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(base - wide_gradient, posterior, rtol=0, atol=1e-10)


def test_real_speech(shared_data):
    """The transcript of one LibriSpeech utterance under a confident acoustic model."""
    data = np.load(shared_data / "libri_emission.npz")
    logits, labels, text = data["logits"], [str(k) for k in data["labels"]], str(data["text"])
    index = {label: k for k, label in enumerate(labels)}
    blank = len(labels) - 1
    target = np.array([index[letter] for letter in text], np.int32)
    frames = len(logits)
    expected, posterior = torch_float64(log_softmax(logits)[:, None], target[None], [frames], [len(target)], blank)

    def run(dtype):
        scores = jnp.asarray(logits, dtype)
        loss = functools.partial(jaxctc.ctc_loss_with_logits, blank=blank, reduction="sum")
        return jax.jit(jax.value_and_grad(lambda x: loss(x, target, frames, len(target))))(scores)

    for dtype, rtol, atol in ((jnp.float32, 2e-6, 2e-4), (jnp.float64, 1e-10, 1e-10)):
        with jax.enable_x64(dtype == jnp.float64):
            loss, gradient = run(dtype)
        np.testing.assert_allclose(loss, expected[0], rtol=rtol, atol=2e-5 if dtype == jnp.float32 else rtol)
        np.testing.assert_allclose(
            np.exp(log_softmax(logits)) - np.asarray(gradient), posterior[:, 0], rtol=0, atol=atol
        )


def test_a_target_of_1100_labels():
    """pytorch/pytorch#27442: the gradient of very long targets was wrong there."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1500, 1, 30)).astype(np.float32)
    targets = rng.integers(1, 30, (1, 1100)).astype(np.int32)
    problem = targets, [1500], [1100]
    expected, posterior = torch_float64(log_softmax(logits), *problem)
    loss = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum")
    loss, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, *problem)))(logits)
    np.testing.assert_allclose(loss, expected[0], rtol=2e-6)
    np.testing.assert_allclose(np.exp(log_softmax(logits)) - np.asarray(gradient), posterior, rtol=0, atol=2e-4)
