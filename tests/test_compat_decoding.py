"""Compare the decoders that have another library's signature with all paths, and with the originals."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compat import as_peers_like_it

from jaxctc import compat
from jaxctc._tools.conformance.oracle import log_softmax, paths_by_target

T, N, C, PATHS = 5, 4, 4, 6
LENGTHS = np.array([5, 0, 4, 1])
WIDE = 160
"""More prefixes than four classes can spell in five frames."""


def logits(dtype=np.float32):
    """Return logits with an offset, so that it shows whether they were normalized."""
    return (2 * np.random.default_rng(0).normal(size=(N, T, C)) + 3).astype(dtype)


def padded(labels, width=T):
    return [*labels, *[-1] * (width - len(labels))]


def best_path(scores, length, blank, merge_repeated):
    path = [int(k) for k in scores[:length].argmax(axis=1)]
    kept = [k for i, k in enumerate(path) if k != blank and not (merge_repeated and i and k == path[i - 1])]
    return padded(kept), -sum(float(x) for x in scores[:length].max(axis=1))


def best_labellings(scores, length, blank):
    """Return the labels and the log probabilities of the best labellings, by all paths."""
    log_probs, frames = log_softmax(scores)[:length], np.arange(length)
    found = {
        target: np.logaddexp.reduce(log_probs[frames, paths].sum(axis=1))
        for target, paths in paths_by_target(length, C, blank).items()
    }
    best = sorted(found, key=found.get, reverse=True)[:PATHS]
    missing = PATHS - len(best)
    return [padded(x) for x in best] + missing * [padded([])], [*(found[x] for x in best), *missing * [-np.inf]]


BLANKS = [(0, 0), (2, 2), (C - 1, None), (C - 2, -2)]


@pytest.mark.parametrize("merge_repeated", [True, False])
def test_greedy(merge_repeated):
    scores = logits()
    for blank, given in BLANKS:
        want = [best_path(row, length, blank, merge_repeated) for row, length in zip(scores, LENGTHS, strict=True)]
        labels, sums = compat.keras_ctc_decode(scores, LENGTHS, merge_repeated=merge_repeated, mask_index=given)
        np.testing.assert_array_equal(labels, [[x for x, _ in want]])
        np.testing.assert_allclose(sums, [[x] for _, x in want], rtol=1e-6)
        assert not np.signbit(sums[1])  # no frames
        (found,), same = compat.tensorflow_ctc_greedy_decoder(scores.swapaxes(0, 1), LENGTHS, merge_repeated, given)
        np.testing.assert_array_equal(found, labels[0])
        np.testing.assert_array_equal(same, sums)


def test_beam_search(x64):
    del x64
    scores = logits(np.float64)
    for blank, given in BLANKS:
        want = [best_labellings(row, length, blank) for row, length in zip(scores, LENGTHS, strict=True)]
        options = {"beam_width": WIDE, "top_paths": PATHS, "mask_index": given}
        labels, log_probs = compat.keras_ctc_decode(scores, LENGTHS, "beam_search", **options)
        assert labels.dtype == jnp.int32
        np.testing.assert_array_equal(labels, np.swapaxes([x for x, _ in want], 0, 1))
        np.testing.assert_allclose(log_probs, [x for _, x in want], rtol=1e-9, atol=1e-12)
        if blank == C - 1:
            decoded, same = compat.tensorflow_ctc_beam_search_decoder(scores.swapaxes(0, 1), LENGTHS, WIDE, PATHS)
            np.testing.assert_array_equal(decoded, labels)
            np.testing.assert_array_equal(same, log_probs)


@pytest.mark.parametrize("strategy", ["greedy", "beam_search"])
def test_compiled(strategy):
    """Lengths may be whole numbers in floats, as in Keras, and padded frames may hold anything."""

    @jax.jit
    def decode(scores, lengths):
        return compat.keras_ctc_decode(scores, lengths, strategy, 8, 2, mask_index=-1)

    scores, lengths = logits(), np.array([5, 0, 4, 1], np.float32)
    scores[np.arange(T) >= LENGTHS[:, None]] = np.nan
    want = compat.keras_ctc_decode(scores, lengths, strategy, 8, 2, mask_index=-1)
    for x, y in zip(decode(scores, lengths), want, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.isnan(want[1]).any()
    for wrong in (T + 1, 0.5):
        labels, values = decode(scores, np.array([wrong, 0, 4, 1], np.float32))
        assert (labels[:, 0] == -1).all()
        assert np.isnan(values).any(axis=1).tolist() == [True, False, False, False]


def test_keras(monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    with as_peers_like_it():
        keras = pytest.importorskip("keras", reason="keras is not installed")
    scores, lengths = logits(), np.maximum(LENGTHS, 1)  # on JAX it reads a frame where there is none
    arguments = [{"merge_repeated": merge, "mask_index": blank} for merge in (True, False) for blank in (0, 2, None)]
    arguments += [
        {"strategy": "beam_search", "beam_width": WIDE, "top_paths": 3, "mask_index": x} for x in (0, 2, None)
    ]
    for options in arguments:
        with as_peers_like_it():
            want = [np.asarray(x) for x in keras.ops.ctc_decode(scores, lengths, **options)]
        for x, y in zip(compat.keras_ctc_decode(scores, lengths, **options), want, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-6)


def test_tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with as_peers_like_it():
        tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    scores, lengths = logits().swapaxes(0, 1), np.maximum(LENGTHS, 1).astype(np.int32)
    for arguments in ((), (False,), (True, 0), (True, -2)):
        with as_peers_like_it():
            want = tf.nn.ctc_greedy_decoder(scores, lengths, *arguments)
        _same(compat.tensorflow_ctc_greedy_decoder(scores, lengths, *arguments), want, tf)
    with as_peers_like_it():
        want = tf.nn.ctc_beam_search_decoder(scores, lengths, WIDE, 3)
    _same(compat.tensorflow_ctc_beam_search_decoder(scores, lengths, WIDE, 3), want, tf)


def _same(found, want, tf):
    np.testing.assert_allclose(found[1], want[1], rtol=2e-6)
    for x, y in zip(found[0], want[0], strict=True):
        dense = tf.sparse.to_dense(tf.SparseTensor(y.indices, y.values, (N, T)), default_value=-1)
        np.testing.assert_array_equal(x, dense)


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"strategy": "best"}, ValueError, r"strategy must be 'greedy' or 'beam_search'; got 'best'"),
        ({"top_paths": 5}, ValueError, r"top_paths is 5: it must lie in \[1, beam_width\] = \[1, 4\]"),
        ({"top_paths": 0}, ValueError, r"top_paths is 0"),
        ({"beam_width": 2.0}, TypeError, r"beam_width must be .* a Python int"),
        ({"inputs": np.zeros((T, C), np.float32)}, ValueError, r"inputs must have three axes"),
        ({"sequence_lengths": LENGTHS + 1}, ValueError, r"sequence_lengths\[0\] is 6, but inputs has T = 5 frames"),
        ({"sequence_lengths": LENGTHS + 0.5}, TypeError, r"sequence_lengths\[0\] = 5.5: floats are taken where"),
        ({"mask_index": C}, ValueError, r"mask_index is 4, .* in \[-4, 4\)"),
        ({"strategy": "greedy", "merge_repeated": 1}, TypeError, r"merge_repeated must be True or False"),
    ],
)
def test_illegal_argument(change, exception, message):
    legal = {"inputs": logits(), "sequence_lengths": LENGTHS, "strategy": "beam_search", "beam_width": 4}
    with pytest.raises(exception, match=message):
        compat.keras_ctc_decode(**legal | change)
