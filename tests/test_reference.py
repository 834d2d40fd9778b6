"""The loops and the kernels give what the reference gives: value and gradient, on every kind of input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import log_softmax

import jaxctc
from jaxctc._kernels import dispatch
from jaxctc._tools.check import worker

T, N, C, S = 24, 6, 5, 4
TARGETS = np.array([[1, 2, 3, 4], [2, 2, 2, 2], [3, 1, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
INPUT_LENGTHS, TARGET_LENGTHS = np.array([24, 17, 9, 1, 5, 6]), np.array([4, 4, 2, 1, 0, 4])
"""Full and padded, repeats, one frame, an empty target, and last one with a frame too few."""


def logits():
    return np.random.default_rng(0).normal(size=(T, N, C)) * 3


def masked():
    """A class is impossible in some frames, and in one frame everything that the third target needs."""
    scores = log_softmax(logits())
    scores[5:9, :, 2] = -np.inf
    scores[4, 2, [0, 1, 3]] = -1e30
    return scores


def padded_with_nan():
    scores = logits()
    for n, length in enumerate(INPUT_LENGTHS):
        scores[length:, n] = np.nan
    return scores


def non_finite():
    """A NaN that one target uses."""
    scores = log_softmax(logits())
    scores[3, 0, 0] = np.nan
    return scores


@functools.partial(jax.jit, static_argnames=("loss", "implementation"))
def with_gradient(scores, loss, implementation):
    def total(scores):
        values = loss(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none", implementation=implementation)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(scores)
    return values, gradient


ROWS = {
    "log_probs": (jaxctc.ctc_loss, lambda: log_softmax(logits())),
    "no distribution": (jaxctc.ctc_loss, logits),
    "masked": (jaxctc.ctc_loss, masked),
    "padding": (jaxctc.ctc_loss, padded_with_nan),
    "NaN": (jaxctc.ctc_loss, non_finite),
    "logits": (jaxctc.ctc_loss_with_logits, logits),
    "padded logits": (jaxctc.ctc_loss_with_logits, padded_with_nan),
}
# Each implementation, loss and dtype compiles anew: in `make test` the two narrower dtypes have one loss each.
NARROW = {jnp.float32: jaxctc.ctc_loss, jnp.bfloat16: jaxctc.ctc_loss_with_logits}


def cases():
    """Every row in every dtype by every implementation, but that kernels compute in float32."""
    for implementation in ("xla", "gpu-loops", worker.INTERPRETED):
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16)[implementation == worker.INTERPRETED :]:
            for name, (loss, _) in ROWS.items():
                quick = implementation == "xla" and NARROW.get(dtype, loss) is loss
                quick |= implementation == "gpu-loops" and dtype == jnp.float64
                marks = [] if quick else [pytest.mark.full]
                yield pytest.param(
                    name, implementation, dtype, marks=marks, id=f"{name}-{implementation}-{dtype.__name__}"
                )


@pytest.mark.parametrize(("name", "implementation", "dtype"), [*cases()])
def test_the_implementations_agree(name, implementation, dtype):
    loss, scores = ROWS[name]
    if implementation == worker.INTERPRETED:
        worker.register_interpreted()
    if implementation == "gpu-loops":
        dispatch.register_gpu_loops("gpu-loops", turn=4)
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(scores(), dtype)
        reference, fast = (with_gradient(x, loss, name) for name in ("reference", implementation))
        tolerance = {jnp.float64: 1e-12, jnp.float32: 2e-5, jnp.bfloat16: 1e-2}[dtype]
        assert jnp.isposinf(fast[0][-1])
        for expected, found in zip(reference, fast, strict=True):
            assert found.dtype == expected.dtype
        (values, gradient), (fast_values, fast_gradient) = (
            [np.asarray(y.astype(jnp.float64 if dtype == jnp.float64 else jnp.float32)) for y in found]
            for found in (reference, fast)
        )
        np.testing.assert_allclose(fast_values, values, rtol=tolerance, atol=tolerance)
        # A row whose loss is NaN is NaN in every live frame, and in no other.
        np.testing.assert_allclose(fast_gradient, gradient, rtol=tolerance, atol=tolerance)
