"""Pictures of the figures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks._peers import OURS, Job
from benchmarks._report import milliseconds
from benchmarks._results import Measurement, Results
from benchmarks._shapes import Shape
from benchmarks._sweeps import BASE, SIZES, along

INK, PAPER, QUIET, RULE, ACCENT = "#1b1f3b", "#ffffff", "#6f7489", "#dfe1e8", "#d1495b"
COLOURS = {
    "jaxctc": ACCENT,
    "bridge": ACCENT,
    "jaxctc xla": "#e3a4ab",
    "bridge, padded": "#e3a4ab",
    "JAX call": QUIET,
    "torch": "#2f6db5",
    "torch cuDNN": "#0f8b8d",
    "optax": "#e07b00",
    "Keras on jax": "#c9a227",
    "TensorFlow": "#7a4fb5",
    "floor": QUIET,
}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "figure.facecolor": PAPER,
}


def bars(results: Results, path: Path) -> None:
    """For every job and shape, how many times as long as ours the others take."""
    jobs = [job for job in Job if results.select(job)]
    shapes = [shape for shape in results.shapes(jobs[0]) if (ours := results.ours(jobs[0], shape)) and ours.rounds]
    # The loss first and the bridge last have the same shapes; a row for each of the most numerous peers.
    heights = {shape: max(len(results.select(job, shape)) for job in jobs) for shape in shapes}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(jobs),
            figsize=(2 + 4 * len(jobs), 1.7 + 0.23 * sum(heights.values()) + 0.25 * len(shapes)),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=1.3 / figure.get_figwidth(), right=0.95, top=1 - 1.25 / height, bottom=0.45 / height
        )
        axes[0, 0].set_xscale("log", base=2)
        for axis, job in zip(axes[0], jobs, strict=True):
            top = 0.0
            for shape in shapes:
                _group(axis, results, job, shape, top)
                if axis is axes[0, 0]:
                    _name(axis, shape, top)
                top += heights[shape] + 1
            _ratio_axis(axis, job.title.replace(": ", ":\n").replace(", from", ",\nfrom", job is not Job.BRIDGE))
        low, high = axes[0, 0].get_xlim()
        axes[0, 0].set_xlim(min(low, 0.93), high * 2.6)  # room for the last label
        axes[0, 0].set_ylim(top - 0.7, -0.9)
        _heading(figure, "How many times as long as jaxctc the others take", _machine(results))
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _group(axis: Axes, results: Results, job: Job, shape: Shape, top: float) -> None:
    for i, m in enumerate(m for m in results.select(job, shape) if m.rounds):
        if m.peer in OURS:
            axis.plot(1, top + i, "o", color=ACCENT, markersize=5, zorder=3)
            label, end = f"{m.peer}  {milliseconds(m.seconds)} ms", 1.0
        else:
            ratio = results.ratio(m)
            axis.barh(top + i, ratio - 1, left=1, height=0.72, color=COLOURS[m.peer])
            label, end = f"{m.peer}  {ratio:.1f}×", max(ratio, 1.0)
        axis.annotate(
            label,
            (end, top + i),
            (7, -0.5),
            textcoords="offset points",
            va="center",
            color=ACCENT if m.peer in OURS else INK,
            weight="bold" if m.peer in OURS else "normal",
        )


def _name(axis: Axes, shape: Shape, top: float) -> None:
    lines = [(shape.sizes, QUIET, 8)]
    if shape.name != shape.sizes:
        lines.insert(0, (shape.name, INK, 11))
    for i, (text, colour, size) in enumerate(lines):
        axis.annotate(
            text,
            (0, top + 0.85 * i),
            (-14, 0),
            xycoords=axis.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="center",
            color=colour,
            fontsize=size,
            weight="bold" if colour == INK else "normal",
        )


def _ratio_axis(axis: Axes, title: str) -> None:
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.axvline(1, color=ACCENT, linewidth=1)
    axis.grid(axis="x", color=RULE, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10, weight="bold", color=INK)


def curves(results: Results, path: Path) -> None:
    """Time and memory of loss and gradient against each of T, N, C and S."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(SIZES), figsize=(13, 6.6), sharex="col", sharey="row")
        figure.subplots_adjust(left=0.06, right=0.945, top=0.83, bottom=0.07, wspace=0.2, hspace=0.14)
        for (time, memory), name in zip(axes.T, SIZES, strict=True):
            rows = [row for shape in along(name) if (row := results.select(Job.GRADIENT, shape))]
            sizes = [getattr(row[0].shape, name) for row in rows]
            for peers in zip(*rows, strict=True):
                _curve(time, sizes, [m.seconds * 1e3 for m in peers], peers[0].peer)
                _curve(memory, sizes, [_visible_megabytes(m) for m in peers], peers[0].peer)
            _curve(time, sizes, [row[0].floor_seconds * 1e3 for row in rows], "floor")
            others = ", ".join(f"{key}={getattr(BASE, key)}" for key in SIZES if key != name)
            time.set_title(f"{name}\n", loc="left", fontsize=11, weight="bold", color=INK)
            time.text(0, 1.03, others, transform=time.transAxes, color=QUIET, fontsize=8)
        axes[0, 0].set_ylabel("time, ms")
        axes[1, 0].set_ylabel("memory above inputs and gradient, MB")
        for axis in axes.flat:
            _log_log(axis)
        for axis in axes.flat:
            _label_ends(axis)
        _heading(figure, "How the time and memory of loss and gradient grow", _machine(results))
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _visible_megabytes(m: Measurement) -> float:
    """Less than a tenth cannot be told from nothing."""
    return max(m.peak_bytes / 1e6, 0.1)


def _curve(axis: Axes, x: Sequence[float], y: Sequence[float], name: str) -> None:
    style = {"linewidth": 1.4, "marker": "o", "markersize": 3}
    if name in OURS:
        style |= {"linewidth": 2, "zorder": 3}
    elif name == "floor":
        style = {"linewidth": 1, "linestyle": (0, (1, 2))}
    axis.plot(x, y, color=COLOURS[name], label=name, **style)


def _label_ends(axis: Axes) -> None:
    """Names every curve at its end, and keeps the names apart; for when the limits of the axes are settled."""
    points = 72 / axis.figure.dpi
    axis.get_ylim()  # settles them
    below = float("-inf")
    for curve in sorted(axis.lines, key=lambda curve: curve.get_ydata()[-1]):
        end = curve.get_xydata()[-1]
        height = axis.transData.transform(end)[1] * points
        below = max(height, below + 10)
        axis.annotate(
            curve.get_label(),
            end,
            (5, below - height),
            textcoords="offset points",
            va="center",
            color=curve.get_color(),
            fontsize=8,
        )


def _log_log(axis: Axes) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_major_locator(LogLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(length=0)
    axis.grid(color=RULE, linewidth=0.7)
    axis.spines[:].set_visible(False)


def _heading(figure: plt.Figure, title: str, subtitle: str) -> None:
    left, height = figure.subplotpars.left, figure.get_figheight()
    figure.text(left, 1 - 0.33 / height, title, fontsize=15, weight="bold", va="center")
    figure.text(left, 1 - 0.6 / height, subtitle, color=QUIET, va="center")


def _machine(results: Results) -> str:
    machine = results.machine
    device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    versions = ", ".join(f"{key} {machine[key]}" for key in ("jax", "torch", "optax") if key in machine)
    return f"{device}, {machine['threads']} threads; {versions}; {machine['date'][:10]}"
