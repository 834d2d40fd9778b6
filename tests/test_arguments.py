"""Every form in which a caller may write the arguments: one result."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc

T, N, C, S = 6, 4, 4, 3
BLANK = 2
TARGETS = np.array([[1, 1, 3], [0, 3, 0], [3, 0, 0], [0, 0, 0]], np.int32)
END_TO_END = np.array([1, 1, 3, 0, 3, 3], np.int32)
INPUT_LENGTHS = np.array([6, 4, 3, 5], np.int32)
TARGET_LENGTHS = np.array([3, 2, 1, 0], np.int32)
PROBLEM = TARGETS, INPUT_LENGTHS, TARGET_LENGTHS
SCORES = np.random.default_rng(0).normal(size=(T, N, C)) * 2


class Results(NamedTuple):
    losses: np.ndarray
    gradient: np.ndarray
    """Frames first, whatever the layout."""


class Entry(NamedTuple):
    function: object
    dtype: object
    batch_first: bool

    def scores(self, x):
        made = np.asarray(x, self.dtype)
        return jnp.asarray(np.swapaxes(made, 0, 1) if self.batch_first and made.ndim == 3 else made)

    def loss(self, x, *problem, reduction="none", **options):
        """As a user calls it, values at hand."""
        options |= {"blank": BLANK, "reduction": reduction, "batch_first": self.batch_first}
        return self.function(self.scores(x), *problem, **options)

    def traced(self, x, *problem, **options):
        """Loss and gradient under `jax.jit`, all arrays traced."""
        static = tuple({"blank": BLANK, "batch_first": self.batch_first, **options}.items())
        losses, gradient = _traced(self.function, static, self.scores(x), *(jnp.asarray(p) for p in problem))
        swapped = self.batch_first and gradient.ndim == 3
        return Results(np.asarray(losses), np.swapaxes(gradient, 0, 1) if swapped else np.asarray(gradient))


# One compilation for each shape and set of options: nearly all the time that these tests take.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _traced(function, static, scores, *problem):
    losses, pull_back = jax.vjp(lambda x: function(x, *problem, reduction="none", **dict(static)), scores)
    return losses, pull_back(jnp.ones_like(losses))[0]


PLAIN = Entry(jaxctc.ctc_loss, np.float32, False)
WIDE = Entry(jaxctc.ctc_loss_with_logits, np.float64, True)


@pytest.fixture(params=[PLAIN, WIDE], ids=["float32-TNC", "logits-float64-NTC"])
def entry(request):
    with jax.enable_x64(request.param is WIDE):
        yield request.param


def assert_close(got, want, rows=slice(None)):
    np.testing.assert_allclose(got.losses[rows], want.losses[rows], rtol=1e-6)
    np.testing.assert_allclose(got.gradient[:, rows], want.gradient[:, rows], atol=1e-6)


def test_reductions(entry):
    losses = np.asarray(entry.loss(SCORES, *PROBLEM))
    for reduction, want in (("mean", (losses / np.maximum(TARGET_LENGTHS, 1)).mean()), ("sum", losses.sum())):
        reduced = entry.loss(SCORES, *PROBLEM, reduction=reduction)
        assert reduced.shape == ()
        assert reduced.dtype == entry.dtype
        np.testing.assert_allclose(reduced, want, rtol=1e-6)


def test_an_empty_batch(entry):
    x, targets = np.zeros((T, 0, C)), np.zeros((0, S), np.int32)
    assert entry.loss(x, targets, [], []).shape == (0,)
    assert np.isnan(entry.loss(x, targets, [], [], reduction="mean"))
    assert entry.loss(x, targets, [], [], reduction="sum") == 0
    assert entry.traced(x, targets, np.zeros(0, int), np.zeros(0, int)).gradient.shape == (T, 0, C)


def test_no_frames(entry):
    got = entry.traced(np.zeros((0, 2, C)), TARGETS[:2], np.zeros(2, np.int32), np.array([0, 1], np.int32))
    assert got.losses.tolist() == [0, np.inf]
    assert got.gradient.shape == (0, 2, C)


@pytest.mark.parametrize("options", [{}, {"max_target_length": 5}], ids=str)
def test_targets_end_to_end(entry, options):
    want = entry.traced(SCORES, *PROBLEM)
    lengths = INPUT_LENGTHS, TARGET_LENGTHS
    assert_close(entry.traced(SCORES, END_TO_END, *lengths, **options), want)
    np.testing.assert_allclose(entry.loss(SCORES, END_TO_END, *lengths, **options), want.losses, rtol=1e-6)


def test_an_end_to_end_target_longer_than_the_input(entry):
    """Under `jax.jit` the width is bounded by T: the target is infeasible all the same, the others right."""
    targets = np.concatenate([np.resize([0, 3], T + 4), [3]]).astype(np.int32)
    got = entry.traced(SCORES, targets, INPUT_LENGTHS, np.array([T + 4, 0, 1, 0]))
    assert got.losses[0] == np.inf
    assert (got.gradient[:, 0] == 0).all()
    assert_close(got, entry.traced(SCORES, *PROBLEM), slice(2, None))


def test_end_to_end_targets_that_the_lengths_do_not_fit(entry):
    for lengths in ([3, 2, 1, 1], [3, 2, 0, 0], [3, 3, -1, 1], [2**31 - 1, 2**31 - 1, 4, 4]):
        got = entry.traced(SCORES, END_TO_END, INPUT_LENGTHS, np.array(lengths, np.int32))
        assert np.isnan(got.losses).all(), lengths


def test_one_sequence(entry):
    want = entry.traced(SCORES, *PROBLEM)
    for n in range(N):
        x, problem = SCORES[:, n], (TARGETS[n], INPUT_LENGTHS[n], TARGET_LENGTHS[n])
        loss, mean = (entry.loss(x, *problem, reduction=reduction) for reduction in ("none", "mean"))
        assert loss.shape == mean.shape == ()
        np.testing.assert_allclose(loss, want.losses[n], rtol=1e-6)
        np.testing.assert_allclose(mean, want.losses[n] / max(TARGET_LENGTHS[n], 1), rtol=1e-6)
        got = entry.traced(x, *problem)
        assert got.losses.shape == ()
        np.testing.assert_allclose(got.losses, want.losses[n], rtol=1e-6)
        assert got.gradient.shape == (T, C)
        np.testing.assert_allclose(got.gradient, want.gradient[:, n], atol=1e-6)


@pytest.mark.parametrize("function", [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits])
def test_integer_types_and_forms_of_lengths(function):
    entry = PLAIN._replace(function=function)
    want = entry.traced(SCORES, *PROBLEM).losses
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        np.testing.assert_allclose(entry.loss(SCORES, *(p.astype(dtype) for p in PROBLEM)), want, rtol=1e-6)
    for form in (list, tuple, np.asarray, jnp.asarray, lambda x: [np.int32(k) for k in x]):
        lengths = [form(p.tolist()) for p in PROBLEM[1:]]
        for targets in (TARGETS, TARGETS.tolist()):
            np.testing.assert_allclose(entry.loss(SCORES, targets, *lengths), want, rtol=1e-6)
    want = entry.traced(SCORES, TARGETS, np.full(N, 6, np.int32), np.full(N, 1, np.int32)).losses
    for six, one in ((6, 1), (np.int64(6), np.array(1)), (jnp.array(6), jnp.array(1))):
        np.testing.assert_allclose(entry.loss(SCORES, TARGETS, six, one), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64])
def test_traced_integer_types(dtype):
    want = PLAIN.traced(SCORES, *PROBLEM)
    with jax.enable_x64(dtype == np.int64):
        assert_close(PLAIN.traced(SCORES, *(p.astype(dtype) for p in PROBLEM)), want)
