"""Compare the best path with all paths, and with a plain implementation of the recursion."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._lattice import lattices
from jaxctc._reference import viterbi
from jaxctc._tools.conformance.oracle import log_softmax, paths_by_target
from jaxctc._types import Problem, Request

T, N, C, S = 6, 48, 3, 3


def batch(seed=0, blank=0, draw=None):
    """Return a batch with targets of every length that fits, and with sequences of different lengths."""
    rng = np.random.default_rng(seed)
    scores = np.log(rng.dirichlet(np.ones(C), (T, N))) if draw is None else draw(rng)
    labels = [c for c in range(C) if c != blank]
    targets, lengths = np.full((N, S), -7, np.int32), np.zeros((2, N), np.int32)
    for n in range(N):
        target = rng.choice(labels, rng.integers(0, S + 1))
        needed = len(target) + (target[1:] == target[:-1]).sum()
        targets[n, : len(target)] = target
        lengths[:, n] = rng.integers(min(needed, T), T + 1), len(target)
    return scores.astype(np.float32), targets, *lengths


def oracle(scores, target, blank):
    """Align one sequence in float64; among equal predecessors prefer the state itself, then the nearest state."""
    states = [blank]
    for label in target:
        states += [label, blank]
    best, ways = {0: 0.0}, []
    for frame in np.asarray(scores, np.float64):
        after, came = {}, {}
        for s, label in enumerate(states):
            steps = [0, 1] + ([2] if s % 2 and (s == 1 or label != states[s - 2]) else [])
            # Before the first frame stands a blank: label 0 lies one step from it.
            values = [best.get(s - step, -np.inf) for step in steps]
            came[s] = steps[int(np.argmax(values))]
            after[s] = max(values) + frame[label]
        best = after
        ways.append(came)
    end = len(states) - 1
    if len(states) > 1 and not best[end] > best[end - 1]:
        end -= 1
    path = []
    for came in reversed(ways):
        path.append(states[end])
        end -= came[end]
    return path[::-1]


@pytest.mark.parametrize("blank", [0, 2])
def test_no_path_is_better(blank):
    scores, targets, frames, counts = batch(blank=blank)
    labels, found = jaxctc.forced_align(scores, targets, frames, counts, blank)
    for n, (t, length) in enumerate(zip(frames, counts, strict=True)):
        paths = paths_by_target(int(t), C, blank)[tuple(targets[n, :length].tolist())]
        totals = scores[np.arange(t), n, paths].astype(np.float64).sum(axis=1)
        np.testing.assert_array_equal(labels[n, :t], paths[totals.argmax()])
        np.testing.assert_array_equal(found[n, :t], scores[np.arange(t), n, labels[n, :t]])
        assert (labels[n, t:] == blank).all()
        assert not found[n, t:].any()


def test_ties_go_to_the_state_itself_and_then_to_the_nearest():
    scores, targets, frames, counts = batch(1, draw=lambda rng: rng.integers(-2, 1, (T, N, C)))
    labels, _ = jaxctc.forced_align(scores, targets, frames, counts)
    for n, (t, length) in enumerate(zip(frames, counts, strict=True)):
        assert labels[n, :t].tolist() == oracle(scores[:t, n], targets[n, :length], 0)


@pytest.mark.parametrize("layout", [{}, {"batch_first": True}])
def test_the_same_as_torchaudio(layout):
    torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is not installed")
    import torch

    scores, targets, frames, counts = batch(2)
    given = scores.swapaxes(0, 1) if layout else scores
    labels, found = jaxctc.forced_align(given, targets, frames, counts, **layout)
    for n in np.flatnonzero(counts):
        rows = torch.from_numpy(scores[: frames[n], n][None].copy())
        target = torch.from_numpy(targets[None, n, : counts[n]].copy())
        theirs = torchaudio.functional.forced_align(rows, target)
        np.testing.assert_array_equal(labels[n, : frames[n]], theirs[0][0])
        np.testing.assert_array_equal(found[n, : frames[n]], theirs[1][0])
        spans = torchaudio.functional.merge_tokens(theirs[0][0], theirs[1][0])
        ours = jaxctc.merge_tokens(labels[n, : frames[n]], found[n, : frames[n]])
        assert [(x.token, x.start, x.end) for x in ours] == [(x.token, x.start, x.end) for x in spans]
        np.testing.assert_allclose([x.score for x in ours], [x.score for x in spans], rtol=1e-6)


@pytest.mark.parametrize("segment_frames", [1, 34, 75])
def test_recomputed_frames_give_the_same_path(segment_frames):
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.normal(size=(75, 2, 5)), jnp.float32)
    arrays = rng.integers(1, 5, (2, 20)), [75, 61], [20, 17]
    problem, request = Problem(scores, *(jnp.asarray(x, jnp.int32) for x in arrays)), Request()
    lattice = lattices.build_lattice(problem, request)
    want, score = viterbi.best_path(scores, lattice, request)
    path, recomputed = viterbi.best_path(scores, lattice, request, segment_frames)
    np.testing.assert_array_equal(path, want)
    np.testing.assert_array_equal(recomputed, score)


def test_backpointers_of_long_inputs_are_not_all_stored():
    assert viterbi.segment_size(1000, 1000) == 1000
    assert viterbi.segment_size(1_000_000, 1000) == 4000


def test_an_infeasible_target_is_named():
    scores = np.zeros((4, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"targets\[1\] cannot be aligned: 3 labels, 1 of them equal .* take 4 frames"):
        jaxctc.forced_align(scores, [[1, 2, 1], [1, 1, 2]], [4, 3], [3, 3])
    with pytest.raises(ValueError, match=r"targets cannot be aligned: 2 labels, 0 of them .* input_lengths is 1"):
        jaxctc.forced_align(scores[:, 0], [1, 2], 1, 2)


def test_rows_without_a_path_touch_no_others():
    scores, targets, frames, counts = batch(4)
    frames[:], counts[:5], targets[:5] = T, 2, [1, 2, 0]
    want = jaxctc.forced_align(scores, targets, frames, counts)
    scores[:, 0, 1] = -np.inf  # every path has a score of -inf
    scores[2, 1, 2] = np.nan
    targets[2, 0], frames[3], frames[4] = 9, 1, T + 1  # an illegal label, too few frames, an illegal length
    scores[0, 3] = np.nan
    labels, found = jax.jit(jaxctc.forced_align)(scores, targets, frames, counts)
    np.testing.assert_array_equal(labels[:5], -1)
    np.testing.assert_array_equal(found[:3], np.full((3, T), [[-np.inf], [np.nan], [np.nan]]))
    np.testing.assert_array_equal(found[3], [-np.inf] + [0] * (T - 1))
    assert np.isnan(found[4]).all()
    np.testing.assert_array_equal(labels[5:], want.labels[5:])


def test_one_sequence_and_other_layouts():
    scores, targets, frames, counts = batch(5)
    want = jaxctc.forced_align(scores, targets, frames, counts)
    n = int(counts.argmax())
    one = jaxctc.forced_align(scores[:, n], targets[n, : counts[n]], frames[n], counts[n])
    turned = jaxctc.forced_align(scores.swapaxes(0, 1), targets, frames, counts, batch_first=True)
    end_to_end = np.concatenate([row[:count] for row, count in zip(targets, counts, strict=True)])
    np.testing.assert_array_equal(one.labels, want.labels[n])
    for other in (turned, jaxctc.forced_align(scores, end_to_end, frames, counts)):
        np.testing.assert_array_equal(other.labels, want.labels)
        np.testing.assert_array_equal(other.scores, want.scores)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_scores_have_the_dtype_of_the_input(dtype):
    scores, targets, frames, counts = batch(6)
    labels, found = jaxctc.forced_align(jnp.asarray(scores, dtype), targets, frames, counts)
    assert found.dtype == dtype
    assert [len(x) for x in jaxctc.merge_tokens(labels, found)] == counts.tolist()


@pytest.mark.parametrize("shape", [(0, 2, 3), (3, 0, 3)])
def test_nothing_to_align(shape):
    labels, found = jaxctc.forced_align(np.zeros(shape, np.float32), np.zeros((shape[1], 0), np.int32), shape[0], 0)
    assert labels.shape == found.shape == (shape[1], shape[0])


def test_spans():
    labels, scores = [0, 1, 1, 0, 1, 2, 2], [0.9, 0.25, 0.75, 0.8, 0.6, 0.1, 0.3]
    spans = jaxctc.merge_tokens(labels, scores)
    assert [(x.token, x.start, x.end, len(x)) for x in spans] == [(1, 1, 3, 2), (1, 4, 5, 1), (2, 5, 7, 2)]
    np.testing.assert_allclose([x.score for x in spans], [0.5, 0.6, 0.2])
    assert jaxctc.merge_tokens([labels, [0] * 7, [-1] * 7], [scores] * 3) == [spans, [], []]
    assert [x.token for x in jaxctc.merge_tokens(labels, scores, blank=2)] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"the same shape, \(T,\) or \(N, T\); got \(7,\) and \(6,\)"):
        jaxctc.merge_tokens(labels, scores[:6])


def test_real_speech(shared_data):
    emission = np.load(shared_data / "libri_emission.npz")
    log_probs = log_softmax(emission["logits"]).astype(np.float32)
    letters = "".join(emission["labels"].tolist())
    target = [letters.index(c) for c in str(emission["text"])]
    labels, scores = jaxctc.forced_align(log_probs, np.array(target), len(log_probs), len(target), 28)
    assert labels.tolist() == oracle(log_probs, target, 28)
    spans = jaxctc.merge_tokens(labels, scores, 28)
    assert [x.token for x in spans] == target
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
