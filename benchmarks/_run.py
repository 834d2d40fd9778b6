"""Measure jobs on shapes: times and errors of all peers in turns, then the memory of each in a process of its own."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.progress import Progress

from benchmarks import _accuracy, _memory, _timing
from benchmarks._peers import OURS, PEERS, Call, Job, Peer, installed
from benchmarks._results import Measurement
from benchmarks._roofline import Roofline
from benchmarks._shapes import LONGEST, Batch, Shape, draw


class Plan(NamedTuple):
    """How thoroughly to measure, and which peers."""

    seconds: float
    """Seconds to spend on the times of one job on one shape, unless the least number of rounds takes longer."""
    rounds: int
    ragged: bool = False
    rivals: tuple[str, ...] | None = None
    """Names of the peers to compare with; None: all that are installed."""

    def chosen(self, job: Job) -> list[Peer]:
        return [peer for peer in installed(job) if self.rivals is None or peer.name in (*OURS, *self.rivals)]


def times_and_errors(cells: Sequence[tuple[Job, Shape]], plan: Plan, progress: Progress) -> Iterator[Measurement]:
    """Yield the times and errors of every peer, as they are measured."""
    roofline = Roofline()
    timed = progress.add_task("times and errors", total=len(cells))
    for job, shape in cells:
        progress.update(timed, description=f"times and errors: {job}, {shape.name}")
        yield from _of_cell(job, shape, plan, roofline)
        progress.advance(timed)
    progress.update(timed, description="times and errors")


def _of_cell(job: Job, shape: Shape, plan: Plan, roofline: Roofline) -> Iterator[Measurement]:
    batch = draw(shape, plan.ragged)
    measured = {peer: Measurement(job, shape, peer.name) for peer in plan.chosen(job) if peer.takes(batch)}
    calls = {peer: call for peer, m in measured.items() if (call := _working(peer, m, batch))}
    if shape != LONGEST:
        rounds = _timing.interleave({peer.name: call for peer, call in calls.items()}, plan.seconds, plan.rounds)
        floor, copy = roofline.floor(job, batch), roofline.copy(batch)
        for m in measured.values():
            m.rounds, m.floor_seconds, m.copy_seconds = rounds.get(m.peer, []), floor, copy
    exact = _accuracy.reference(batch) if job is Job.GRADIENT else None
    for peer, call in calls.items() if exact else ():
        m = measured[peer]
        m.loss_error, m.loss_error_ulps, m.gradient_error = _accuracy.errors(peer, call(), exact)
    yield from measured.values()


def _working(peer: Peer, measurement: Measurement, batch: Batch) -> Call | None:
    """Returns the prepared peer, or the reason why preparing it failed."""
    try:
        call = peer.prepare(measurement.job, batch)
        first, second = (_cpu_seconds(call) for _ in range(2))
        measurement.compile_cpu_seconds = max(first - second, 0.0)
    except Exception as error:  # noqa: BLE001, whatever others raise
        measurement.failure = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return None
    return call


def _cpu_seconds(call: Call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def add_memory(measurements: Sequence[Measurement], plan: Plan, progress: Progress) -> None:
    """Add the memory of each peer to what has been timed."""
    measurements = [m for m in measurements if m.rounds]
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
