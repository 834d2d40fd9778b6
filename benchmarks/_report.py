"""Tables for a terminal."""

import itertools
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from benchmarks._peers import OURS, Job
from benchmarks._requirements import Verdict
from benchmarks._results import Measurement, Results

WIDTH = 130
"""The width of the widest table, in characters."""


def machine_line(results: Results) -> str:
    return ", ".join(f"{key} {value}" for key, value in results.machine.items())


def table(results: Results, job: Job) -> Table:
    """One row an implementation, by shape."""
    measured = Table(title=job.title, title_justify="left", title_style="bold")
    measured.add_column("shape: T, N, C, S", no_wrap=True)
    measured.add_column("implementation", no_wrap=True)
    columns = ["time, ms", "times ours", "times floor", "memory, MB", "compile, CPU s"]
    if job is Job.GRADIENT:
        columns += ["loss error, ulp", "gradient error"]
    for column in columns:
        measured.add_column(column, justify="right", no_wrap=True)
    for shape in results.shapes(job):
        rows = results.select(job, shape)
        names = itertools.chain(
            [Text(shape.name, "bold"), Text(shape.sizes if shape.name != shape.sizes else "", "dim")],
            itertools.repeat(""),
        )
        for m in rows:
            figures = [Text("failed", "bold red")] if m.failure else _figures(results, m)[: len(columns)]
            measured.add_row(next(names), Text(m.peer, "bold green" if m.peer in OURS else ""), *figures)
        if floor := rows[0].floor_seconds:
            measured.add_row(next(names), Text("floor", "dim"), Text(milliseconds(floor), "dim"))
        measured.add_section()
    return measured


def _figures(results: Results, m: Measurement) -> list[str]:
    ratio = results.ratio(m)
    return [
        milliseconds(m.seconds) if m.seconds else "",
        f"{ratio:.2f}" if ratio and m.peer not in OURS else "",
        f"{m.seconds / m.floor_seconds:.1f}" if m.seconds and m.floor_seconds else "",
        megabytes(m.peak_bytes) if m.peak_bytes is not None else "",
        f"{m.compile_cpu_seconds:.2f}" if m.compile_cpu_seconds is not None else "",
        f"{m.loss_error:.1e}, {m.loss_error_ulps:4.1f}" if m.loss_error is not None else "",
        f"{m.gradient_error:.1e}" if m.gradient_error is not None else "",
    ]


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    judged = Table(title="What must be reached", title_justify="left", title_style="bold")
    for column in ("requirement", "where"):
        judged.add_column(column)
    for column in ("required", "reached", ""):
        judged.add_column(column, justify="right")
    for verdict in verdicts:
        *row, met = verdict
        judged.add_row(*row, Text("met", "green") if met else Text("missed", "bold red"))
    return judged


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return _three_digits(seconds * 1e3)


def megabytes(size: float) -> str:
    """Millions of bytes, to the resolution of the measurement."""
    return f"{size / 1e6:.1f}"


def _three_digits(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"
