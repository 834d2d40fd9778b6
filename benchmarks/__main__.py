"""The command line: `python -m benchmarks --help`."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import _charts, _machine, _report, _requirements, _sweeps
from benchmarks._peers import OURS, PEERS, Job
from benchmarks._results import Results, slug
from benchmarks._run import Plan, measure
from benchmarks._shapes import LONGEST, SHAPES, Shape

NAMED = {shape.name: shape for shape in SHAPES}
RIVALS = [peer.name for peer in PEERS if peer.name not in OURS]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes; 1 if a requirement was to be checked and missed."""
    options = _parser().parse_args(arguments)
    if importlib.util.find_spec("torch") is None:
        sys.exit("PyTorch in float64 is what errors are measured against: install the build that suits this machine.")
    _machine.bound(options.threads)
    results = Results(_machine.describe())
    console = Console()
    if not console.is_terminal:
        console.width = _report.WIDTH
    console.print(_report.machine_line(results), style="dim")
    plan = Plan(*((0.5, 3) if options.quick else (8, 7)), options.ragged, options.rivals)
    if options.sweeps:
        plan = plan._replace(seconds=plan.seconds / 4, rivals=plan.rivals or _sweeps.RIVALS)
        cells = [(Job.GRADIENT, shape) for axis in _sweeps.SIZES for shape in _sweeps.along(axis, options.quick)]
    else:
        shapes = options.shape or SHAPES
        cells = [(job, shape) for job in Job for shape in shapes]
        if not options.shape:
            cells.append((Job.GRADIENT, LONGEST))
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    ) as progress:  # fmt: skip
        watch = _machine.Watch()
        results.measurements += measure(cells, plan, progress)
        results.machine["others_share"] = round(watch.others_share(), 3)

    for job in Job:
        if results.select(job):
            console.print(_report.table(results, job))
    share = results.machine["others_share"]
    if share > _machine.QUIET:
        console.print(
            f"Others took {share:.0%} of the processors meanwhile. Do not keep these figures: PyTorch's threads wait "
            "for one another, and suffer from that more than XLA's.",
            style="bold yellow",
        )
    kind = "-".join(
        [slug(_machine.device_kind()), *(name for name in ("sweeps", "ragged", "quick") if getattr(options, name))]
    )
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / kind
    results.write(stem.with_suffix(".json"))
    (_charts.curves if options.sweeps else _charts.bars)(results, stem.with_suffix(".png"))
    console.print(f"Written: {stem}.json and .png")

    if not options.check:
        return 0
    verdicts = list(_requirements.verdicts(results))
    console.print(_report.verdict_table(verdicts))
    return int(not all(verdict.met for verdict in verdicts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time, memory and accuracy beside others."
    )
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="T,N,C,S",
        help=f"measure this in place of the five, or one of them by its name ({', '.join(NAMED)}); may be repeated",
    )
    parser.add_argument(
        "--rivals",
        type=_rivals,
        metavar="NAME,NAME",
        help=f"compare with these alone, of {', '.join(RIVALS)}; else with all that are installed",
    )
    parser.add_argument("--sweeps", action="store_true", help="let T, N, C and S grow one at a time instead")
    parser.add_argument("--ragged", action="store_true", help="sequences of different length")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--check", action="store_true", help="fail if what must be reached is not")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="for each implementation; else all there are"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="a folder")
    return parser


def _shape(text: str) -> Shape:
    try:
        return NAMED.get(text) or Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _rivals(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names).difference(RIVALS):
        raise argparse.ArgumentTypeError(f"nobody here is called {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
