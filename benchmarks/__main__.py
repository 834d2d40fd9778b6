"""The command line: `python -m benchmarks --help`."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import _charts, _machine, _report, _requirements, _run, _sweeps
from benchmarks._peers import OURS, PEERS, Job, on_gpu
from benchmarks._results import Results, slug
from benchmarks._run import Plan
from benchmarks._shapes import ACCELERATED, LONGEST, SHAPES, Shape

NAMED = {shape.name: shape for shape in (*SHAPES, *ACCELERATED)}
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
    stem = _stem(options)
    stem.parent.mkdir(parents=True, exist_ok=True)
    part = stem.with_suffix(".part.json")
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        watch = _machine.Watch()
        plan = _plan(options)
        for measurement in _run.times_and_errors(_cells(options), plan, progress):
            results.measurements.append(measurement)
            results.write(part)  # in case that it is not let end
            if measurement.failure:
                console.print(
                    f"{measurement.peer} failed at {measurement.shape.sizes}: {measurement.failure}", style="red"
                )
        if options.memory:
            _run.add_memory(results.measurements, plan, progress)
        results.machine["others_share"] = round(watch.others_share(), 3)

    for job in Job:
        if results.select(job):
            console.print(_report.table(results, job))
    if (share := results.machine["others_share"]) > _machine.QUIET:
        console.print(
            f"Others took {share:.0%} of the processors meanwhile. Do not keep these figures: PyTorch's threads wait "
            "for one another, and suffer from that more than XLA's.",
            style="bold yellow",
        )
    results.write(stem.with_suffix(".json"))
    part.unlink()
    (_charts.curves if options.sweeps else _charts.bars)(results, stem.with_suffix(".png"))
    console.print(f"Written: {stem}.json and .png")

    if not options.check:
        return 0
    verdicts = list(_requirements.verdicts(results))
    console.print(_report.verdict_table(verdicts))
    failed = any(m.failure for m in results.measurements if m.peer in OURS)
    return int(failed or not all(verdict.met for verdict in verdicts))


def _cells(options: argparse.Namespace) -> list[tuple[Job, Shape]]:
    if options.sweeps:
        return [(Job.GRADIENT, shape) for axis in _sweeps.SIZES for shape in _sweeps.along(axis, options.quick)]
    shapes = options.shape or ((*SHAPES, *ACCELERATED) if on_gpu() else SHAPES)
    # What is judged comes first: a GPU may be available for minutes only, and compiling for it takes long.
    jobs = (Job.GRADIENT, Job.BRIDGE, Job.LOSS) if on_gpu() else Job
    cells = [(job, shape) for job in jobs for shape in shapes]
    return cells if options.shape else [*cells, (Job.GRADIENT, LONGEST)]


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan(0.5, 3) if options.quick else Plan(2, 15) if on_gpu() else Plan(8, 7)
    if options.sweeps:
        plan = plan._replace(seconds=plan.seconds / 4)
    rivals = options.rivals or (_sweeps.RIVALS if options.sweeps else None)
    return plan._replace(ragged=options.ragged, rivals=rivals)


def _stem(options: argparse.Namespace) -> Path:
    """Returns the path to write to, without the suffix; a partial benchmark gets a name of its own."""
    traits = {
        "sweeps": options.sweeps,
        "ragged": options.ragged,
        "part": options.shape or options.rivals,
        "quick": options.quick,
        "times": not options.memory,
    }
    return options.output / "-".join([slug(_machine.device_kind()), *(name for name, true in traits.items() if true)])


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
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out memory: on a GPU a process a figure"
    )
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
        raise argparse.ArgumentTypeError(f"there is no implementation called {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
