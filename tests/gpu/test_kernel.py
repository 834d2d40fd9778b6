"""Test the kernels on a GPU: against XLA's loops on the same GPU, and against their own results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("absl", reason="Pallas's Mosaic GPU needs absl-py")

import jaxctc
from jaxctc._forward_backward import bidirectional, scaled_emissions, segments, sums
from jaxctc._kernels import gpu
from jaxctc._lattice import frame_map, lattices
from jaxctc._types import Layout, Problem, Request

pytestmark = pytest.mark.gpu

C = 32
REQUEST = Request(implementation="pallas", layout=Layout("cuda", column_multiple=128, segment_steps=16))
# T, N, S: rows of one tile, of two, of four, of as many as a strip can have, and two strips.
SHAPES = [(50, 16, 30), (501, 32, 100), (400, 8, 150), (1200, 4, 500), (2900, 2, 1400), (3000, 2, 1450)]


@pytest.fixture(autouse=True)
def _on_a_gpu_that_they_are_for():
    if reason := gpu.objection(jnp.dtype(jnp.float32)):
        pytest.skip(f"the kernels do not apply: {reason}")
    with jax.default_device(jax.devices("cuda")[0]):
        yield


@jax.jit
def emissions_of(problem):
    frames = len(problem.scores)
    lattice = lattices.build_lattice(problem, REQUEST)
    plan = frame_map.build_frame_map(lattice, segments.step_count(frames, 16))
    return scaled_emissions.build_emissions(problem.scores, lattice, REQUEST, plan)


def random_emissions(T, N, S, seed=0):
    """Return a batch of all lengths: full, without a frame, with too few frames, and with an empty target."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((T, N, C)) * 3
    scores = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    scores[T // 2, :, 0] = -200
    scores[T // 3, :, 3] = -np.inf
    targets = rng.integers(1, C, (N, S))
    input_lengths, target_lengths = rng.integers(T // 2, T + 1, N), rng.integers(0, S + 1, N)
    target_lengths = np.minimum(target_lengths, input_lengths // 2)
    input_lengths[0], target_lengths[0] = T, min(S, T // 2)
    input_lengths[1], target_lengths[1] = (0, 0) if seed % 2 else (S // 2, S)
    arrays = (jnp.asarray(x, jnp.int32) for x in (targets, input_lengths, target_lengths))
    return emissions_of(Problem(jnp.asarray(scores, jnp.float32), *arrays))


def specified(given, x, value=None):
    """Return x with zeros before the first live step and, given their log likelihoods, in infeasible sequences."""
    live = jnp.arange(x.shape[2])[None, None] >= given.first[:, :, None]
    if value is not None:
        live &= (value > -1e29)[:, None, None]
    return jnp.where(live.reshape(*live.shape, *[1] * (x.ndim - 3)), x, 0)


def run(module):
    """Return a function that returns the log likelihoods, alone and with the posterior, and what is specified of it."""

    def both(emissions):
        alone = module.likelihood(emissions)
        value, posterior = module.posterior(emissions, 16, every_blank=True)
        log_scale = sums.in_parts(scaled_emissions.peaks(emissions))
        alone, value = (sums.log_likelihood(x, log_scale) for x in (alone, value))
        return alone, value, [specified(emissions, x) for x in posterior]

    return jax.jit(both)


KERNELS, XLA = run(gpu), run(bidirectional)


@jax.jit
def equal(a, b):
    """Compare on the GPU, for there is much to compare."""
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(jnp.array_equal, a, b))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_those_of_xla(shape, seed):
    given = random_emissions(*shape, seed)
    alone, value, found = KERNELS(given)
    _, wanted, expected = XLA(given)
    np.testing.assert_array_equal(alone, value)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(specified(given, ours, wanted), specified(given, theirs, wanted), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_frame_sums_to_one(shape):
    given = random_emissions(*shape)
    _, value, found = KERNELS(given)
    label, blank, blanks = (specified(given, x, value) for x in found)
    expected = specified(given, jnp.ones_like(blank), value)
    np.testing.assert_allclose(label.sum(axis=3) + blank, expected, atol=5e-6)
    np.testing.assert_allclose(blanks.sum(axis=3), blank, atol=5e-6)


@pytest.mark.parametrize("copies", [1, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_thread_is_ever_too_early(shape, copies):
    """Results are the same bit for bit, however many blocks share the GPU, in whatever order they run."""
    given = jax.tree.map(lambda x: jnp.concatenate([x] * copies), random_emissions(*shape))
    once = KERNELS(given)
    # XLA compiles the rest for so many sequences in a way of its own: the copies agree with one another.
    first, last = (jax.tree.map(lambda x, i=i: x[i : i + shape[1]], once) for i in (0, (copies - 1) * shape[1]))
    assert equal(first, last)
    same = [equal(once, KERNELS(given)) for _ in range(50)]
    assert all(map(bool, same))


def test_a_mapped_batch_is_one_batch():
    batches = [random_emissions(50, 16, 30, seed) for seed in range(3)]
    mapped = jax.vmap(KERNELS)(jax.tree.map(lambda *x: jnp.stack(x), *batches))
    for k, given in enumerate(batches):
        for x, y in zip(jax.tree.leaves(mapped), jax.tree.leaves(KERNELS(given)), strict=True):
            np.testing.assert_allclose(x[k], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(50, 16, 30), (501, 32, 100), (3000, 2, 1450)])
def test_losses_and_gradients_from_logits(shape):
    """By the public function, against XLA's loops in float64 on the CPU."""
    T, N, S = shape
    rng = np.random.default_rng(2)
    logits, targets = rng.standard_normal((T, N, C)), rng.integers(1, C, (N, S))
    input_lengths, target_lengths = rng.integers(T * 9 // 10, T + 1, N), rng.integers(S // 2, S * 4 // 5, N)

    def of(logits, implementation):
        def total(logits):
            return jaxctc.ctc_loss_with_logits(
                logits, targets, input_lengths, target_lengths, reduction="sum", implementation=implementation
            )

        return jax.jit(jax.value_and_grad(total))(logits)

    value, gradient = of(jnp.asarray(logits, jnp.float32), "pallas")
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        exact, wanted = of(jnp.asarray(logits), "xla")
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, atol=2e-5)
