"""Every path, enumerated: tiny cases of every kind, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxctc
from jaxctc._tools.conformance.oracle import by_enumeration, log_softmax

T, C, S = 5, 4, 3
"""Every case is padded to one shape, so that one compilation serves all."""

SCORES = st.one_of(st.floats(-3, 3, width=32), st.just(0.0), st.just(-np.inf), st.floats(-200, 200, width=32))


@st.composite
def cases(draw):
    """(scores (t, C), target, blank): within the padding of one row."""
    frames = draw(st.integers(0, T))
    blank = draw(st.sampled_from([0, 2]))  # each is compiled for
    labels = [k for k in range(C) if k != blank]
    # Few distinct labels: repeats are where the recursion branches.
    target = tuple(draw(st.lists(st.sampled_from(labels[: draw(st.integers(1, 3))]), max_size=S)))
    scores = draw(st.lists(st.lists(SCORES, min_size=C, max_size=C), min_size=frames, max_size=frames))
    return np.array(scores, np.float64).reshape(frames, C), target, blank


@functools.partial(jax.jit, static_argnames=("logits", "blank"))
def loss_and_gradient(scores, target, frames, length, *, logits, blank):
    function = jaxctc.ctc_loss_with_logits if logits else jaxctc.ctc_loss
    return jax.value_and_grad(function)(scores, target, frames, length, blank=blank, reduction="none")


def run(scores, target, blank, *, logits):
    frames = len(scores)
    padded = np.full((T, C), np.nan)
    padded[:frames] = scores
    labels = np.array([*target, *[-7] * (S - len(target))], np.int32)
    with jax.enable_x64(True):
        arguments = jnp.asarray(padded), labels, np.int32(frames), np.int32(len(target))
        loss, gradient = loss_and_gradient(*arguments, logits=logits, blank=blank)
        assert loss.dtype == gradient.dtype == jnp.float64
        assert (np.asarray(gradient)[frames:] == 0).all()
        return float(loss), np.asarray(gradient)[:frames]


MANY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@MANY
@given(cases())
def test_log_probs_of_any_kind(case):
    scores, target, blank = case
    loss, gradient = run(scores, target, blank, logits=False)
    expected, posterior = by_enumeration(scores, target, blank)
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(gradient, -posterior, rtol=0, atol=1e-10)


@MANY
@given(cases())
def test_logits(case):
    logits, target, blank = case
    loss, gradient = run(logits, target, blank, logits=True)
    expected, posterior = by_enumeration(log_softmax(logits), target, blank)
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-10)
    if expected == np.inf:
        assert (gradient == 0).all()
    else:
        np.testing.assert_allclose(gradient, np.exp(log_softmax(logits)) - posterior, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes(classes):
    """With one class there is nothing but the blank."""
    scores = np.linspace(-2, 0.3, 4 * classes).reshape(4, classes)
    longest = 3 * (classes - 1)
    for length in range(longest + 1):
        expected, posterior = by_enumeration(scores, (1,) * length, 0)
        arguments = scores, np.ones(longest, np.int32), np.int32(4), np.int32(length)
        np.testing.assert_allclose(jaxctc.ctc_loss(*arguments), expected / max(length, 1), rtol=1e-12)
        loss, gradient = loss_and_gradient(*arguments, logits=False, blank=0)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, -posterior, atol=1e-12)
