"""Draw one utterance: its scores, the posteriors of its labels, and their alignment."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxctc._api.alignment import Alignment, TokenSpan, merge_tokens
from jaxctc._api.label_names import LabelNames, names_by_class
from jaxctc._api.name_places import AS_GIVEN, NAME, draw_names, text_width
from jaxctc._api.posteriors import Posteriors
from jaxctc._api.timestamps import WordSpan
from jaxctc._inputs import checks
from jaxctc._types import FloatsLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.patches import Patch

INK, QUIET, PALE, PAPER = "#1b1f3b", "#8a8fa3", "#bcc1d1", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa3a86", "#e69f00", "#3d9fd6", "#7a5195")
"""Okabe and Ito's colours, which colour-blind people can tell apart, but for the yellow: it is too pale for letters."""

_RANGE = 12.0
"""Nats below the best score at which a colour has faded: 1 / 160,000 of the best probability."""

_TITLE: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", **AS_GIVEN}


def plot_alignment(
    log_probs: FloatsLike,
    spans: Sequence[TokenSpan] | Alignment,
    posteriors: FloatsLike | Posteriors | None = None,
    *,
    row: int | None = None,
    frames: int | None = None,
    batch_first: bool = False,
    words: Sequence[WordSpan] = (),
    above: FloatsLike | None = None,
    blank: int = 0,
    label_names: LabelNames | None = None,
    seconds_per_frame: float | None = None,
    title: str | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure | SubFigure":
    """Draw one utterance and its alignment.

    The figure has three panels over one axis of time: the log probabilities of the blank and of the classes in the
    target, with the alignment underlined; the posterior of each label, given the target; and the spans, each as high
    as its confidence, ``exp(score)``, the geometric mean of the probabilities along it. Names that would overlap are
    moved a little; where that is not enough they are left out. `words` stand beneath the spans, and `above`, the
    recording or the image itself, over everything.

    Of a batch it draws one row, from the results as they are: ``plot_alignment(log_probs, forced_align(*problem),
    ctc_posteriors(*problem), row=3, frames=input_lengths[3])``.

    Shapes: T frames, N sequences, C classes with the blank.

    Args:
        log_probs: Log probabilities of one sequence, (T, C), or with `row` those of a batch, (T, N, C) or as
            `batch_first` says.
        spans: The frames of each label, as `merge_tokens` returns them, or what `forced_align` returns.
        posteriors: The probability of each class at each frame, given the target: what `ctc_posteriors` returns, or its
            `classes`, of the shape of `log_probs`. None leaves that panel out.
        row: The sequence of the batch to draw. Spans are those of that row.
        frames: The sequence's length; the frames from there on are padding, and not drawn. None: T.
        batch_first: `log_probs` and `posteriors` of a batch are (N, T, C).
        words: The words and their frames, as `merge_words` returns them.
        above: What the frames were computed from: the samples of a recording, one-dimensional, or an image or
            spectrogram, (height, width), the first row on top: transpose features (time, bands). It is stretched to the
            frames drawn, however finely it is sampled, so cut off what belongs to padding.
        blank: Index of the blank class.
        label_names: The name of each class, in a sequence or a mapping, or a tokenizer's vocabulary, which is a mapping
            from name to class. A number is a name too. Classes without a name, or with None, show their index. All text
            is drawn as it is given, dollars and backslashes included.
        seconds_per_frame: The duration of a frame. With it the axis of time shows seconds, without it frames.
        title: The title above the panels.
        figure: The figure to draw on, for instance ``plt.figure(layout="constrained")``, or one of its subfigures. By
            default a new one that pyplot does not register, so that it need not be closed.

    Returns:
        The figure: ``figure.savefig("alignment.png")`` writes it, and a notebook shows it.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `log_probs` is not of a floating-point type, `blank` is not an int, or a name is no name.
        ValueError: A shape, a span, `blank`, `label_names` or `seconds_per_frame` is illegal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> log_probs, target = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (12, 4))), jnp.array([1, 3, 2])
        >>> spans = jaxctc.merge_tokens(*jaxctc.forced_align(log_probs, target, 12, 3))
        >>> posteriors = jaxctc.ctc_posteriors(log_probs, target, 12, 3).classes
        >>> figure = jaxctc.plot_alignment(log_probs, spans, posteriors, label_names=["", "a", "b", "c"])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['log probability', 'posterior', 'confidence']
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_alignment draws with matplotlib: pip install matplotlib") from error

    scores = np.asarray(checks.scores("log_probs", checks.numbers(log_probs)), np.float64)
    probabilities = getattr(posteriors, "classes", posteriors)  # the bridge's posteriors have the same field
    gamma = None if probabilities is None else checks.numbers(probabilities).astype(np.float64)
    if batch_first and scores.ndim == 3:
        scores = scores.swapaxes(0, 1)
    if batch_first and gamma is not None and gamma.ndim == 3:
        gamma = gamma.swapaxes(0, 1)
    scores, gamma, spans = _one_sequence(scores, gamma, spans, row, frames, blank, batch_first=batch_first)
    _check(scores, spans, gamma, seconds_per_frame)
    blank = checks.blank(blank, scores.shape[1])
    named = names_by_class(label_names, scores.shape[1])
    classes = list(dict.fromkeys(span.token for span in spans))
    names = {k: named.get(k, str(k)) for k in classes}
    colours = _colours(spans, names)
    scale = 1.0 if seconds_per_frame is None else seconds_per_frame

    source = None if above is None else _source(above, len(scores))
    heights = [0.4 + 0.13 * (len(classes) + 1), *([] if gamma is None else [1.3]), 1.1]
    heights = [*([] if source is None else [0.9]), *heights]
    if figure is None:
        figure = Figure(figsize=(10, sum(heights) + 0.8), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(QUIET)
        axes.tick_params(colors=QUIET, labelsize=8)
        axes.yaxis.label.set(color=INK, size=9)
    if source is not None:
        _draw_source(panels[0], source, len(scores) * scale)
    _draw_scores(panels[-2 if gamma is None else -3], scores, spans, [*classes, blank], names, colours, scale)
    if gamma is not None:
        _draw_posteriors(panels[-2], gamma, blank, colours, scale)
    _draw_spans(panels[-1], spans, colours, scale)
    panels[-1].set_xlim(0, len(scores) * scale)
    panels[-1].set_xlabel("frame" if seconds_per_frame is None else "seconds", color=INK, size=9)
    if title is not None:
        _draw_title(panels[0], title)
    draw_names(panels[-1], spans, names, colours, scale)
    _draw_words(panels[-1], words, scale)
    return figure


def _one_sequence(
    scores: np.ndarray,
    gamma: np.ndarray | None,
    spans: Sequence[TokenSpan] | Alignment,
    row: int | None,
    frames: int | None,
    blank: int,
    *,
    batch_first: bool,
) -> tuple[np.ndarray, np.ndarray | None, Sequence[TokenSpan]]:
    """Return one sequence of a batch, without its padding."""
    found: Any = spans  # perhaps an alignment, of this package or of the bridge
    path = [checks.numbers(x) for x in (found.labels, found.scores)] if hasattr(found, "labels") else None
    hint = "" if scores.ndim != 3 or batch_first else " If log_probs is (N, T, C), pass batch_first=True."
    if row is not None:
        if scores.ndim != 3 or not 0 <= checks.integer("row", row, "a sequence of the batch") < scores.shape[1]:
            raise ValueError(
                f"row is {row}, and log_probs has the shape {scores.shape}: row must lie in [0, N) for (T, N, C). "
                "For one sequence, (T, C), leave row out."
            )
        if gamma is not None and gamma.ndim == 3:
            gamma = gamma[:, row]
        if path is not None:
            if path[0].ndim != 2 or row >= len(path[0]):
                raise ValueError(
                    f"row is {row}, and spans is the alignment of {path[0].shape}: it must be that of the whole batch."
                )
            path = [x[row] for x in path]
        scores = scores[:, row]
    if path is not None and path[0].ndim == 1 and len(path[0]) != len(scores):
        raise ValueError(
            f"spans is an alignment of {len(path[0])} frames, and log_probs has T = {len(scores)}: they must be of the "
            f"same frames.{hint}"
        )
    if frames is not None:
        if not 1 <= frames <= len(scores):
            raise ValueError(f"frames is {frames}: it must lie in [1, {len(scores)}], as T = {len(scores)}.{hint}")
        scores, gamma = scores[:frames], None if gamma is None else gamma[:frames]
    if path is None:
        return scores, gamma, found
    if path[0].ndim != 1:
        raise ValueError("spans is the alignment of a batch: say which row, for instance row=0.")
    labels, values = (x[: len(scores)] for x in path)
    return scores, gamma, cast("Sequence[TokenSpan]", merge_tokens(labels, values, blank))


def _source(above: FloatsLike, frames: int) -> np.ndarray:
    source = checks.numbers(above).astype(np.float64)
    if source.ndim not in (1, 2) or not source.size:
        raise ValueError(f"above must be samples, (length,), or an image, (height, width); got {source.shape}.")
    if source.ndim == 2 and source.shape[1] < frames <= len(source):
        raise ValueError(
            f"above has the shape {source.shape} over {frames} frames: an image is (height, width). Transpose features "
            "(time, bands)."
        )
    return source


def _draw_source(axes: "Axes", source: np.ndarray, end: float) -> None:
    if source.ndim == 1:
        axes.plot((np.arange(len(source)) + 0.5) * (end / len(source)), source, color=INK, linewidth=0.4)
    else:
        axes.imshow(source, extent=(0, end, 0, 1), aspect="auto", cmap="Greys", interpolation="nearest")
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)


def _draw_words(axes: "Axes", words: Sequence[WordSpan], scale: float) -> None:
    """Write each word beneath its frames, between the axis and its numbers."""
    for word in words:
        start, end = word.start * scale, word.end * scale
        place = axes.get_xaxis_transform()
        axes.plot([start, end], [-0.16, -0.16], color=INK, linewidth=1.5, transform=place, clip_on=False)
        axes.text((start + end) / 2, -0.2, word.word, color=INK, ha="center", va="top", transform=place, **NAME)
    if words:
        axes.tick_params(axis="x", pad=22)


def _check(
    scores: np.ndarray,
    spans: Sequence[TokenSpan],
    posteriors: np.ndarray | None,
    seconds_per_frame: float | None,
) -> None:
    if scores.ndim != 2:
        raise ValueError(
            f"log_probs must have shape (T, C), one sequence; got {scores.shape}. "
            "Of a batch draw one: row=n, frames=input_lengths[n]."
        )
    frames, classes = scores.shape
    if posteriors is not None and posteriors.shape != scores.shape:
        raise ValueError(
            f"posteriors must have the shape of log_probs, {scores.shape}; got {posteriors.shape}. "
            "They are the field `classes` of what ctc_posteriors returns."
        )
    for i, span in enumerate(spans):
        if not 0 <= span.token < classes:
            raise ValueError(f"spans[{i}].token is {span.token}: it must lie in [0, {classes}), as C = {classes}.")
        if not 0 <= span.start < span.end <= frames:
            raise ValueError(
                f"spans[{i}] is of the frames [{span.start}, {span.end}): they must be one or more, "
                f"within [0, {frames}), as T = {frames}."
            )
    if seconds_per_frame is not None and not seconds_per_frame > 0:
        raise ValueError(f"seconds_per_frame is {seconds_per_frame}: it must be positive.")


def _colours(spans: Sequence[TokenSpan], names: dict[int, str]) -> dict[int, str]:
    """Return a colour for each class: the least used of those that no neighbour in time has; grey for a space."""
    neighbours: dict[int, set[int]] = {label: set() for label in names}
    for a, b in itertools.pairwise(spans):
        neighbours[a.token].add(b.token)
        neighbours[b.token].add(a.token)
    chosen: dict[int, str] = {}
    for label, beside in neighbours.items():
        taken, used = {chosen.get(k) for k in beside}, list(chosen.values())
        free = [colour for colour in COLOURS if colour not in taken] or COLOURS
        chosen[label] = min(free, key=used.count) if names[label].strip() else PALE
    return chosen


def _draw_title(axes: "Axes", title: str) -> None:
    wrap = "$" not in title
    if not wrap:  # matplotlib, which can break lines itself, looks for formulas when it does
        figure = axes.figure
        available = 0.85 * figure.bbox.width * 72 / figure.figure.dpi
        most = int(len(title) * available / text_width(axes, title, **_TITLE))
        title = textwrap.fill(title, most, replace_whitespace=False, drop_whitespace=False)
    axes.set_title(title, loc="left", color=INK, wrap=wrap, **_TITLE)


def _draw_scores(
    axes: "Axes",
    scores: np.ndarray,
    spans: Sequence[TokenSpan],
    rows: list[int],
    names: dict[int, str],
    colours: dict[int, str],
    scale: float,
) -> None:
    from matplotlib.colors import to_rgb

    finite = scores[np.isfinite(scores)]
    best = finite.max() if len(finite) else 0.0
    strength = np.nan_to_num(np.clip(1 + (scores[:, rows].T - best) / _RANGE, 0, 1))[:, :, None]
    ink = np.array([to_rgb(colours.get(label, QUIET)) for label in rows])[:, None]
    extent = (0, len(scores) * scale, len(rows), 0)
    axes.imshow(1 - strength * (1 - ink), extent=extent, aspect="auto", interpolation="nearest")
    bottom = {label: row + 1 for row, label in enumerate(rows[:-1])}
    edges = np.array([(span.start, span.end) for span in spans]).reshape(-1, 2) * scale
    lines = axes.hlines([bottom[span.token] for span in spans], *edges.T, color=INK, linewidth=1.5, capstyle="butt")
    lines.set_in_layout(False)
    shown = [names[label] if names[label].strip() else "␣" for label in rows[:-1]]
    axes.set_yticks(np.arange(len(rows)) + 0.5, [*shown, "blank"], **AS_GIVEN)
    axes.tick_params(axis="y", length=0)
    for text, label in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color(colours.get(label, QUIET))
    axes.set_ylabel("log probability")
    axes.tick_params(axis="x", length=0)


def _draw_posteriors(axes: "Axes", posteriors: np.ndarray, blank: int, colours: dict[int, str], scale: float) -> None:
    from matplotlib.patches import StepPatch

    edges = np.arange(len(posteriors) + 1) * scale

    def stairs(values: np.ndarray, **properties: Any) -> None:
        # `axes.stairs` would look for the limits of the axes at every step, which takes seconds for a long recording.
        _add(axes, StepPatch(values, edges, **properties))

    stairs(posteriors[:, blank], fill=True, color=QUIET, alpha=0.15)
    for label, colour in colours.items():
        # Lines along zero would cover each other, and only the last label's would show.
        likely = np.where(posteriors[:, label] > 1e-3, posteriors[:, label], np.nan)
        stairs(likely, fill=True, color=colour, alpha=0.35)
        stairs(likely, color=colour, linewidth=0.8)
    axes.set(ylim=(0, 1.02), yticks=[0, 1], ylabel="posterior")
    axes.tick_params(axis="x", length=0)


def _draw_spans(axes: "Axes", spans: Sequence[TokenSpan], colours: dict[int, str], scale: float) -> None:
    from matplotlib.patches import Rectangle

    for span in spans:
        corner, width, colour = (span.start * scale, 0), (span.end - span.start) * scale, colours[span.token]
        _add(axes, Rectangle(corner, width, 1, color=colour, alpha=0.2, linewidth=0))
        _add(axes, Rectangle(corner, width, min(np.exp(span.score), 1), color=colour, linewidth=0))
    axes.set(ylim=(0, 1.3), yticks=[0, 1], ylabel="confidence")


def _add(axes: "Axes", patch: "Patch") -> None:
    """Add a patch that changes neither the limits of the axes nor the layout of the figure."""
    patch.set_in_layout(False)
    axes.add_artist(patch)
