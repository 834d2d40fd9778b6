"""Measure losses on one core, on all of them, and beside a neighbour that keeps one of them busy.

python -m benchmarks.cores [--seconds N] [--real-time]

A step is loss and gradient, called from PyTorch, as the bridge and as PyTorch compute them; the same of logits called
from JAX, as jaxctc and optax compute them; or a training step in PyTorch: a convolutional model, its loss and its
optimizer. Each setting is measured in a process of its own, which is bound to its cores before anything has computed;
all take turns in it. The neighbour is a process that does nothing but run on the first core. On a machine that others
use, `--real-time` keeps their processes off the cores while the settings without a neighbour are measured (it needs the
right to set priorities). Figures are written to `benchmarks/results/cores-cpu.json`: medians, 95th percentiles and the
least, in milliseconds; and to `cores-cpu.md` as tables, of which the second extrapolates one core and two to more by
Amdahl's law.
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import bridge
import jaxctc
from benchmarks import _machine
from benchmarks._shapes import SHAPES, Shape, draw

RESULTS = Path(__file__).parent / "results" / "cores-cpu.json"
CROWD = Shape("crowd", 500, 64, 32, 100)
MEASURED = (*(shape for shape in SHAPES if shape.name != "ocr"), CROWD)
TRAINED = ("char", "bpe")
FEATURES, CHANNELS = 80, 256
MORE = (8, 32, 64)
"""Cores that none of our machines has."""
LEAST = 9
"""Steps of each kind, however long they take."""
NEIGHBOUR = "import os\nparent = os.getppid()\nos.sched_setaffinity(0, {%d})\nwhile os.getppid() == parent: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="for each shape and setting")
    parser.add_argument("--real-time", action="store_true", help="measure without a neighbour at real-time priority")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        cores, busy = options.measure.split(",")
        print(json.dumps(measured(int(cores), busy == "busy", options.seconds, options.real_time)))
        return
    rows = []
    available = len(os.sched_getaffinity(0))
    for cores in sorted({1, available}):
        for neighbour in ("quiet", "busy"):
            command = [sys.executable, "-m", "benchmarks.cores", "--measure", f"{cores},{neighbour}"]
            command += ["--seconds", str(options.seconds), *["--real-time"] * options.real_time]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            rows += [{"cores": cores, "neighbour": neighbour, **row} for row in found]
    machine = {**_machine.describe(), "real_time": options.real_time}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(machine, rows))
    show(rows)


def measured(cores: int, busy: bool, seconds: float, real_time: bool) -> list[dict[str, Any]]:
    """Return a row for each shape and kind of step."""
    _machine.bound(cores)
    torch.set_num_threads(cores)
    neighbour = None
    if busy:
        neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR % min(os.sched_getaffinity(0))])
    try:
        return [row for shape in MEASURED for row in of_shape(shape, seconds, real_time and not busy)]
    finally:
        if neighbour:
            neighbour.kill()


def of_shape(shape: Shape, seconds: float, real_time: bool) -> list[dict[str, Any]]:
    steps = {f"{peer}, {scores}": step for scores, pair in both(shape).items() for peer, step in pair.items()}
    steps |= from_jax(shape)
    if shape.name in TRAINED:
        steps |= training(shape)
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    if real_time:
        _priority(os.SCHED_FIFO, 1)
    watch, end = _machine.Watch(), time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < LEAST:
        for name, step in steps.items():
            step()  # untimed: threads of the one before may still spin, and the caches are not its own
            started = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - started))
    shared = {"shape": shape.name, "sizes": shape.sizes, "others_share": round(watch.others_share(), 3)}
    if real_time:
        _priority(os.SCHED_OTHER, 0)
    return [
        {
            **shared,
            "step": name,
            "median_ms": round(float(np.median(taken)), 3),
            "p95_ms": round(float(np.percentile(taken, 95)), 3),
            "least_ms": round(min(taken), 3),
            "steps": len(taken),
        }
        for name, taken in times.items()
    ]


def _priority(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def both(shape: Shape) -> dict[str, dict[str, Callable[[], None]]]:
    batch = draw(shape)
    rest = [torch.from_numpy(x).long() for x in (batch.targets, batch.input_lengths, batch.target_lengths)]

    def step(loss: Callable[..., torch.Tensor], scores: np.ndarray) -> Callable[[], None]:
        source = torch.from_numpy(scores)

        def run() -> None:
            loss(source.detach().requires_grad_(), *rest).backward()

        return run

    def normalized(logits: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return functional.ctc_loss(logits.log_softmax(2), *others)

    return {
        "log_probs": {
            "bridge": step(bridge.ctc_loss, batch.log_probs),
            "torch": step(functional.ctc_loss, batch.log_probs),
        },
        "logits": {
            "bridge": step(bridge.ctc_loss_with_logits, batch.logits),
            "torch": step(normalized, batch.logits),
        },
    }


def from_jax(shape: Shape) -> dict[str, Callable[[], None]]:
    batch = draw(shape)
    logits = jax.device_put(batch.logits)
    rest = [jax.device_put(x) for x in (batch.targets, batch.input_lengths, batch.target_lengths)]
    masks = [np.float32(np.arange(n) >= x[:, None]) for n, x in ((shape.T, rest[1]), (shape.S, rest[2]))]
    paddings = [jax.device_put(x) for x in masks]
    rows_first = jax.device_put(np.ascontiguousarray(batch.logits.swapaxes(0, 1)))

    def by_optax(x: jax.Array) -> jax.Array:
        return optax.ctc_loss(x, paddings[0], rest[0], paddings[1]).sum()

    def by_jaxctc(x: jax.Array) -> jax.Array:
        return jaxctc.ctc_loss_with_logits(x, *rest, reduction="sum")

    def step(loss: Callable[[jax.Array], jax.Array], scores: jax.Array) -> Callable[[], None]:
        compiled = jax.jit(jax.value_and_grad(loss))
        return lambda: jax.block_until_ready(compiled(scores)) and None

    return {
        "jaxctc from JAX, logits": step(by_jaxctc, logits),
        "optax from JAX, logits": step(by_optax, rows_first),
    }


def training(shape: Shape) -> dict[str, Callable[[], None]]:
    batch = draw(shape)
    rest = [torch.from_numpy(x).long() for x in (batch.targets, batch.input_lengths, batch.target_lengths)]
    features = torch.randn(shape.N, FEATURES, shape.T, generator=torch.Generator().manual_seed(0))

    def step(loss: Callable[..., torch.Tensor]) -> Callable[[], None]:
        torch.manual_seed(0)
        convolution = torch.nn.Conv1d(FEATURES, CHANNELS, 5, padding=2)
        model = torch.nn.Sequential(convolution, torch.nn.ReLU(), torch.nn.Conv1d(CHANNELS, shape.C, 1))
        optimizer = torch.optim.AdamW(model.parameters())

        def run() -> None:
            optimizer.zero_grad()
            loss(model(features).permute(2, 0, 1).log_softmax(2), *rest).backward()
            optimizer.step()

        return run

    return {
        "training, bridge": step(functools.partial(bridge.ctc_loss, zero_infinity=True)),
        "training, torch": step(functools.partial(functional.ctc_loss, zero_infinity=True)),
    }


def extrapolated(one: float, two: float, cores: int) -> float:
    """Return the time on so many cores, from those on one and on two, by Amdahl's law."""
    parallel = min(max(2 * (1 - two / one), 0.0), 1.0)
    return one * (1 - parallel + parallel / cores)


def tables(rows: list[dict[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the caption, the headings and the lines of each table."""
    settings = sorted({(row["cores"], row["neighbour"]) for row in rows}, key=lambda x: (x[0], x[1] == "busy"))
    cells = {(row["sizes"], row["step"], row["cores"], row["neighbour"]): row for row in rows}
    steps = list(dict.fromkeys((row["sizes"], row["step"]) for row in rows))
    lines = []
    for step in steps:
        found = [cells[*step, *setting] for setting in settings]
        lines.append([*step, *(f"{row['median_ms']:.1f}, {row['p95_ms']:.1f}" for row in found)])
    headings = ["T, N, C, S", "step", *(f"cores: {cores}, {neighbour}" for cores, neighbour in settings)]
    made = [("Milliseconds a step: median, 95th percentile.", headings, lines)]
    if {(1, "quiet"), (2, "quiet")} <= {*settings}:
        lines = []
        for step in steps:
            one, two = (cells[*step, cores, "quiet"]["median_ms"] for cores in (1, 2))
            more = [extrapolated(one, two, cores) for cores in MORE]
            lines.append([*step, *(f"{x:.1f}" for x in (one, two, *more))])
        caption = "Milliseconds a step by number of cores: measured up to 2, extrapolated by Amdahl's law beyond."
        made.append((caption, ["T, N, C, S", "step", "1", "2", *map(str, MORE)], lines))
    return made


def show(rows: list[dict[str, Any]]) -> None:
    console = Console(width=120)
    for caption, headings, lines in tables(rows):
        table = Table(*headings)
        for line in lines:
            table.add_row(*line)
        console.print(caption, table)


def page(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the tables in Markdown."""
    parts = [f"{machine['threads']} threads of an {machine['cpu']}, {machine['date'][:10]}, torch {machine['torch']}."]
    for caption, headings, lines in tables(rows):
        parts.append(caption)
        parts.append("\n".join("| " + " | ".join(x) + " |" for x in (headings, ["---"] * len(headings), *lines)))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
