"""Jobs on shapes, measured: times and errors of all peers in turns, then the memory of each in a process of its own."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.progress import Progress

from benchmarks import _accuracy, _memory, _timing
from benchmarks._peers import OURS, PEERS, Job, Peer, installed
from benchmarks._results import Measurement
from benchmarks._roofline import Roofline
from benchmarks._shapes import LONGEST, Shape, draw


class Plan(NamedTuple):
    """How thoroughly to measure, and whom."""

    seconds: float
    """To spend on the times of one job on one shape, if as many rounds as must be take no longer."""
    rounds: int
    ragged: bool = False
    rivals: tuple[str, ...] | None = None
    """Names of those to compare with; everybody who is installed if None."""

    def chosen(self, job: Job) -> list[Peer]:
        return [peer for peer in installed(job) if self.rivals is None or peer.name in (*OURS, *self.rivals)]


def measure(cells: Sequence[tuple[Job, Shape]], plan: Plan, progress: Progress) -> list[Measurement]:
    """Every figure of every peer."""
    roofline = Roofline()
    timed = progress.add_task("times and errors", total=len(cells))
    measurements = []
    for job, shape in cells:
        progress.update(timed, description=f"times and errors: {job}, {shape.name}")
        measurements += _times_and_errors(job, shape, plan, roofline)
        progress.advance(timed)
    progress.update(timed, description="times and errors")
    _add_memory([m for m in measurements if m.rounds], plan, progress)
    return measurements


def _times_and_errors(job: Job, shape: Shape, plan: Plan, roofline: Roofline) -> Iterator[Measurement]:
    batch = draw(shape, plan.ragged)
    calls = {peer: peer.prepare(job, batch) for peer in plan.chosen(job) if peer.takes(batch)}
    rounds, floor = {}, None
    if shape != LONGEST:
        rounds = _timing.interleave({peer.name: call for peer, call in calls.items()}, plan.seconds, plan.rounds)
        floor = roofline.floor(job, batch)
    exact = _accuracy.reference(batch) if job is Job.GRADIENT else None
    for peer, call in calls.items():
        measurement = Measurement(job, shape, peer.name, rounds.get(peer.name, []), floor_seconds=floor)
        if exact:
            errors = _accuracy.errors(peer, call(), exact)
            measurement.loss_error, measurement.loss_error_ulps, measurement.gradient_error = errors
        yield measurement


def _add_memory(measurements: Sequence[Measurement], plan: Plan, progress: Progress) -> None:
    task = progress.add_task("memory", total=len(measurements))
    measured = {m.peer for m in measurements}
    for peer in (peer for peer in PEERS if peer.name in measured):
        own = [m for m in measurements if m.peer == peer.name]
        progress.update(task, description=f"memory: {peer.name}")
        peaks = _memory.peaks(peer, [(m.job, m.shape) for m in own], plan.ragged)
        for measurement, peak in zip(own, peaks, strict=True):
            measurement.peak_bytes = peak
            progress.advance(task)
    progress.update(task, description="memory")
