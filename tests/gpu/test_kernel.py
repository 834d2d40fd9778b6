"""The kernels on a GPU, against the loops that they replace on the same GPU, and against themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("absl", reason="Pallas's Mosaic GPU needs absl-py")

from jaxctc import _both_ends, _lattice, _walk
from jaxctc._kernels import _gpu
from jaxctc._types import Options, Problem

pytestmark = pytest.mark.gpu

C = 32
# T, N, S: rows of one tile, of two, of four and of as many as there can be.
SHAPES = [(50, 16, 30), (501, 32, 100), (400, 8, 150), (1200, 4, 500), (2900, 2, 1400)]


@pytest.fixture(autouse=True)
def _on_a_gpu_that_they_are_for():
    if reason := _gpu.objection(jnp.dtype(jnp.float32)):
        pytest.skip(f"the kernels do not apply: {reason}")
    with jax.default_device(jax.devices("cuda")[0]):
        yield


def walk(T, N, S, seed=0):
    """Of all lengths: full, none, too few frames for the target; and of an empty target."""
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
    problem = Problem(jnp.asarray(scores, jnp.float32), *arrays)
    lattice = _lattice.build(problem, Options())
    plan = _walk.schedule(lattice, T, _both_ends.even(T, 16))
    return _walk.build(problem.scores, None, lattice, Options(), plan)


def run(module):
    def both(walk):
        alone = module.likelihood(walk)
        value, posterior = module.posterior(walk, 16, every_blank=True)
        return [_walk.log_likelihood(walk, x) for x in (alone, value)], posterior

    return jax.jit(both)


KERNELS, LOOPS = run(_gpu), run(_both_ends)


def specified(given, x, value=None):
    """The rows from the first live step on, and of sequences that are possible."""
    live = np.arange(x.shape[2]) >= np.asarray(given.first)[:, :, None]
    if value is not None:
        live &= np.asarray(value > -1e29)[:, None, None]
    return np.where(live.reshape(*live.shape, *[1] * (x.ndim - 3)), x, 0)


def results(given):
    values, found = KERNELS(given)
    return [*map(np.asarray, values), *(specified(given, x) for x in found)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_those_of_the_loops(shape, seed):
    given = walk(*shape, seed)
    (alone, value), found = KERNELS(given)
    (_, wanted), expected = LOOPS(given)
    np.testing.assert_array_equal(alone, value)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(specified(given, ours, wanted), specified(given, theirs, wanted), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_frame_sums_to_one(shape):
    given = walk(*shape)
    (value, _), found = KERNELS(given)
    label, blank, blanks = (specified(given, x, value) for x in found)
    expected = specified(given, np.ones_like(blank), value)
    np.testing.assert_allclose(label.sum(axis=3) + blank, expected, atol=5e-6)
    np.testing.assert_allclose(blanks.sum(axis=3), blank, atol=5e-6)


@pytest.mark.parametrize("copies", [1, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_thread_is_ever_too_early(shape, copies):
    """Bit for bit the same, however many blocks share the GPU, in whatever order they run."""
    given = jax.tree.map(lambda x: jnp.concatenate([x] * copies), walk(*shape))
    once = results(given)
    for _ in range(100):
        for x, y in zip(once, results(given), strict=True):
            np.testing.assert_array_equal(x, y)
    for x in once:
        np.testing.assert_allclose(x, np.concatenate([x[: shape[1]]] * copies), rtol=1e-5, atol=1e-6)


def test_a_mapped_batch_is_one_batch():
    walks = [walk(50, 16, 30, seed) for seed in range(3)]
    values, found = jax.vmap(KERNELS)(jax.tree.map(lambda *x: jnp.stack(x), *walks))
    for k, given in enumerate(walks):
        mapped = [*(np.asarray(x[k]) for x in values), *(specified(given, x[k]) for x in found)]
        for x, y in zip(mapped, results(given), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
