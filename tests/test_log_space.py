"""Test the table in the docstring of `log_space`, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc._reference.log_space import logaddexp
from jaxctc._types import LOG_ZERO

# (a, b), log(e^a + e^b), derivative in a
ROWS = [
    ((-1.0, -2.5), np.log(np.exp(-1.0) + np.exp(-2.5)), 1 / (1 + np.exp(-1.5))),
    ((-2.5, -1.0), np.log(np.exp(-1.0) + np.exp(-2.5)), np.exp(-1.5) / (1 + np.exp(-1.5))),
    ((-3.0, -3.0), -3 + np.log(2), 0.5),
    ((-500.0, -3000.0), -500.0, 1.0),
    ((-2.0, LOG_ZERO), -2.0, 1.0),
    ((LOG_ZERO, -2.0), -2.0, 0.0),
    ((LOG_ZERO, LOG_ZERO), LOG_ZERO, 0.5),
    ((2 * LOG_ZERO, LOG_ZERO), LOG_ZERO, 0.0),  # two zero probabilities were multiplied
]


@jax.jit
def value_slopes_and_curvature(a, b):
    total = lambda *operands: logaddexp(*operands).sum()  # noqa: E731
    return logaddexp(a, b), jax.grad(total, argnums=(0, 1))(a, b), jax.hessian(total, argnums=(0, 1))(a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("operands", "value", "fraction"), ROWS, ids=str)
def test_row(operands, value, fraction, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        a, b = (np.full((1, 1), x, dtype) for x in operands)
        got, slopes, curvature = value_slopes_and_curvature(a, b)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, [[value]], rtol=tolerance)
        np.testing.assert_allclose(slopes, [[[fraction]], [[1 - fraction]]], rtol=tolerance, atol=tolerance)
        expected = fraction * (1 - fraction) * np.array([[1, -1], [-1, 1]])
        np.testing.assert_allclose(np.reshape(curvature, (2, 2)), expected, rtol=tolerance, atol=tolerance)


def test_a_million_frames_of_zero_probability_do_not_overflow():
    assert jnp.isfinite(jnp.float32(LOG_ZERO) * 1_000_000)
    assert jnp.float32(LOG_ZERO) + jnp.float32(-1e4) < LOG_ZERO / 2
