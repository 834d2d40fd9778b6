"""Test the figure of one utterance: its contents, and the messages about illegal arguments."""

import cProfile
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import TokenSpan

pytest.importorskip("matplotlib")

FRAMES, CLASSES, BLANK = 20, 5, 4
NAMES = ["ah", "bee", " ", "dee", "blank"]
SPANS = [TokenSpan(1, 2, 5, -0.1), TokenSpan(2, 8, 9, -1.0), TokenSpan(1, 12, 18, -0.5)]
LOG_PROBS = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (FRAMES, CLASSES)))


def visible(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_visible()]


def test_the_three_panels_share_one_axis_of_time():
    figure = jaxctc.plot_alignment(
        LOG_PROBS, SPANS, jnp.exp(LOG_PROBS), blank=BLANK, label_names=NAMES, seconds_per_frame=0.02, title="said"
    )
    scores, _, spans = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["log probability", "posterior", "confidence"]
    assert {axes.get_xlim() for axes in figure.axes} == {(0, FRAMES * 0.02)}
    assert spans.get_xlabel() == "seconds"
    assert scores.get_title("left") == "said"
    assert [text.get_text() for text in scores.get_yticklabels()] == ["bee", "␣", "blank"]
    assert visible(spans) == ["bee", " ", "bee"]


def test_the_bars_have_the_frames_and_the_confidence_of_the_spans():
    axes = jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK).axes[-1]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches[1::2]]
    np.testing.assert_allclose(bars, [(s.start, s.end, np.exp(s.score)) for s in SPANS])
    assert axes.get_xlabel() == "frame"


def test_likely_classes_are_dark():
    log_probs = np.array([[0.0, -6.0, -np.inf], [-12.0, 0.0, np.nan]])
    (image,) = jaxctc.plot_alignment(log_probs, [TokenSpan(1, 0, 1, 0.0), TokenSpan(2, 1, 2, 0.0)]).axes[0].images
    strength = 1 - np.asarray(image.get_array()).min(axis=2)
    darkest = strength[[0, 2], [1, 0]]  # class 1, then 2, then the blank
    np.testing.assert_allclose(strength[0], [darkest[0] / 2, darkest[0]])
    np.testing.assert_allclose(strength[1], 0)
    np.testing.assert_allclose(strength[2], [darkest[1], 0], atol=1e-12)


def test_an_alignment_from_end_to_end():
    target = jnp.array([1, 3, 3])
    spans = jaxctc.merge_tokens(*jaxctc.forced_align(LOG_PROBS, target, FRAMES, 3, blank=BLANK), blank=BLANK)
    posteriors = jaxctc.ctc_posteriors(LOG_PROBS, target, FRAMES, 3, blank=BLANK).classes
    figure = jaxctc.plot_alignment(LOG_PROBS, spans, posteriors, blank=BLANK)
    assert visible(figure.axes[-1]) == ["1", "3", "3"]


def test_it_draws_on_the_given_figure():
    from matplotlib.figure import Figure

    left, right = Figure(figsize=(12, 4), layout="constrained").subfigures(1, 2)
    assert jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK, figure=right) is right
    assert (len(left.axes), len(right.axes)) == (0, 2)


@pytest.mark.parametrize("posteriors", [None, LOG_PROBS])
def test_scores_are_drawn_without_spans(posteriors):
    assert jaxctc.plot_alignment(LOG_PROBS, [], posteriors, blank=BLANK).axes[0].images


def test_a_mapping_may_name_some_classes():
    axes = jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK, label_names={1: "one"}).axes[-1]
    assert visible(axes) == ["one", "2", "one"]


def test_a_vocabulary_names_the_classes():
    """A tokenizer's dictionary maps the other way; it may hold tokens that the model has no class for."""
    vocabulary = {"one": 1, "|": 2, "<pad>": BLANK, "<unk>": 99}
    axes = jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK, label_names=vocabulary).axes
    assert visible(axes[-1]) == ["one", "|", "one"]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["one", "|", "blank"]


def test_names_that_are_numbers_or_missing():
    spans = [TokenSpan(k, 4 * k, 4 * k + 1, -0.1) for k in range(4)]
    names = [None, 7, np.float32(0.5), np.str_("dee"), None]
    for label_names in (names, dict(enumerate(names)), {np.int64(k): name for k, name in enumerate(names)}):
        axes = jaxctc.plot_alignment(LOG_PROBS, spans, blank=BLANK, label_names=label_names).axes[-1]
        assert visible(axes) == ["0", "7", "0.5", "dee"]


def test_text_is_drawn_as_it_is_given(tmp_path):
    """A dollar begins no formula, of which "$5% off $10" would be an illegal one, and a backslash no command."""
    import matplotlib as mpl

    names = ["it is $5% off $10", r"\$", "from $5 to $6", " $x$", "blank"]
    spans = [TokenSpan(k, 5 * k, 5 * k + 1, -0.1) for k in range(4)]
    figure = jaxctc.plot_alignment(LOG_PROBS, spans, blank=BLANK, label_names=names, title=names[0])
    figure.savefig(tmp_path / "alignment.png")
    shown = [*figure.axes[-1].texts, *figure.axes[0].get_yticklabels()[:4]]
    assert [text.get_text() for text in shown] == 2 * names[:4]
    assert figure.axes[0].get_title("left") == names[0]
    for text in shown:
        want = figure.text(0, 0, text.get_text().replace("$", r"\$"), font=text.get_fontproperties())
        assert text.get_window_extent().width == pytest.approx(want.get_window_extent().width)
    with mpl.rc_context({"text.usetex": True}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mpl.figure.Figure, "draw_without_rendering", lambda _: None)  # numbers need TeX then
        figure = jaxctc.plot_alignment(LOG_PROBS, spans, blank=BLANK, label_names=names)
        assert not any(text.get_usetex() for text in (*figure.axes[-1].texts, *figure.axes[0].get_yticklabels()))


def test_a_long_title_with_dollars_is_broken_into_lines(tmp_path):
    titles = ("fifty " * 60 + end for end in ("cents", "$5"))
    plain, dollars = (jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK, title=title) for title in titles)
    for figure in (plain, dollars):
        figure.savefig(tmp_path / "alignment.png")
        title = figure.axes[0]._left_title.get_window_extent()
        assert figure.axes[0].get_window_extent().x0 - 1 < title.x0
        assert title.x1 < figure.bbox.x1


def test_the_work_for_one_more_span_does_not_grow():
    """Calls of functions are counted: they do not depend on what else the machine does."""

    def calls(count):
        profile = cProfile.Profile()
        log_probs, tokens = np.zeros((5 * count, 30)), np.arange(count) % 29
        spans = [TokenSpan(int(token), 5 * i, 5 * i + 3, -0.1) for i, token in enumerate(tokens)]
        profile.runcall(jaxctc.plot_alignment, log_probs, spans, np.exp(log_probs), blank=29)
        return sum(entry.callcount for entry in profile.getstats())

    calls(30)
    few, some, many = map(calls, (300, 600, 900))
    assert (many - some) / 300 < 4000
    assert many - some < 1.3 * (some - few)


def test_a_hundred_names_do_not_overlap():
    spans = [TokenSpan(i % 4, 2 * i, 2 * i + 1, -0.1) for i in range(100)]
    axes = jaxctc.plot_alignment(np.zeros((300, CLASSES)), spans, blank=BLANK, label_names=NAMES).axes[-1]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_visible()]
    assert 20 < len(boxes) < 100
    assert all(a.x1 <= b.x0 + 0.1 for a, b in itertools.pairwise(boxes))


def test_names_move_as_little_as_possible():
    """The outer two of three neighbours by as much as they overlap, and what is far away not at all."""
    spans = [TokenSpan(1, start, start + 1, 0.0) for start in (100, 101, 102, 200)]
    axes = jaxctc.plot_alignment(np.zeros((300, CLASSES)), spans, blank=BLANK, label_names={1: "i"}).axes[-1]
    left, middle, right, _ = boxes = [text.get_window_extent() for text in axes.texts]
    point = axes.figure.dpi / 72
    overlap = left.width / point - (spans[1].start - spans[0].start) * axes.bbox.width / 300 / point
    assert overlap > 0
    moves = [text.get_position()[0] for text in axes.texts]
    np.testing.assert_allclose(moves, [-overlap, 0, overlap, 0], atol=1e-6)
    np.testing.assert_allclose([left.x1, middle.x1], [middle.x0, right.x0], atol=1e-6)
    assert visible(axes) == ["i"] * len(boxes)


def test_neighbours_differ_in_colour():
    spans = [TokenSpan(token, i, i + 1, 0.0) for i, token in enumerate([0, 1, 2, 3, 4, 5, 6, 0, 7, 0])]
    axes = jaxctc.plot_alignment(np.zeros((10, 9)), spans, blank=8).axes[-1]
    colours = [bar.get_facecolor() for bar in axes.patches[1::2]]
    assert all(a != b for a, b in itertools.pairwise(colours))
    assert len(set(colours)) == 7, "as many as there are, for eight classes"
    assert colours[0] == colours[7] == colours[9]


def test_without_matplotlib_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK)


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        (
            {"log_probs": LOG_PROBS[:, None]},
            ValueError,
            r"log_probs must have shape \(T, C\), one sequence; got \(20, 1",
        ),
        ({"log_probs": LOG_PROBS.astype(int)}, TypeError, r"log_probs must be of a floating-point type"),
        (
            {"posteriors": LOG_PROBS.T},
            ValueError,
            r"posteriors must have the shape of log_probs, \(20, 5\); got \(5, 20",
        ),
        ({"spans": [TokenSpan(5, 0, 1, 0.0)]}, ValueError, r"spans\[0\].token is 5: it must lie in \[0, 5\)"),
        ({"spans": [SPANS[0], TokenSpan(1, 19, 21, 0.0)]}, ValueError, r"spans\[1\] is of the frames \[19, 21\)"),
        ({"spans": [TokenSpan(1, 3, 3, 0.0)]}, ValueError, r"spans\[0\] is of the frames \[3, 3\)"),
        ({"blank": 5}, ValueError, r"blank is 5, .* C = 5 classes"),
        ({"label_names": NAMES[:3]}, ValueError, r"label_names holds 3 names, but there are C = 5 classes"),
        ({"label_names": [*NAMES[:4], b"blank"]}, TypeError, r"label_names holds b'blank' of type bytes .* class 4"),
        ({"label_names": {1: ["a"]}}, TypeError, r"label_names holds \['a'\] of type list .* class 1"),
        (
            {"label_names": {"1": "one"}},
            TypeError,
            r"label_names maps '1' to 'one': .* from names, .* to their classes",
        ),
        ({"label_names": {1.5: "one"}}, TypeError, r"label_names maps 1.5 to 'one'"),
        ({"label_names": {"one": 1, "ein": 1}}, ValueError, r"two names for class 1: 'one' and 'ein'"),
        ({"seconds_per_frame": 0.0}, ValueError, r"seconds_per_frame is 0.0: it must be positive"),
    ],
)
def test_illegal_argument(change, exception, message):
    arguments = {"log_probs": LOG_PROBS, "spans": SPANS, "blank": BLANK} | change
    with pytest.raises(exception, match=message):
        jaxctc.plot_alignment(**arguments)


def batch():
    """Two sequences, of which the second is padded, and what is computed of them."""
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (FRAMES, 2, CLASSES)))
    problem = log_probs, jnp.array([[3, 0, 0], [1, 3, 1]]), [FRAMES, FRAMES - 6], [1, 3], BLANK
    return log_probs, jaxctc.forced_align(*problem), jaxctc.ctc_posteriors(*problem)


def test_a_row_of_a_batch_is_drawn_as_that_sequence_alone():
    log_probs, aligned, posteriors = batch()
    length = FRAMES - 6
    figure = jaxctc.plot_alignment(log_probs, aligned, posteriors, row=1, frames=length, blank=BLANK)
    spans = jaxctc.merge_tokens(aligned.labels[1, :length], aligned.scores[1, :length], BLANK)
    alone = jaxctc.plot_alignment(log_probs[:length, 1], spans, posteriors.classes[:length, 1], blank=BLANK)
    assert {axes.get_xlim() for axes in figure.axes} == {(0, length)}
    assert visible(figure.axes[-1]) == visible(alone.axes[-1]) == ["1", "3", "1"]
    for ours, theirs in zip(figure.axes, alone.axes, strict=True):
        for image, expected in zip(ours.images, theirs.images, strict=True):
            np.testing.assert_array_equal(image.get_array(), expected.get_array())
        for patch, expected in zip(ours.patches, theirs.patches, strict=True):
            np.testing.assert_array_equal(patch.get_path().vertices, expected.get_path().vertices)


def test_a_batch_first():
    log_probs, aligned, posteriors = batch()
    turned = log_probs.swapaxes(0, 1), aligned, posteriors.classes.swapaxes(0, 1)
    first = jaxctc.plot_alignment(*turned, row=1, frames=9, batch_first=True, blank=BLANK)
    other = jaxctc.plot_alignment(log_probs, aligned, posteriors, row=1, frames=9, blank=BLANK)
    for ours, theirs in zip(first.axes, other.axes, strict=True):
        for image, expected in zip(ours.images, theirs.images, strict=True):
            np.testing.assert_array_equal(image.get_array(), expected.get_array())
        for patch, expected in zip(ours.patches, theirs.patches, strict=True):
            np.testing.assert_array_equal(patch.get_path().vertices, expected.get_path().vertices)
    square = log_probs[:2], jaxctc.Alignment(aligned.labels[:, :2], aligned.scores[:, :2])
    with pytest.raises(ValueError, match=r"of 20 frames, and log_probs has T = 2: .* pass batch_first=True"):
        jaxctc.plot_alignment(*turned, row=1, blank=BLANK)
    with pytest.raises(ValueError, match=r"frames is 9: it must lie in \[1, 2\].* pass batch_first=True"):
        jaxctc.plot_alignment(turned[0], SPANS, row=1, frames=9, blank=BLANK)
    jaxctc.plot_alignment(*square, row=1, blank=BLANK)


def test_words_stand_beneath_their_spans():
    words = jaxctc.merge_words(SPANS, NAMES)
    axes = jaxctc.plot_alignment(LOG_PROBS, SPANS, blank=BLANK, words=words, seconds_per_frame=0.5).axes[-1]
    assert [word.word for word in words] == ["bee", "bee"]
    written = [text for text in axes.texts if text.get_position()[1] < 0]
    assert [text.get_text() for text in written] == ["bee", "bee"]
    assert [text.get_position()[0] for text in written] == [1.75, 7.5]


@pytest.mark.parametrize("above", [np.sin(np.arange(400.0)), np.eye(12, 40)], ids=["samples", "image"])
def test_the_source_has_a_panel_above_as_long_as_the_frames(above):
    figure = jaxctc.plot_alignment(LOG_PROBS, SPANS, above=above, blank=BLANK, seconds_per_frame=0.02)
    panel, scores, _ = figure.axes
    assert scores.get_ylabel() == "log probability"
    assert panel.get_xlim() == (0, FRAMES * 0.02)
    if above.ndim == 1:
        (line,) = panel.lines
        np.testing.assert_array_equal(line.get_ydata(), above)
        np.testing.assert_allclose(line.get_xdata()[[0, -1]], [0.0005, 0.3995])
    else:
        (image,) = panel.images
        np.testing.assert_array_equal(image.get_array(), above)
        assert tuple(image.get_extent()) == (0, FRAMES * 0.02, 0, 1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"row": 2}, r"row is 2, and log_probs has the shape \(20, 2, 5\): row must lie in \[0, N\)"),
        ({}, r"Of a batch draw one: row=n|say which row"),
        ({"row": 0, "frames": 21}, r"frames is 21: it must lie in \[1, 20\]"),
        ({"row": 0, "above": np.zeros((20, 3))}, r"above has the shape \(20, 3\) over 20 frames: .* Transpose"),
        ({"row": 0, "above": np.zeros((2, 2, 2))}, r"above must be samples, .*got \(2, 2, 2\)"),
    ],
)
def test_what_cannot_be_drawn_of_a_batch_is_named(keywords, message):
    log_probs, aligned, posteriors = batch()
    with pytest.raises(ValueError, match=message):
        jaxctc.plot_alignment(log_probs, aligned, posteriors, blank=BLANK, **keywords)
