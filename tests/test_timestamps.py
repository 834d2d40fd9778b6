"""Test when decoded labels and words were spoken."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxctc
from jaxctc import TokenSpan, WordSpan
from jaxctc._tools.conformance.oracle import log_softmax, paths_by_target

T, N, C, BLANK = 6, 3, 4, 2
LENGTHS = np.array([6, 0, 4])
PAGE = Path(__file__).parents[1] / "docs/alignment.md"


def scores():
    log_probs = log_softmax(2 * np.random.default_rng(0).normal(size=(T, N, C))).astype(np.float32)
    log_probs[np.arange(T)[:, None] >= LENGTHS] = np.nan
    return log_probs


def best_spans(log_probs, labels):
    """Return token, start and end of each label on the best of all paths that spell the labels."""
    paths = paths_by_target(len(log_probs), C, BLANK)[tuple(labels)]
    path = paths[log_probs[np.arange(len(log_probs)), paths].sum(axis=1).argmax()]
    edges = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]
    spans = [(int(path[a]), a, b) for a, b in itertools.pairwise(edges) if a < b and path[a] != BLANK]
    return spans, [log_probs[a:b, token].mean() for token, a, b in spans]


def check(spans, log_probs, labels):
    want, means = best_spans(log_probs, labels)
    assert [(span.token, span.start, span.end) for span in spans] == want
    np.testing.assert_allclose([span.score for span in spans], means, rtol=1e-6)


@pytest.mark.parametrize("decode", [jaxctc.greedy_decode, jaxctc.beam_search_decode])
def test_decoded_spans_are_those_of_the_best_path(decode):
    log_probs = scores()
    decoded = decode(log_probs, LENGTHS, BLANK)
    found = jaxctc.decoded_spans(log_probs, decoded, LENGTHS, BLANK)
    assert len(found) == N
    for n, spans in enumerate(found):
        labels, count = (np.asarray(x)[n] for x in decoded[:2])
        if decode is jaxctc.beam_search_decode:
            labels, count = labels[0], count[0]
        check(spans, log_probs[: LENGTHS[n], n], labels[:count].tolist())
        if decode is jaxctc.greedy_decode:
            best = log_probs[: LENGTHS[n], n].argmax(axis=1)
            assert spans == jaxctc.merge_tokens(best, log_probs[np.arange(LENGTHS[n]), n, best], BLANK)
    assert sum(map(len, found)) > 4
    swapped = jaxctc.decoded_spans(log_probs.swapaxes(0, 1), decoded, LENGTHS, BLANK, batch_first=True)
    alone = jaxctc.decoded_spans(log_probs[:, 0], decode(log_probs[:, 0], 6, BLANK), 6, BLANK)
    assert (swapped, alone) == (found, found[0])


def test_what_could_not_be_decoded_has_no_spans():
    log_probs = np.full((3, C), np.nan, np.float32)
    decoded = jaxctc.beam_search_decode(log_probs, 3)
    assert np.isnan(decoded.log_probs).all()
    assert jaxctc.decoded_spans(log_probs, decoded, 3) == []


def test_illegal_decoded():
    log_probs = scores()
    with pytest.raises(TypeError, match=r"decoded must be what jaxctc.greedy_decode or .* got builtins.list"):
        jaxctc.decoded_spans(log_probs, [1], LENGTHS, BLANK)
    turned, decoded = log_probs.swapaxes(0, 1), jaxctc.greedy_decode(log_probs, LENGTHS, BLANK)
    with pytest.raises(ValueError, match=r"decoded is of 3 sequences.* pass batch_first=True"):
        jaxctc.decoded_spans(turned, decoded, LENGTHS, BLANK)
    with pytest.raises(ValueError, match=r"decoded is of 3 sequences.* pass batch_first=False"):
        jaxctc.decoded_spans(log_probs, decoded, LENGTHS, BLANK, batch_first=True)
    with pytest.raises(TypeError, match=r"decoded is traced.* outside of jax.jit"):
        jax.jit(lambda x: jaxctc.decoded_spans(x, jaxctc.greedy_decode(x, 6), 6))(log_probs[:, 0])


def spans_of(*tokens):
    """Return spans of 1, 2, 3 frames and so on, each score minus the number of its frames."""
    starts = np.cumsum(range(len(tokens))).tolist()
    return [TokenSpan(k, at, at + i + 1, -i - 1.0) for i, (k, at) in enumerate(zip(tokens, starts, strict=True))]


LETTERS = [" ", "a", "b", None]
PIECES = {"▁": 0, "▁a": 1, "b": 2, "a▁b": 3}


@pytest.mark.parametrize(
    ("tokens", "names", "separator", "want"),
    [
        ((), LETTERS, " ", []),
        ((0,), LETTERS, " ", []),
        ((1, 2), LETTERS, " ", [WordSpan("ab", 0, 3, -5 / 3)]),
        ((1, 0, 2), LETTERS, " ", [WordSpan("a", 0, 1, -1.0), WordSpan("b", 3, 6, -3.0)]),
        ((0, 0, 1, 0, 0), LETTERS, " ", [WordSpan("a", 3, 6, -3.0)]),
        ((1, 0), ["|", "a"], "|", [WordSpan("a", 0, 1, -1.0)]),
        ((1, 2, 1), PIECES, "▁", [WordSpan("ab", 0, 3, -5 / 3), WordSpan("a", 3, 6, -3.0)]),
        ((0, 2, 3), PIECES, "▁", [WordSpan("ba", 1, 6, -2.6), WordSpan("b", 3, 6, -3.0)]),
        ((2, 1), {1: "one", 2: 2}, " ", [WordSpan("2one", 0, 3, -5 / 3)]),
    ],
)
def test_words(tokens, names, separator, want):
    found = jaxctc.merge_words(spans_of(*tokens), names, separator)
    assert [(x.word, x.start, x.end) for x in found] == [(x.word, x.start, x.end) for x in want]
    assert [x.score for x in found] == pytest.approx([x.score for x in want])
    assert [len(x) for x in found] == [x.end - x.start for x in want]


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"spans": spans_of(1, 3)}, ValueError, r"spans\[1\].token is 3, which label_names has no name for"),
        ({"spans": [spans_of(1)]}, TypeError, r"spans\[0\] is of type list: .* of a batch, call merge_words for each"),
        ({"separator": ""}, ValueError, r"separator is empty"),
        ({"separator": None}, TypeError, r"separator must be a string; got None"),
        ({"label_names": [" ", b"a"]}, TypeError, r"label_names holds b'a' of type bytes"),
    ],
)
def test_illegal_words(change, exception, message):
    with pytest.raises(exception, match=message):
        jaxctc.merge_words(**{"spans": spans_of(1), "label_names": LETTERS} | change)


def test_the_example_of_the_page(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, PAGE, "exec"), {})
    assert capsys.readouterr().out in PAGE.read_text(encoding="utf-8")
