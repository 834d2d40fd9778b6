"""State how fast, exact and small the library is to be beside others, and judge whether it is."""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks._memory import RESOLUTION
from benchmarks._peers import Job
from benchmarks._results import Measurement, Results
from benchmarks._shapes import ACCELERATED, LONGEST, SHAPES, Shape


class Verdict(NamedTuple):
    requirement: str
    where: str
    required: str
    reached: str
    met: bool


SMALL, *LARGE = SHAPES
*PUBLISHED, WIDE = ACCELERATED
# (job, rival, times as fast on the small shape or None, on each of the others, in the geometric mean or None)
SPEED = (
    (Job.LOSS, "torch", 1, 2.5, None),
    (Job.LOSS, "optax", 3, 3, None),
    (Job.GRADIENT, "torch", 1.5, 3, 4),
    (Job.GRADIENT, "optax", 2, 3, 4),
    (Job.BRIDGE, "torch", None, 2, None),
)
# (rival, times as fast at loss and gradient)
SPEED_ON_A_GPU = (("torch", 2), ("torch cuDNN", 1), ("optax", 10))
COPIES = 3
"""On a GPU and the widest shape: as long as so many copies of the scores, each read and written."""
CROSSING = 50e-6
"""Seconds, on a GPU, that the bridge may take above the program that it calls."""
# (what, rival, at most this part of the rival's on each shape, at LONGEST or None where it is not judged)
PARTS: tuple[tuple[str, Callable[[Measurement], float | None], str, float, float | None], ...] = (
    ("gradient error", lambda m: m.gradient_error, "torch", 1 / 10, 1 / 20),
    ("gradient error", lambda m: m.gradient_error, "optax", 1 / 3, 1 / 3),
    ("loss error", lambda m: m.loss_error, "torch", 1 / 4, 1 / 4),
    ("peak memory", lambda m: m.peak_bytes, "torch", 1 / 2, None),
    ("peak memory", lambda m: m.peak_bytes, "optax", 1 / 4, None),
)


def verdicts(results: Results) -> Iterator[Verdict]:
    """One for each requirement of the machine's kind on each shape that the run has measured."""
    if results.on_gpu:
        yield from _speed_on_a_gpu(results)
    else:
        yield from _speed(results)
        yield from _parts(results)


def _speed_on_a_gpu(results: Results) -> Iterator[Verdict]:
    for rival, required in SPEED_ON_A_GPU:
        for shape in (*LARGE, *PUBLISHED):
            measured = results.find(Job.GRADIENT, shape, rival)
            if measured and (ratio := results.ratio(measured)) is not None:
                yield _faster(Job.GRADIENT, rival, shape.name, required, ratio)
    if (ours := results.ours(Job.GRADIENT, WIDE)) and ours.seconds and ours.copy_seconds:
        copies = ours.seconds / ours.copy_seconds
        what = f"{Job.GRADIENT}: times a copy of the scores"
        yield Verdict(what, WIDE.name, f"{COPIES:g}x", f"{copies:.2f}x", copies <= COPIES)
    for shape in results.shapes(Job.BRIDGE):
        yield from _crossing(results, shape)


def _crossing(results: Results, shape: Shape) -> Iterator[Verdict]:
    ours, program = results.ours(Job.BRIDGE, shape), results.find(Job.BRIDGE, shape, "JAX call")
    if ours and program and ours.rounds and program.rounds:
        above = statistics.median(a - b for a, b in zip(ours.rounds, program.rounds, strict=True))
        required, reached = (f"{x * 1e6:.0f} us" for x in (CROSSING, above))
        yield Verdict("bridge: above the JAX call", shape.name, required, reached, above <= CROSSING)


def _speed(results: Results) -> Iterator[Verdict]:
    for job, rival, small, large, mean in SPEED:
        ratios = []
        for shape in SHAPES:
            measured = results.find(job, shape, rival)
            ratio = results.ratio(measured) if measured else None
            required = small if shape == SMALL else large
            if ratio is None or required is None:
                continue
            ratios.append(ratio)
            yield _faster(job, rival, shape.name, required, ratio)
        if mean is not None and len(ratios) == len(SHAPES):
            yield _faster(job, rival, "geometric mean", mean, math.exp(math.fsum(map(math.log, ratios)) / len(ratios)))


def _faster(job: Job, rival: str, where: str, required: float, ratio: float) -> Verdict:
    return Verdict(f"{job}: faster than {rival}", where, f"{required:g}x", f"{ratio:.2f}x", ratio >= required)


def _parts(results: Results) -> Iterator[Verdict]:
    for what, quantity, rival, large, longest in PARTS:
        for shape in (*SHAPES, LONGEST):
            required = longest if shape == LONGEST else large
            ours, theirs = results.ours(Job.GRADIENT, shape), results.find(Job.GRADIENT, shape, rival)
            if required is None or ours is None or theirs is None:
                continue
            mine, other = quantity(ours), quantity(theirs)
            if mine is None or other is None:
                continue
            met = mine <= required * other
            # A loss right to its last place cannot be bettered, and memory that cannot be told from none need not be.
            met |= what == "loss error" and ours.loss_error_ulps <= 1
            met |= what == "peak memory" and mine <= RESOLUTION
            reached = f"{mine / other:.3f}" if other else f"{mine:.3g} of 0"
            yield Verdict(f"{what}, a part of {rival}'s", shape.name, f"{required:.3f}", reached, met)
