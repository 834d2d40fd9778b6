"""Write the report of the check: a table for people, and JSON to attach to an issue."""

import importlib.util
import sys
from typing import Any, TextIO

RIGHT = "right"
HARMLESS = (RIGHT, "not served")
"""What may become of a row without anything being wrong."""


def as_json(machine: dict[str, Any], checks: list[dict[str, Any]], timings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all of the report, the verdict included, as JSON has it."""
    return {"machine": machine, "checks": checks, "timings": timings, "verdict": verdict(machine, checks, timings)[1]}


def write(
    machine: dict[str, Any], checks: list[dict[str, Any]], timings: list[dict[str, Any]], file: TextIO = sys.stdout
) -> None:
    """Print the machine, the table of cases, that of times, and in the last line what to do."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    devices = machine["devices"]
    print(f"\n{len(devices)} x {devices[0]} ({machine['backend']}; {machine['driver']})\n{versions}\n", file=file)
    rows: list[tuple[str, ...]] = [
        (
            row["case"]["name"],
            ", ".join(str(row["case"][axis]) for axis in "TNCS"),
            row["implementation"],
            row["status"],
            _number(row.get("loss_error")),
            _number(row.get("gradient_error")),
            row.get("note") or "",
        )
        for row in checks
    ]
    _table(("case", "T, N, C, S", "implementation", "", "loss error", "gradient error", ""), rows, file)
    if timings:
        names = list(dict.fromkeys(name for row in timings for name in row.get("milliseconds", {})))
        heads = ("loss and gradient, ms", *names, "")
        table: list[tuple[str, ...]] = [
            (
                ", ".join(map(str, row["shape"])),
                *(_number(row.get("milliseconds", {}).get(name), "{:.2f}") for name in names),
                row.get("note") or row.get("status") or "",
            )
            for row in timings
        ]
        print(file=file)
        _table(heads, table, file)
    print(f"\n{verdict(machine, checks, timings)[1]}", file=file)


def verdict(machine: dict[str, Any], checks: list[dict[str, Any]], timings: list[dict[str, Any]]) -> tuple[bool, str]:
    """Return whether nothing is wrong, and in a sentence what was found and which implementation to choose."""
    wrong = [row for row in checks if row["status"] not in (*HARMLESS, "not reached")]
    missed = sum(row["status"] == "not reached" for row in checks)
    after = f" {missed} rows were not reached in the time given: --full runs them all." if missed else ""
    if wrong:
        names = ", ".join(dict.fromkeys(row["implementation"] for row in wrong))
        report = "please report it, with the file that --json writes"
        return (
            False,
            f"{len(wrong)} of {len(checks)} rows are wrong, of {names}: do not choose it, and {report}.{after}",
        )
    kernels = [row for row in checks if row["implementation"] == "pallas" and row["status"] == RIGHT]
    served = [row for row in checks if row["status"] == RIGHT]
    if not kernels:
        there = "There are no kernels for this device" if machine["backend"] != "cpu" else "This is a CPU"
        return not missed, f"All {len(served)} rows are right. {there}: leave implementation to None.{after}"
    ratios = [
        row["milliseconds"]["xla"] / row["milliseconds"]["pallas"]
        for row in timings
        if {"xla", "pallas"} <= row.get("milliseconds", {}).keys()
    ]
    said = f"All {len(served)} rows are right."
    if not ratios:
        return not missed, f"{said} The kernels were not timed.{after}"
    fastest = f"{min(ratios):.2g} to {max(ratios):.2g} times as fast as XLA's loops"
    if min(ratios) < 1:
        return not missed, f"{said} The kernels are {fastest}: choose by the shapes that you use.{after}"
    choice = "jaxctc.set_implementation('pallas') or JAXCTC_IMPLEMENTATION=pallas"
    return not missed, f"{said} The kernels are {fastest}: choose them, by {choice}.{after}"


def is_right(implementation: str, checks: list[dict[str, Any]]) -> bool:
    """Return whether an implementation has served some case, and none wrongly."""
    statuses = {row["status"] for row in checks if row["implementation"] == implementation}
    return RIGHT in statuses and statuses <= {*HARMLESS, "not reached"}


def _number(value: float | None, form: str = "{:.1e}") -> str:
    return "" if value is None else form.format(value)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]], file: TextIO) -> None:
    if importlib.util.find_spec("rich") and file.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*heads)
        for row in rows:
            style = None if {"wrong", "failed", "crashed", "no answer"}.isdisjoint(row) else "bold red"
            table.add_row(*row, style=style)
        Console(file=file).print(table)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), file=file)
