"""Check the implementations on the devices at hand: ``python -m jaxctc.check``.

Each implementation is compared with the reference, in float64 on a CPU, on batches of every kind and width; then it is
timed, in turn with optax and PyTorch where they are installed. Every row has a time limit and runs in a process apart:
a kernel that crashes or never returns is a row of the report. On a CPU, kernels are interpreted.

The last line says whether to choose kernels, by `jaxctc.set_implementation` or ``JAXCTC_IMPLEMENTATION``. The exit
status is 0 if every row is right, or is not served by that implementation, with the reason; else it is 1.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from jaxctc._tools import processes
from jaxctc._tools.check import cases, report, timing
from jaxctc._tools.check.worker import INTERPRETED

_SECONDS = 120.0
_WORKER = "jaxctc._tools.check.worker"


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jaxctc.check", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--full", action="store_true", help="run every case and shape, however long it takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there, to attach to an issue")
    parser.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="the longest for one row (60)")
    parser.add_argument("--no-timings", action="store_true", help="compare only")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, which may register kernels of its own",
    )
    parser.add_argument(
        "--implementation",
        action="append",
        default=[],
        metavar="NAME",
        help="check this one, perhaps one that --import registers; else all are checked",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME",
        help="run this case, of those that would be run; else all are",
    )
    options = parser.parse_args(arguments)
    known = [case.name for case in cases.CASES]
    for name in options.case:
        if name not in known:
            parser.error(f"--case is {name!r}: it must be one of {', '.join(map(repr, known))}.")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the check with these arguments, by default those of the command line, and return the exit status."""
    options = _arguments(arguments)
    deadline = float("inf") if options.full else time.monotonic() + _SECONDS
    task = {"modules": options.modules}
    machine = processes.machine(_WORKER, task)
    on_cpu = machine["backend"] == "cpu"
    names = options.implementation or ["xla", INTERPRETED if on_cpu else "pallas"]

    def run(rows: list[dict[str, Any]], titles: list[str]) -> list[dict[str, Any]]:
        results = processes.run(_WORKER, rows, titles, task, options.limit, deadline)
        return [{**row, **result} for row, result in zip(rows, results, strict=True)]

    chosen = cases.chosen(full=options.full, devices=len(machine["devices"]), interpreted=on_cpu)
    pairs = [(case, name) for case in chosen for name in names if not options.case or case.name in options.case]
    checks = run(
        [{"case": case._asdict(), "implementation": name} for case, name in pairs],
        [f"{case.name}, {name}" for case, name in pairs],
    )
    timings: list[dict[str, Any]] = []
    if not options.no_timings:
        right = [name for name in names if name != INTERPRETED and report.is_right(name, checks)]
        shapes = timing.FULL_SHAPES if options.full else timing.SHAPES
        rows = [{"shape": list(shape), "implementations": right} for shape in shapes]
        timings = run(rows, [f"timing {tuple(shape)}" for shape in shapes])
    report.write(machine, checks, timings)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(machine, checks, timings), indent=1) + "\n")
    return 0 if report.verdict(machine, checks, timings)[0] else 1


if __name__ == "__main__":
    sys.exit(main())
