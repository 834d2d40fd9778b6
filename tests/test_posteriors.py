"""Posteriors and statistics against every path there is; their derivatives against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._forward_backward import scaled_emissions
from jaxctc._tools.conformance.oracle import by_enumeration, paths_by_target

T, N, C, S, BLANK = 5, 24, 3, 3, 1


def batch(seed=0):
    """Sequences of every length, targets with and without a path; garbage in all that is padding."""
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(C), (T, N)))
    log_probs[rng.random((T, N, C)) < 0.05] = -np.inf
    targets, frames, counts = (rng.choice([0, 2], (N, S)), rng.integers(0, T + 1, N), rng.integers(0, S + 1, N))
    padding = np.arange(T)[:, None] >= frames
    log_probs[padding] = np.nan
    return log_probs, targets.astype(np.int32), frames.astype(np.int32), counts.astype(np.int32)


def states_of(path, blank):
    """The states of a path: 2 s for the blank after s labels, 2 s + 1 for label s."""
    states, before = [], blank
    labels = 0
    for k in path:
        labels += k not in (blank, before)
        states.append(2 * labels if k == blank else 2 * labels - 1)
        before = k
    return states


def by_every_path(problem):
    """States, classes, entropies, and each label's ratio to the best class."""
    states, classes = np.zeros((T, N, 2 * S + 1)), np.zeros((T, N, C))
    entropy, ratio = np.zeros(N), np.zeros((N, S))
    log_probs, targets, frames, counts = problem
    for n, t in enumerate(frames):
        scores, target = log_probs[:t, n], tuple(targets[n, : counts[n]].tolist())
        loss, classes[:t, n] = by_enumeration(scores, target, BLANK)
        if not np.isfinite(loss):
            continue
        for path in paths_by_target(int(t), C, BLANK)[target]:
            weight = np.exp(scores[np.arange(t), path].sum() + loss)
            states[np.arange(t), n, states_of(path, BLANK)] += weight
            entropy[n] -= weight * np.log(weight) if weight > 0 else 0
        for s, label in enumerate(target):
            occupied = states[:t, n, 2 * s + 1]
            behind = np.where(occupied > 0, scores[:, label] - scores.max(axis=1), 0)
            ratio[n, s] = (occupied * behind).sum() / occupied.sum()
    return states, classes, entropy, ratio


@pytest.mark.usefixtures("x64")
def test_every_path_counts():
    problem = batch()
    states, classes, entropy, ratio = by_every_path(problem)
    found, statistics = jaxctc.ctc_posteriors(*problem, BLANK), jaxctc.ctc_statistics(*problem, BLANK)
    np.testing.assert_allclose(found.states, states, atol=1e-12)
    np.testing.assert_allclose(found.classes, classes, atol=1e-12)
    np.testing.assert_allclose(statistics.entropy, entropy, atol=1e-12)
    np.testing.assert_allclose(statistics.frames, states[:, :, 1::2].sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(statistics.log_likelihood_ratio, ratio, atol=1e-12)
    loss = jaxctc.ctc_loss(*problem, BLANK, "none")
    np.testing.assert_array_equal(statistics.log_likelihood, -loss)
    assert 0 < np.isfinite(loss).sum() < N


@pytest.mark.usefixtures("x64")
def test_derivatives_are_those_of_differences():
    """Of the posteriors; those of the statistics follow, but for the entropy's, which is a loss of `variants`."""
    log_probs, *lattice = batch(1)
    log_probs = np.where(np.isnan(log_probs), 0, log_probs)
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=(T, N, k)) for k in (2 * S + 1, C)]

    @jax.jit
    @jax.value_and_grad
    def weighed(scores):
        """Everything in one number."""
        found = jaxctc.ctc_posteriors(scores, *lattice, BLANK)
        return sum((x * w).sum() for x, w in zip(found, weights, strict=True))

    finite, step = np.isfinite(log_probs), 1e-5
    direction = np.where(finite, rng.normal(size=log_probs.shape), 0)
    base = np.where(finite, log_probs, -1e30)
    difference = (weighed(base + step * direction)[0] - weighed(base - step * direction)[0]) / (2 * step)
    _, slope = weighed(base)
    np.testing.assert_allclose((slope * direction).sum(), difference, rtol=1e-6)


def test_long_inputs_keep_their_digits():
    rng = np.random.default_rng(3)
    log_probs = rng.normal(size=(600, 2, 8)) * 4
    log_probs = (log_probs - np.log(np.exp(log_probs).sum(axis=2, keepdims=True))).astype(np.float32)
    targets, frames, counts = rng.integers(1, 8, (2, 90)).astype(np.int32), np.array([600, 411]), [90, 71]
    states, classes = (np.asarray(x) for x in jaxctc.ctc_posteriors(log_probs, targets, frames, counts))
    live = np.arange(600)[:, None] < frames
    np.testing.assert_allclose(states.sum(axis=2), live, atol=2e-5)
    np.testing.assert_allclose(states[:, :, ::2].sum(axis=2), classes[:, :, 0], atol=2e-5)
    for n, count in enumerate(counts):
        folded = np.zeros((600, 8))
        np.add.at(folded, (slice(None), targets[n, :count]), states[:, n, 1 : 2 * count : 2])
        np.testing.assert_allclose(classes[:, n, 1:], folded[:, 1:], atol=1e-6)


def test_broken_rows_are_nan_and_touch_no_others():
    log_probs, targets, frames, counts = batch(4)
    frames[:3], counts[:3] = T, 1
    log_probs = np.where(np.isnan(log_probs), 0, log_probs).astype(np.float32)
    posteriors = jax.jit(lambda *x: jaxctc.ctc_posteriors(*x, BLANK))
    want = posteriors(log_probs, targets, frames, counts)
    log_probs[2, 0] = np.nan
    targets[1, 0] = 7
    found = posteriors(log_probs, targets, frames, counts)
    statistics = jax.jit(lambda *x: jaxctc.ctc_statistics(*x, BLANK))(log_probs, targets, frames, counts)
    for x, y in zip(found, want, strict=True):
        assert np.isnan(x[:, :2]).all()
        np.testing.assert_array_equal(x[:, 2:], y[:, 2:])
    assert np.isnan(statistics.entropy[:2]).all()
    assert not np.isnan(statistics.entropy[2:]).any()


def test_what_is_not_used_or_not_possible_changes_nothing():
    log_probs = np.log(np.array([[0.5, 0.3, 0.2]] * 3, np.float32))
    spoiled = log_probs.copy()
    spoiled[:, 2] = np.nan

    @jax.jit
    @jax.value_and_grad
    def one(scores):
        states, classes = jaxctc.ctc_posteriors(scores, np.array([1]), 3, 1)
        return states[1, 1] + classes[2, 0]

    # A label of probability zero: no path is left, and nothing to be changed.
    masked = log_probs.copy()
    masked[:, 1] = -np.inf
    _, lost = one(masked)
    assert not lost.any()
    (want, slope), (value, found) = (one(x) for x in (log_probs, spoiled))
    assert value == want
    np.testing.assert_array_equal(found, slope)


def test_one_sequence_and_the_batch_first():
    log_probs, targets, frames, counts = batch(5)
    log_probs = log_probs.astype(np.float32)
    n = int(counts.argmax())
    want = jaxctc.ctc_posteriors(log_probs, targets, frames, counts, BLANK)
    turned = jaxctc.ctc_posteriors(log_probs.swapaxes(0, 1), targets, frames, counts, BLANK, batch_first=True)
    alone = log_probs[:, n], targets[n, : counts[n]], frames[n], counts[n], BLANK
    for x, y, one in zip(want, turned, jaxctc.ctc_posteriors(*alone), strict=True):
        np.testing.assert_allclose(y.swapaxes(0, 1), x, atol=1e-6)
        np.testing.assert_allclose(one, x[:, n, : one.shape[-1]], atol=1e-6)
    statistics = jax.eval_shape(lambda *x: jaxctc.ctc_statistics(*x, BLANK), *alone[:4])
    assert [x.shape for x in statistics] == [(), (), (counts[n],), (counts[n],)]


def test_a_target_longer_than_the_input_and_no_frames_at_all():
    states, classes = jaxctc.ctc_posteriors(np.zeros((2, 1, 3), np.float32), [[1, 2, 1, 2, 1, 2]], 2, 6)
    assert states.shape == (2, 1, 13)
    assert not states.any()
    assert not classes.any()
    states, classes = jaxctc.ctc_posteriors(np.zeros((0, 2, 3), np.float32), np.zeros((2, 1), int), 0, 0)
    assert states.shape == (0, 2, 3)
    assert classes.shape == (0, 2, 3)


def test_what_is_not_used_is_not_computed():
    """Without the classes no product that folds labels into them is left."""
    log_probs, *lattice = batch(6)
    log_probs = jnp.asarray(log_probs, jnp.float32)

    def compiled(pick):
        return jax.jit(lambda x: pick(jaxctc.ctc_posteriors(x, *lattice, BLANK))).lower(log_probs).compile().as_text()

    assert f"f32[{T},{N},{C}]{{" in compiled(lambda x: x).split("ENTRY")[1].split("ROOT")[1]
    assert " dot(" in compiled(lambda x: x.classes)
    assert " dot(" not in compiled(lambda x: x.states)


def test_scores_that_are_not_kept(monkeypatch):
    """What does not fit is made twice: for the states, and for the classes."""
    rng = np.random.default_rng(0)
    problem = rng.normal(size=(90, 2, 5)).astype(np.float32), rng.integers(1, 5, (2, 7)), [90, 61], [7, 4]
    want = jaxctc.ctc_posteriors(*problem)
    monkeypatch.setattr(scaled_emissions, "_LARGE", 0)
    padded = np.pad(problem[0], ((0, 1), (0, 0), (0, 0)))  # or JAX would find the program that it has
    for x, y in zip(jaxctc.ctc_posteriors(padded, *problem[1:]), want, strict=True):
        np.testing.assert_allclose(x[:90], y, atol=1e-6)
