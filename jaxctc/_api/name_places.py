"""Write the names of labels above their spans, side by side where they would overlap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxctc._api.alignment import TokenSpan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AS_GIVEN: dict[str, Any] = {"parse_math": False, "usetex": False}
"""Properties of the caller's text: a dollar begins no formula, and a backslash no command."""

_AWAY = 20.0
"""The most points by which a name may be moved from the middle of its span."""

NAME: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", **AS_GIVEN}


def draw_names(
    axes: "Axes", spans: Sequence[TokenSpan], names: dict[int, str], colours: dict[int, str], scale: float
) -> None:
    """Write the names above their spans, moved apart where they would overlap, and not where there is no room."""
    figure = axes.figure.figure  # of a subfigure, the whole
    figure.draw_without_rendering()  # only now the places of the spans are known, and next the widths of the names
    widths = {label: text_width(axes, name, **NAME) for label, name in names.items()}
    middles = np.array([(span.start + span.end) / 2 * scale for span in spans])
    texts = []
    for i in np.flatnonzero(~np.isnan(_moves(axes, middles, [widths[span.token] for span in spans]))).tolist():
        text = axes.annotate(
            names[spans[i].token],
            (middles[i], 1),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            **NAME,
        )
        text.set_color(colours[spans[i].token])
        texts.append((text, middles[i], widths[spans[i].token]))
    if not texts:
        return
    figure.draw_without_rendering()  # the names at the ends may have narrowed the axes
    moves = _moves(axes, np.array([middle for _, middle, _ in texts]), [width for *_, width in texts])
    for (text, *_), move in zip(texts, moves, strict=True):
        text.set(position=(np.nan_to_num(move), 2), visible=not np.isnan(move))


def text_width(axes: "Axes", shown: str, **properties: Any) -> float:
    """Return the width of a text in points."""
    text = axes.text(0, 0, shown, **properties)
    width = text.get_window_extent().width * 72 / axes.figure.figure.dpi
    text.remove()
    return width


def _moves(axes: "Axes", middles: np.ndarray, widths: Sequence[float]) -> np.ndarray:
    """Return by how many points to move each name from the middle of its span; NaN: leave it out."""
    pixels = axes.transData.transform(np.stack([middles, np.ones_like(middles)], axis=1))[:, 0]
    centres = pixels * 72 / axes.figure.figure.dpi
    return _apart(centres, np.asarray(widths), _AWAY) - centres


def _apart(centres: np.ndarray, widths: np.ndarray, away: float = np.inf) -> np.ndarray:
    """Return the centres that are nearest to the given ones in the mean square without overlap, in the same order.

    One that could be there only if some centre were moved by more than `away` is left out: it is NaN.
    """
    # With the room that earlier names take subtracted, the centres need only be non-decreasing: isotonic regression. A
    # block is a run of names that touch: their mean wish, their number, their least and their greatest wish.
    blocks: list[tuple[float, int, float, float]] = []
    shown: list[int] = []
    offsets: list[float] = []
    room = 0.0
    for i, (centre, width) in enumerate(zip(centres.tolist(), widths.tolist(), strict=True)):
        wish = centre - room - width / 2
        mean, count, least, greatest = wish, 1, wish, wish
        kept = len(blocks)
        while kept and blocks[kept - 1][0] > mean:
            kept -= 1
            before, more, low, high = blocks[kept]
            mean, count = (before * more + mean * count) / (more + count), more + count
            least, greatest = min(least, low), max(greatest, high)
        if max(mean - least, greatest - mean) <= away:
            blocks[kept:] = [(mean, count, least, greatest)]
            shown.append(i)
            offsets.append(room + width / 2)
            room += width
    moved = np.full(len(centres), np.nan)
    moved[shown] = np.repeat([block[0] for block in blocks], [block[1] for block in blocks]) + offsets
    return moved
