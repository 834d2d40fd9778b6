"""Write a diagnosis as plain text, and in colour where rich is installed."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jaxctc.diagnose._findings import Finding, Row

_WIDTH = 110
_MOST_ROWS = 12
"""Rows of the table; `Diagnosis.rows` holds all."""
_MOST_NUMBERS = 6
_TEXT = 24
"""Characters of a reading or target."""
_COLUMNS = (
    "row", "frames", "labels", "needed", "feasible", "loss", "a label", "uniform", "blank", "entropy", "best path",
    "target",
)  # fmt: skip
_COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def text(findings: Sequence[Finding], rows: Sequence[Row], shape: Sequence[int], blank: int) -> str:
    """Return the report. `shape` is T, N and C, or empty where the arguments do not make a batch."""
    parts = [_headline(findings, shape, blank)]
    parts += ["\n".join(_lines(f, len(rows))) for f in findings]
    if rows:
        parts.append("\n".join(_table(findings, rows)))
    return "\n\n".join(parts)


def rich(report: str) -> Any:
    """Return the report in colour. It is rich that asks for it, so that it is installed."""
    from rich.text import Text  # noqa: PLC0415 # optional

    made = Text(report)
    for severity, colour in _COLOURS.items():
        made.highlight_regex(rf"(?m)^{severity.upper()}: \S+", colour)
    made.highlight_regex(r"(?m)^  (rows|evidence|remedy|see) ", "dim")
    return made


def _headline(findings: Sequence[Finding], shape: Sequence[int], blank: int) -> str:
    said = "These arguments do not make a batch."
    if shape:
        frames, sequences, classes = shape
        said = (
            f"A batch of {_count(sequences, 'sequence')}, up to {_count(frames, 'frame')} and {classes} classes; "
            f"the blank is class {blank}."
        )
    counts = [(sum(f.severity == severity for f in findings), severity) for severity in _COLOURS]
    found = ", ".join(_count(number, severity) for number, severity in counts if number)
    return f"{said} {f'Found: {found}' if found else 'Nothing is wrong with it'}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _lines(finding: Finding, sequences: int) -> list[str]:
    """Return one finding."""
    lines = _wrapped(f"{finding.severity.upper()}: {finding.code}. {finding.what}", "", "  ")
    if finding.rows:
        every = len(finding.rows) == sequences > 1
        rows = f"all {sequences}" if every else _listed(finding.rows, 2 * _MOST_NUMBERS)
        lines += _wrapped(rows, "  rows      ")
    if finding.evidence:
        said = "; ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in finding.evidence.items())
        lines += _wrapped(said, "  evidence  ")
    lines += _wrapped(finding.remedy, "  remedy    ")
    if finding.source:
        lines.append(f"  see       {finding.source}")
    return lines


def _wrapped(said: str, first: str, later: str | None = None) -> list[str]:
    return textwrap.wrap(
        said,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first) if later is None else later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _listed(values: Sequence[Any], most: int = _MOST_NUMBERS) -> str:
    said = ", ".join(_value(x) for x in values[:most])
    return f"{said} and {len(values) - most} more" if len(values) > most else said or "none"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(x)}" for name, x in value.items())
    if isinstance(value, list | tuple):
        return _listed(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _table(findings: Sequence[Finding], rows: Sequence[Row]) -> list[str]:
    """Return the rows, those of findings first where there are too many."""
    shown = list(range(len(rows)))
    if len(shown) > _MOST_ROWS:
        named = dict.fromkeys(n for f in findings for n in f.rows)
        shown = sorted([*named, *(n for n in shown if n not in named)][:_MOST_ROWS])
    cells = [list(_COLUMNS), *(_cells(n, rows[n]) for n in shown)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(_aligned(line, widths)).rstrip() for line in cells]
    if len(shown) < len(rows):
        lines.append(f"... and {_count(len(rows) - len(shown), 'more row')}.")
    return lines


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Numbers to the right, the two texts at the end to the left."""
    texts = len(_COLUMNS) - 2
    return [
        cell.ljust(width) if i >= texts else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def _cells(n: int, row: Row) -> list[str]:
    share = "" if math.isnan(row.blank_share) else f"{row.blank_share:.0%}"
    return [
        str(n), str(row.frames), str(row.labels), str(row.needed), "yes" if row.feasible else "no",
        _nats(row.loss), _nats(row.loss_per_label), _nats(row.uniform_loss), share, _nats(row.entropy),
        _short(row.reading), _short(row.target),
    ]  # fmt: skip


def _nats(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    # A loss that rounding made a little less than 0 is shown as 0.
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 1e5 else f"{value:.3g}"


def _short(said: str) -> str:
    said = said if said.isprintable() else "".join(c if c.isprintable() else "?" for c in said)
    return f"{said[: _TEXT - 3]}..." if len(said) > _TEXT else said
