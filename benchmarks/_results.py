"""Hold what a run has measured."""

import dataclasses
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks._peers import OURS, Job
from benchmarks._shapes import Shape


@dataclasses.dataclass
class Measurement:
    """One implementation at one job on one shape; None stands for what was not measured."""

    job: Job
    shape: Shape
    peer: str
    rounds: list[float] = dataclasses.field(default_factory=list)
    """Seconds a call, by round."""
    peak_bytes: int | None = None
    """Above the inputs and the gradient."""
    loss_error: float | None = None
    loss_error_ulps: float | None = None
    gradient_error: float | None = None
    floor_seconds: float | None = None
    copy_seconds: float | None = None
    """The time of one copy of the scores: all are read, and as much is written."""
    compile_cpu_seconds: float | None = None
    """CPU seconds of the first call beyond those of the second: JAX traces, lowers and compiles in it."""
    failure: str | None = None
    """Why there are no figures."""

    @property
    def seconds(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None


class Results:
    """The measurements of a run on a machine, in the order in which they were taken."""

    def __init__(self, machine: dict[str, str | int | float], measurements: Iterable[Measurement] = ()):
        self.machine = machine
        self.measurements = list(measurements)

    @property
    def on_gpu(self) -> bool:
        return self.machine["device"] != "cpu"

    def select(self, job: Job, shape: Shape | None = None) -> list[Measurement]:
        return [m for m in self.measurements if m.job is job and shape in (None, m.shape)]

    def find(self, job: Job, shape: Shape, peer: str) -> Measurement | None:
        return next((m for m in self.select(job, shape) if m.peer == peer), None)

    def shapes(self, job: Job) -> list[Shape]:
        return list(dict.fromkeys(m.shape for m in self.select(job)))

    def ours(self, job: Job, shape: Shape) -> Measurement | None:
        return next((m for m in self.select(job, shape) if m.peer in OURS), None)

    def ratio(self, measurement: Measurement) -> float | None:
        """How many times as long as ours it took: the median over the rounds."""
        ours = self.ours(measurement.job, measurement.shape)
        if ours is None or not (ours.rounds and measurement.rounds):
            return None
        return statistics.median(b / a for a, b in zip(ours.rounds, measurement.rounds, strict=True))

    def write(self, path: Path) -> None:
        """As JSON."""
        rows = [
            dataclasses.asdict(m)
            | {"shape": m.shape._asdict(), "median_seconds": m.seconds, "ratio_to_ours": self.ratio(m)}
            for m in self.measurements
        ]
        path.write_text(json.dumps({"machine": self.machine, "measurements": rows}, indent=1) + "\n")


def slug(text: str) -> str:
    """A file name of a device's."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
