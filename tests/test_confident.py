"""A confident model, and logits with an offset, lose no digits: judged by PyTorch in float64, beside it in float32."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import compat

pytest.importorskip("torch")

import torch
from confident_models import by_torch, ours, peaked

GAPS = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0)
OFFSETS = (0.0, 100.0, 1e3, -1e3, 1e4, -1e4)


def largest(x):
    return np.abs(x).max()


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_as_exact_as_torch_or_more_so(dtype, noise):
    """And ten times where the loss is small: what a frame lacks of certainty is summed up to its last digit."""
    for gap in GAPS:
        logits, targets = peaked(gap, noise, rows=2, uneven=noise > 0)
        for offset in OFFSETS:
            rounded = jnp.asarray(logits + offset, dtype)
            exact, slope = by_torch(rounded, targets, torch.float64)
            loss, gradient = (np.asarray(x, np.float64) for x in ours(rounded, targets))
            loss_by_torch, slope_by_torch = by_torch(rounded, targets, torch.float32)
            context = f"gap {gap}, offset {offset}"
            # Two roundings of the loss itself; of what is next to nothing, float64 knows no more.
            allowed = 2**-22 * largest(exact) + min(1e-6, 1e-6 * largest(exact)) + 1e-15
            assert largest(loss - exact) <= max(largest(loss_by_torch - exact) / 10, allowed), context
            if dtype == "float32":
                # What is less than 2^-42 counts as nothing.
                allowed = max(largest(slope_by_torch - slope), 2**-20 * largest(slope) + 2**-42)
                assert largest(gradient - slope) <= allowed, context
            else:
                # The gradient has the type of the logits: it is rounded once more.
                step = float(jnp.finfo(dtype).eps)
                close = np.isclose(gradient, slope, rtol=step, atol=1e-6)
                assert close.all(), context


def test_the_example_that_showed_it():
    path = np.zeros(100, int)
    path[[20, 50, 80]] = 1, 2, 3
    logits = 15 * np.eye(4, dtype=np.float32)[path]
    targets = jnp.array([1, 2, 3])
    exact = by_torch(logits[:, None], np.asarray(targets)[None], torch.float64)[0].item()
    assert 8.9e-5 < exact < 9.1e-5
    for offset in (0, 100, 1000, -1000):
        for function in (plain_loss, optax_loss, keras_loss, tensorflow_loss):
            loss = float(function(jnp.asarray(logits + np.float32(offset)), targets, 100, 3))
            assert abs(loss / exact - 1) < 1e-6, (function, offset)


def plain_loss(*problem):
    return jaxctc.ctc_loss_with_logits(*problem, reduction="sum")


def optax_loss(logits, targets, *_):
    paddings = jnp.zeros((1, len(logits))), jnp.zeros((1, len(targets)))
    return compat.optax_ctc_loss(logits[None], paddings[0], targets[None], paddings[1])[0]


def keras_loss(logits, targets, frames, labels):
    return compat.keras_ctc_loss(targets[None], logits[None], [labels], [frames])[0]


def tensorflow_loss(logits, targets, frames, labels):
    return compat.tensorflow_ctc_loss(targets[None], logits[:, None], [labels], [frames])[0]


def test_nearly_nothing_is_not_nothing_and_has_no_sign():
    logits = jnp.array([[0.0, 17.0], [0.0, 17.0]])
    loss = np.asarray(jaxctc.ctc_loss_with_logits(logits, jnp.array([1]), 2, 1))
    # Of four paths the two blanks in a row alone are another target's: e^-34 is missing from one.
    assert 0 <= loss < 1e-13
    assert not np.signbit(loss)
    for certain in (jnp.array([[-jnp.inf, 0.0]]), jnp.array([[0.0, 200.0]]), jnp.array([[-1e9, 1e9]])):
        loss = np.asarray(jaxctc.ctc_loss_with_logits(certain, jnp.array([1]), 1, 1))
        assert loss == 0
        assert not np.signbit(loss)
        loss = np.asarray(jaxctc.ctc_loss(jnp.minimum(certain - certain.max(), 0), jnp.array([1]), 1, 1))
        assert loss == 0
        assert not np.signbit(loss)


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.full), 5])
def test_ties_of_the_largest_logit(classes):
    """Where several classes are the best one, none is left out of the sum."""
    for offset in (0.0, 1e4):
        logits = np.full((4, 1, classes), offset, np.float32)
        logits[:, :, 2:] -= 16
        targets = np.array([[1]])
        exact, slope = by_torch(logits, targets, torch.float64)
        loss, gradient = ours(logits, targets)
        np.testing.assert_allclose(loss, exact, rtol=1e-6)
        np.testing.assert_allclose(gradient, slope, atol=1e-7)
