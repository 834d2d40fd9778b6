"""The recursion at both ends against the plain one, which it shares nothing with but the scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._forward_backward import bidirectional, scaled_emissions, segments, sums
from jaxctc._lattice import frame_map, lattices
from jaxctc._reference import log_emissions, recursion
from jaxctc._types import Problem, Request

N, C, S = 4, 5, 6


def problem(frames, dtype, seed=0):
    """Each sequence of another length, the first as long as can be, the last without a frame."""
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(C) * 0.3, size=(frames, N)))
    targets = rng.integers(1, C, (N, S)).astype(np.int32)
    targets[:, 1] = targets[:, 0]
    input_lengths = rng.integers(frames // 2, frames + 1, N).astype(np.int32)
    input_lengths[0], input_lengths[-1] = frames, 0
    target_lengths = np.minimum(rng.integers(0, S + 1, N), input_lengths // 2).astype(np.int32)
    return Problem(jnp.asarray(log_probs, dtype), *map(jnp.asarray, (targets, input_lengths, target_lengths)))


@jax.jit
def plain(problem):
    """Log likelihoods, and the posterior of each label: the derivative with respect to its own score."""
    lattice = lattices.build_lattice(problem, Request())
    # The last column is the blank's, and no label's.
    scores = jnp.take_along_axis(problem.scores, lattice.labels[None], axis=2)

    def total(scores):
        emitted = recursion.LogStates(scores[:, :, -1:], scores)
        value = recursion.log_likelihood(emitted, log_emissions.topology_of(lattice))
        return value.sum(), value

    (_, value), posterior = jax.value_and_grad(total, has_aux=True)(scores)
    return value, posterior


@functools.partial(jax.jit, static_argnames=("size", "keep"))
def both_ends(problem, first=None, size=None, keep=True):
    """Of the steps that there must be, none before `first` is taken."""
    lattice, frames = lattices.build_lattice(problem, Request()), len(problem.scores)
    size = size or segments.segment_size(frames, lattice, problem.scores.dtype)
    plan = frame_map.build_frame_map(lattice, segments.step_count(frames, size))
    walk = scaled_emissions.build_emissions(problem.scores, lattice, Request(), plan, size, keep=keep)
    start = 0 if first is None else walk.steps - -(-frames // 2) + first
    alone = bidirectional.likelihood(walk, start, size)
    value, posterior = bidirectional.posterior(walk, size, start)
    taken_out = sums.in_parts(scaled_emissions.peaks(walk))
    return *(sums.log_likelihood(x, taken_out) for x in (value, alone)), posterior


@functools.partial(jax.jit, static_argnums=1)
def steps(problem, count):
    return frame_map.steps_of_frames(lattices.build_lattice(problem, Request()), len(problem.scores), count)


def by_frame(problem, posterior):
    """(T, N, W), in the order of the target, from each direction's own order of steps and labels."""
    direction, step, label, blank = (
        np.asarray(x) for x in (*steps(problem, posterior.label.shape[2]), posterior.label, posterior.blank)
    )
    made = np.zeros((len(problem.scores), N, label.shape[3]))
    for n, (frames, length) in enumerate(np.stack([problem.input_lengths, problem.target_lengths], axis=1)):
        for t in range(frames):
            row = label[n, direction[n, t], step[n, t], :length]
            made[t, n, :length] = row[::-1] if direction[n, t] else row
            made[t, n, -1] = blank[n, direction[n, t], step[n, t]]
    return made


def assert_agree(problem, got, tolerance):
    (want, gradient), (value, alone, posterior) = plain(problem), got
    np.testing.assert_allclose(value, want, rtol=tolerance)
    np.testing.assert_allclose(alone, want, rtol=tolerance)
    np.testing.assert_allclose(by_frame(problem, posterior), gradient, atol=tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("frames", [1, 2, pytest.param(3, marks=pytest.mark.full), 12, 13])
def test_agrees_with_the_plain_recursion(frames):
    batch = problem(frames, jnp.float64)
    assert_agree(batch, both_ends(batch), 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("frames", "size", "keep"),
    [
        (1, 2, False),
        (36, 4, True),
        (36, 4, False),
        (75, 8, False),
        pytest.param(1, 2, True, marks=pytest.mark.full),
        pytest.param(75, 8, True, marks=pytest.mark.full),
    ],
)
def test_agrees_where_states_are_walked_again(frames, size, keep):
    """And the scores are made again too, if they are not kept."""
    batch = problem(frames, jnp.float64)
    # Some frames all but forbid the blank, and have what is left of it in the segments' last steps.
    batch = batch._replace(scores=batch.scores.at[3::4, :, 0].set(-200.0))
    assert_agree(batch, both_ends(batch, size=size, keep=keep), 1e-12)


@pytest.mark.parametrize(
    "function",
    [
        jaxctc.ctc_loss_with_logits,
        jax.grad(jaxctc.ctc_loss_with_logits),
        lambda *problem: jaxctc.ctc_posteriors(*problem).classes,
    ],
    ids=["loss", "gradient", "posteriors"],
)
def test_long_recordings_take_little_memory(function):
    """The scores of all labels at all frames, 0.8 GB, are nowhere kept; nor are the states."""
    problem = jax.ShapeDtypeStruct((20_000, 1, 32), jnp.float32), jax.ShapeDtypeStruct((1, 10_000), jnp.int32)
    compiled = jax.jit(function).lower(*problem, *[jax.ShapeDtypeStruct((1,), jnp.int32)] * 2).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1e9


@pytest.mark.usefixtures("x64")
def test_steps_that_no_sequence_needs_are_left_out():
    """The same result however many of them there are, up to none at all that are computed."""
    batch = problem(36, jnp.float64)
    batch = batch._replace(input_lengths=jnp.asarray([15, 12, 9, 0], jnp.int32))
    scores = batch.scores.at[15:].set(jnp.nan)
    for start in (0, 3, 10):  # 18 steps, of which 8 are needed
        assert_agree(batch, both_ends(batch._replace(scores=scores), start, size=4), 1e-12)


@pytest.mark.parametrize("frames", [2, pytest.param(13, marks=pytest.mark.full), 400])
def test_every_live_frame_sums_to_one_in_float32(frames):
    batch = problem(frames, jnp.float32)
    posterior = by_frame(batch, both_ends(batch)[2])
    assert (posterior >= 0).all()
    live = np.arange(frames)[:, None] < np.asarray(batch.input_lengths)
    np.testing.assert_allclose(posterior.sum(axis=2), live, atol=2e-6)


def test_float32_keeps_its_digits_however_long_the_input():
    """A thousand frames and more: the posterior is as exact as that of ten."""
    batch = problem(1501, jnp.float32)
    with jax.enable_x64(True):
        wide = both_ends(batch._replace(scores=batch.scores.astype(jnp.float64)))
    for narrow, exact in zip(jax.tree.leaves(both_ends(batch)[2]), jax.tree.leaves(wide[2]), strict=True):
        np.testing.assert_allclose(narrow, exact, atol=5e-6)


def test_a_float32_loss_is_rounded_about_once():
    """However many frames it is a sum of."""
    errors = []
    for seed in range(8):
        batch = problem(1501, jnp.float32, seed)
        with jax.enable_x64(True):
            exact = np.asarray(both_ends(batch._replace(scores=batch.scores.astype(jnp.float64)))[0])
        narrow = np.asarray(both_ends(batch)[:2], np.float64)
        errors.append(np.abs((narrow - exact) / np.spacing(exact.astype(np.float32))))
    assert np.max(errors) < 0.7


def test_a_frame_that_all_but_forbids_the_blank():
    """Its states keep a power of two of their own: far below float32's range, and exact all the same."""
    with jax.enable_x64(True):
        batch = problem(13, jnp.float64)
        for forbidden in (-150.0, -5e3, -1e9, -np.inf):
            scores = batch.scores.at[4:6, :, 0].set(forbidden)
            got = both_ends(batch._replace(scores=scores))
            scores = jnp.maximum(scores, -1e30)
            assert_agree(batch._replace(scores=scores), got, 1e-9 if forbidden == -1e9 else 1e-11)


def test_a_nan_is_found_in_a_large_batch():
    """XLA on a CPU leaves NaN out of a maximum of more than about 8,000 numbers."""
    frames, sequences, labels = 64, 16, 40
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 12, (sequences, labels)).astype(np.int32)
    scores = rng.normal(size=(frames, sequences, 12)).astype(np.float32)
    for n in range(1, sequences):
        scores[3 * n, n, targets[n, 2 * n]] = np.nan
    lengths = np.full(sequences, frames, np.int32), np.full(sequences, labels, np.int32)

    @jax.jit
    def non_finite(scores):
        lattice = lattices.build_lattice(Problem(scores, jnp.asarray(targets), *map(jnp.asarray, lengths)), Request())
        steps = frame_map.build_frame_map(lattice, frames // 2)
        emissions = scaled_emissions.build_emissions(scores, lattice, Request(), steps)
        return jnp.isnan(scaled_emissions.peaks(emissions)).any(axis=0)

    np.testing.assert_array_equal(non_finite(scores), np.arange(sequences) > 0)
