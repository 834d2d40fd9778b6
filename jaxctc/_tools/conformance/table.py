"""Write what was found as tables, for a terminal and in Markdown, and as JSON."""

import re
from typing import Any

from jaxctc._tools.conformance.case import Case


def aspects(cases: list[Case], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each aspect: how many of its cases held, the largest error, and the first remark."""
    rows: dict[str, dict[str, Any]] = {}
    for case, result in zip(cases, results, strict=True):
        row = rows.setdefault(case.aspect, {"aspect": case.aspect, "held": 0, "asked": 0, "error": None, "note": ""})
        held = result.get("held", False)
        if held is None:
            row["note"] = row["note"] or result["note"]
            continue
        row["asked"] += 1
        row["held"] += bool(held)
        if result.get("error") is not None:
            row["error"] = max(row["error"] or 0, result["error"])
        if not held:
            row["note"] = f"{case.name}: {result.get('note') or 'off'}"
    return list(rows.values())


def verdict(row: dict[str, Any]) -> str:
    """Return "held", "not held", how many cases of several held, or "not asked"."""
    if not row["asked"]:
        return "not asked"
    if row["held"] == row["asked"]:
        return "held"
    return "not held" if not row["held"] else f"{row['held']} of {row['asked']}"


def text(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a table of one implementation in plain columns."""
    table = [(name, "", "largest error", "")]
    table += [(row["aspect"], verdict(row), _number(row["error"]), row["note"]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in table)


def markdown(reports: list[dict[str, Any]]) -> str:
    """Return a table with one column for each report."""
    heads = [f"{report['function']}<br>{report['version']}".removesuffix("<br>") for report in reports]
    rows = zip(*(report["aspects"] for report in reports), strict=True)
    return _table(heads, [(row[0]["aspect"], [_cell(each) for each in row]) for row in rows])


def differences(reports: list[dict[str, Any]], cases: list[Case]) -> str:
    """Return a table of the aspects that one of the reports does not hold to, with what came back instead."""
    rows = []
    for aspect in dict.fromkeys(case.aspect for case in cases):
        names = [case.name for case in cases if case.aspect == aspect]
        cells = [_answer([row for row in report["cases"] if row["name"] in names]) for report in reports]
        if not {*cells} <= {"right", "not asked"}:
            rows.append((aspect, cells))
    return _table([report["function"] for report in reports], rows)


def _answer(results: list[dict[str, Any]]) -> str:
    asked = [result for result in results if result.get("held", False) is not None]
    wrong = [result for result in asked if not result.get("held")]
    if not wrong:
        return "right" if asked else "not asked"
    raised = re.match(r"\w+Error(?=:)", wrong[0]["note"])
    return raised[0] if raised else wrong[0]["note"]


def _table(heads: list[str], rows: list[tuple[str, list[str]]]) -> str:
    lines = [" | ".join(["|", *heads]) + " |", "| --- " * (len(heads) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)]) + "\n"


def _cell(row: dict[str, Any]) -> str:
    said = verdict(row)
    return said if row["error"] is None else f"{said} ({_number(row['error'])})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"
