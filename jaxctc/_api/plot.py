"""Draw one utterance: its scores, the posteriors of its labels, and their alignment."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxctc._api.alignment import TokenSpan
from jaxctc._inputs import checks
from jaxctc._types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

INK, QUIET, PALE, PAPER = "#1b1f3b", "#8a8fa3", "#bcc1d1", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa3a86", "#e69f00", "#3d9fd6", "#7a5195")
"""Okabe and Ito's colours, which colour-blind people can tell apart, but for the yellow: it is too pale for letters."""

_RANGE = 12.0
"""Nats below the best score at which a colour has faded: 1 / 160,000 of the best probability."""

_AWAY = 20.0
"""The most points by which a name may be moved from the middle of its span."""


def plot_alignment(
    log_probs: ArrayLike,
    spans: Sequence[TokenSpan],
    posteriors: ArrayLike | None = None,
    *,
    blank: int = 0,
    label_names: Sequence[str] | Mapping[int, str] | None = None,
    seconds_per_frame: float | None = None,
    title: str | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> "Figure | SubFigure":
    """Draw one utterance and its alignment.

    The figure has three panels over one axis of time: the log probabilities of the blank and of the classes in the
    target, with the alignment underlined; the posterior of each label, given the target; and the spans, each as high
    as its confidence, ``exp(score)``, the geometric mean of the probabilities along it. Names that would overlap are
    moved a little; where that is not enough they are left out.

    Shapes: T frames, C classes with the blank.

    Args:
        log_probs: Log probabilities of one sequence, (T, C), without the padding.
        spans: The frames of each label, as `merge_tokens` returns them.
        posteriors: The probability of each class at each frame, given the target, (T, C): `classes` of
            `ctc_posteriors`. None leaves that panel out.
        blank: Index of the blank class.
        label_names: The name of each class, in a sequence or a mapping. Classes without a name show their index.
        seconds_per_frame: The duration of a frame. With it the axis of time shows seconds, without it frames.
        title: The title above the panels.
        figure: The figure to draw on, for instance ``plt.figure(layout="constrained")``, or one of its subfigures. By
            default a new one that pyplot does not register, so that it need not be closed.

    Returns:
        The figure: ``figure.savefig("alignment.png")`` writes it, and a notebook shows it.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `log_probs` is not of a floating-point type, or `blank` is not an int.
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
        raise ImportError('plot_alignment draws with matplotlib: pip install "jaxctc[plot]"') from error

    scores = np.asarray(checks.scores("log_probs", log_probs), np.float64)
    gamma = None if posteriors is None else np.asarray(posteriors, np.float64)
    _check(scores, spans, gamma, label_names, seconds_per_frame)
    blank = checks.blank(blank, scores.shape[1])
    classes = list(dict.fromkeys(span.token for span in spans))
    names = {k: _name(k, label_names) for k in classes}
    colours = _colours(spans, names)
    scale = 1.0 if seconds_per_frame is None else seconds_per_frame

    heights = [0.4 + 0.13 * (len(classes) + 1), *([] if gamma is None else [1.3]), 1.1]
    if figure is None:
        figure = Figure(figsize=(10, sum(heights) + 0.8), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(QUIET)
        axes.tick_params(colors=QUIET, labelsize=8)
        axes.yaxis.label.set(color=INK, size=9)
    _draw_scores(panels[0], scores, spans, [*classes, blank], names, colours, scale)
    if gamma is not None:
        _draw_posteriors(panels[1], gamma, blank, colours, scale)
    _draw_spans(panels[-1], spans, names, colours, scale)
    panels[-1].set_xlim(0, len(scores) * scale)
    panels[-1].set_xlabel("frame" if seconds_per_frame is None else "seconds", color=INK, size=9)
    if title is not None:
        panels[0].set_title(title, loc="left", color=INK, size=10, fontweight="bold", wrap=True)
    figure.figure.draw_without_rendering()  # only now the extents of the names are known
    _spread(panels[-1].texts, figure.figure.dpi / 72)
    return figure


def _check(
    scores: np.ndarray,
    spans: Sequence[TokenSpan],
    posteriors: np.ndarray | None,
    label_names: Sequence[str] | Mapping[int, str] | None,
    seconds_per_frame: float | None,
) -> None:
    if scores.ndim != 2:
        raise ValueError(
            f"log_probs must have shape (T, C), one sequence; got {scores.shape}. "
            "Of a batch draw one: log_probs[:length, n]."
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
    if label_names is not None and not isinstance(label_names, Mapping) and len(label_names) != classes:
        raise ValueError(
            f"label_names holds {len(label_names)} names, but there are C = {classes} classes: give one each, "
            "the blank included, or a mapping from class to name."
        )
    if seconds_per_frame is not None and not seconds_per_frame > 0:
        raise ValueError(f"seconds_per_frame is {seconds_per_frame}: it must be positive.")


def _name(label: int, names: Sequence[str] | Mapping[int, str] | None) -> str:
    if names is None or (isinstance(names, Mapping) and label not in names):
        return str(label)
    return names[label]


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
    for span in spans:
        y = rows.index(span.token) + 1
        axes.plot([span.start * scale, span.end * scale], [y, y], color=INK, linewidth=1.5, solid_capstyle="butt")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [*(names[label].strip() or "␣" for label in rows[:-1]), "blank"])
    axes.tick_params(axis="y", length=0)
    for text, label in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color(colours.get(label, QUIET))
    axes.set_ylabel("log probability")
    axes.tick_params(axis="x", length=0)


def _draw_posteriors(axes: "Axes", posteriors: np.ndarray, blank: int, colours: dict[int, str], scale: float) -> None:
    edges = np.arange(len(posteriors) + 1) * scale
    axes.stairs(posteriors[:, blank], edges, fill=True, color=QUIET, alpha=0.15)
    for label, colour in colours.items():
        # Lines along zero would cover each other, and only the last label's would show.
        likely = np.where(posteriors[:, label] > 1e-3, posteriors[:, label], np.nan)
        axes.stairs(likely, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(likely, edges, color=colour, linewidth=0.8)
    axes.set(ylim=(0, 1.02), yticks=[0, 1], ylabel="posterior")
    axes.tick_params(axis="x", length=0)


def _draw_spans(
    axes: "Axes", spans: Sequence[TokenSpan], names: dict[int, str], colours: dict[int, str], scale: float
) -> None:
    for span in spans:
        x, width, colour = span.start * scale, (span.end - span.start) * scale, colours[span.token]
        axes.bar(x, 1, width, align="edge", color=colour, alpha=0.2, linewidth=0)
        axes.bar(x, min(np.exp(span.score), 1), width, align="edge", color=colour, linewidth=0)
        middle = (x + width / 2, 1)
        name = axes.annotate(names[span.token], middle, (0, 2), textcoords="offset points", ha="center", va="bottom")
        name.set(color=colour, fontsize=8, fontweight="bold")
    axes.set(ylim=(0, 1.3), yticks=[0, 1], ylabel="confidence")


def _spread(texts: "Sequence[Text]", point: float) -> None:
    """Move names that would overlap apart, and hide those that would have to move too far."""
    boxes = [text.get_window_extent() for text in texts]
    centres = np.array([(box.x0 + box.x1) / 2 for box in boxes]) / point
    widths = np.array([box.width for box in boxes]) / point
    shown: list[int] = []
    moves = centres[:0]
    for i, text in enumerate(texts):
        more = [*shown, i]
        moved = _apart(centres[more], widths[more]) - centres[more]
        text.set_visible(bool(np.abs(moved).max() <= _AWAY))
        if text.get_visible():
            shown, moves = more, moved
    for i, move in zip(shown, moves, strict=True):
        texts[i].set(position=(move, 2))


def _apart(centres: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the centres that are nearest to the given ones in the mean square without overlap, in the same order."""
    # With the room that earlier names take subtracted, the centres need only be non-decreasing: isotonic regression.
    room = np.cumsum(widths) - widths / 2
    blocks: list[tuple[float, int]] = []
    for wish in centres - room:
        value, count = wish, 1
        while blocks and blocks[-1][0] > value:
            before, more = blocks.pop()
            value, count = (before * more + value * count) / (more + count), more + count
        blocks.append((value, count))
    return np.repeat([value for value, _ in blocks], [count for _, count in blocks]) + room
