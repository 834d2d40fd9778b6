"""The posterior, which meets in the middle, against the derivative of the plain forward recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc import _recursion

N, W = 4, 6


def problem(frames, dtype, seed=0):
    rng = np.random.default_rng(seed)
    emissions = -rng.exponential(3.0, size=(frames, N, W))
    skip = rng.random((N, W)) < 0.6
    skip[:, 0] = True
    input_lengths = rng.integers(frames // 2, frames + 1, N)
    input_lengths[0] = frames
    target_lengths = np.minimum(rng.integers(0, W, N), input_lengths // 2)
    live = np.arange(frames)[:, None] < input_lengths
    emissions = np.where(live[:, :, None], emissions, 0)
    return (
        jnp.asarray(emissions, dtype),
        jnp.asarray(skip),
        *(jnp.asarray(x, jnp.int32) for x in (input_lengths, target_lengths)),
    ), live


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("frames", [1, 2, 3, 12, 13])
def test_both_directions_agree_with_the_forward_recursion(frames):
    arguments, live = problem(frames, jnp.float64)
    emissions, *lattice = arguments
    plain, gradient = jax.jit(jax.value_and_grad(lambda e: _recursion.log_likelihood(e, *lattice).sum()))(emissions)
    value, posterior = jax.jit(_recursion.posterior)(*arguments)
    np.testing.assert_allclose(value.sum(), plain, rtol=1e-13)
    np.testing.assert_allclose(_recursion.forward_log_likelihood(*arguments), value, rtol=1e-13)
    posterior = np.where(live[:, :, None], posterior, 0)
    np.testing.assert_allclose(posterior, gradient, atol=1e-13)


@pytest.mark.parametrize("frames", [2, 13, 400])
def test_every_live_frame_sums_to_one_in_float32(frames):
    arguments, live = problem(frames, jnp.float32)
    _, posterior = jax.jit(_recursion.posterior)(*arguments)
    assert (posterior >= 0).all()
    np.testing.assert_allclose(posterior.sum(axis=2)[live], 1, atol=frames * 2e-7 + 2e-7)


@pytest.mark.usefixtures("x64")
def test_the_likelihood_that_comes_with_the_posterior_is_differentiable_too():
    arguments, _ = problem(6, jnp.float64)
    emissions, *lattice = arguments
    expected = jax.grad(lambda e: _recursion.log_likelihood(e, *lattice).sum())(emissions)
    gradient = jax.grad(lambda e: _recursion.posterior(e, *lattice)[0].sum())(emissions)
    np.testing.assert_allclose(gradient, expected, atol=1e-13)
