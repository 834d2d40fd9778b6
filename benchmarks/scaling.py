"""Measure recordings of 100,000 frames and large batches, and model several devices.

python -m benchmarks.scaling [--part NAME ...]

Every part runs in a process of its own, so that its memory is its own. Figures are written to
`benchmarks/results/scaling-<device>.json`; `docs/scaling.md` explains them. On a machine that does nothing else it
takes about ten minutes.
"""

import argparse
import functools
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxctc
from benchmarks import _machine
from benchmarks._results import slug
from benchmarks._shapes import Batch, Shape, draw
from benchmarks._timing import interleave
from jaxctc._forward_backward import scaled_emissions

LINK = 25e9
"""Bytes a second between two devices: assumed for the model, as the next."""
HOP = 10e-6
"""Seconds until the first of them has arrived."""
DEVICES = (8, 256, 4096)
RECORDING = Shape("recording", 100_000, 1, 32, 20_000)
BOTH_FIT = Shape("both fit", 20_000, 1, 32, 4_000)
EXACT = Shape("exact", 100_000, 1, 32, 1_000)
CROWD = Shape("crowd", 500, 1_024, 32, 100)
AT_ONCE = 64
DEVICE = Shape("one device's part", 1_000, 8, 128, 200)
WIDE = DEVICE._replace(name="many classes", C=8_000)
SHORT = Shape("short", 100_000, 1, 32, 14)

loss = jax.jit(functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum"))
gradient = jax.jit(jax.value_and_grad(functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum")))


def recording() -> dict[str, float]:
    """Loss and gradient of the longest: time, and the memory of the whole process."""
    problem = _problem(draw(RECORDING))
    before = _resident()
    seconds = [_timed(lambda: gradient(*problem)) for _ in range(3)][1:]
    return {"seconds": median(seconds), "resident_mb": _resident() / 1e6, "before_mb": before / 1e6}


def remade() -> dict[str, float]:
    """Returns how many times as long recomputed scores take as stored ones, at a size where both are possible."""
    problem = _problem(draw(BOTH_FIT))
    calls = {}
    for name, large in (("kept", sys.maxsize), ("remade", 0)):
        scaled_emissions._LARGE = large  # read while tracing
        jax.clear_caches()
        for job, function in (
            ("loss", jaxctc.ctc_loss_with_logits),
            ("gradient", jax.grad(jaxctc.ctc_loss_with_logits)),
        ):
            compiled = jax.jit(functools.partial(function, reduction="sum")).lower(*problem).compile()
            calls[f"{name} {job}"] = functools.partial(_done, compiled, *problem)
    times = interleave(calls, seconds=30, rounds=7)
    return {
        job: median(b / a for a, b in zip(times[f"kept {job}"], times[f"remade {job}"], strict=True))
        for job in ("loss", "gradient")
    } | {f"{name} seconds": median(taken) for name, taken in times.items()}


def accuracy() -> dict[str, float]:
    """The largest float32 error of loss and gradient, ours and PyTorch's, against PyTorch in float64."""
    import torch

    batch = draw(EXACT)

    def theirs(dtype: torch.dtype) -> tuple[float, np.ndarray]:
        logits = torch.tensor(batch.logits, dtype=dtype, requires_grad=True)
        rest = (torch.tensor(x) for x in (batch.targets, batch.input_lengths, batch.target_lengths))
        value = torch.nn.functional.ctc_loss(logits.log_softmax(2), *rest, reduction="sum")
        value.backward()
        return value.item(), logits.grad.numpy()

    exact, slope = theirs(torch.float64)
    value, found = gradient(*_problem(batch))
    torch_value, torch_found = theirs(torch.float32)
    return {
        "loss": exact,
        "jaxctc loss error": abs(float(value) - exact),
        "torch loss error": abs(torch_value - exact),
        "jaxctc gradient error": float(np.abs(np.asarray(found) - slope).max()),
        "torch gradient error": float(np.abs(torch_found - slope).max()),
    }


def accuracy_of_the_recording() -> dict[str, float]:
    """Float32 against float64, where PyTorch's table of states would take 16 GB in float32."""
    batch = draw(RECORDING)
    value, found = (np.asarray(x) for x in gradient(*_problem(batch)))
    with jax.enable_x64(True):
        exact, slope = gradient(jnp.asarray(batch.logits, jnp.float64), *_problem(batch)[1:])
    return {
        "loss": float(exact),
        "loss error": abs(float(value) - float(exact)),
        "gradient error": float(np.abs(found - np.asarray(slope)).max()),
    }


def crowd(at_once: int | None) -> dict[str, float]:
    """A batch of many: time, and memory above its scores and their gradient."""
    batch = draw(CROWD)
    problem = _problem(batch)
    function = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum", sequences_at_once=at_once)
    compiled = jax.jit(jax.value_and_grad(function)).lower(*problem).compile()
    before = _resident()
    seconds = [_timed(lambda: compiled(*problem)) for _ in range(4)][1:]
    return {"seconds": median(seconds), "mb": (_resident() - before - batch.logits.nbytes) / 1e6}


def single() -> dict[str, float]:
    """Returns the seconds that the shapes of the model take on one device."""
    calls = {}
    for shape in (DEVICE, WIDE, EXACT, SHORT):
        problem = _problem(draw(shape))
        calls[f"{shape.name} loss"] = functools.partial(_done, loss, *problem)
        calls[f"{shape.name} gradient"] = functools.partial(_done, gradient, *problem)
    return {name: median(taken) for name, taken in interleave(calls, seconds=60, rounds=7).items()}


def steps() -> dict[str, float]:
    """What a step takes however few states it has, and each state more; of both directions together."""
    calls, states = {}, []
    for labels in (6, 62, 254, 1022):
        problem = _problem(draw(Shape(str(labels), 4_096, 1, 16, labels)))
        calls[str(labels)] = functools.partial(_done, loss, *problem)
        states.append(4 * (labels + 2))
    times = interleave(calls, seconds=15, rounds=7)
    each, begin = np.polyfit(states, [median(x) / 2_048 for x in times.values()], 1)
    return {"begin_us": begin * 1e6, "state_ns": each * 1e9, "states_in_that_time": begin / each}


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "recording": recording,
    "remade": remade,
    "accuracy": accuracy,
    "accuracy of the recording": accuracy_of_the_recording,
    "crowd": functools.partial(crowd, None),
    "crowd in slices": functools.partial(crowd, AT_ONCE),
    "single": single,
    "steps": steps,
}


def projected(single: dict[str, float]) -> dict[str, dict[str, float]]:
    """Models the seconds for loss and gradient on many devices.

    The computation is the measured time of one device; the communication is assumed, with `LINK` and `HOP`.
    """

    def reduced(size: float, devices: int) -> float:
        """An all-reduce of so many bytes."""
        return 2 * size / LINK + 2 * math.log2(devices) * HOP

    columns = -(-(DEVICE.S + 2) // 8) * 8
    emissions = 4 * DEVICE.T * DEVICE.N * (columns + 2)
    lattice = single[f"{DEVICE.name} gradient"]
    classes = (single[f"{WIDE.name} gradient"] - lattice) / (WIDE.C - DEVICE.C) * WIDE.C
    states = 16 * (-(-(EXACT.S + 2) // 8) * 8 + 8)
    found: dict[str, dict[str, float]] = {"batch": {}, "classes": {}, "frames": {}}
    for devices in DEVICES:
        found["batch"][str(devices)] = lattice + reduced(4, devices)
        talk = reduced(emissions, devices) + reduced(4 * DEVICE.T * DEVICE.N, devices)
        found["classes"][str(devices)] = lattice + classes / devices + talk
        in_turn = 2 * single[f"{EXACT.name} loss"] * (1 - 1 / devices) + single[f"{EXACT.name} gradient"] / devices
        found["frames"][str(devices)] = in_turn + (devices - 1) * (HOP + states / LINK)
    return found


def _problem(batch: Batch) -> tuple[jax.Array, ...]:
    return tuple(map(jnp.asarray, (batch.logits, batch.targets, batch.input_lengths, batch.target_lengths)))


def _done(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _resident() -> int:
    """Bytes, at most so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this alone, and print it; repeatable")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        print(json.dumps(PARTS[options.part[0]]()))
        return
    watch = _machine.Watch()
    found: dict[str, Any] = {}
    table = Table("part", "figure", "value", title="Scaling")
    for name in options.part or PARTS:
        command = [sys.executable, "-m", "benchmarks.scaling", "--json", "--part", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(output.splitlines()[-1])
    if "single" in found:
        found |= {f"projected, {axis}": times for axis, times in projected(found["single"]).items()}
    for name, figures in found.items():
        for figure, value in figures.items():
            table.add_row(name, figure, f"{value:.4g}")
        table.add_section()
    Console().print(table)
    if options.part:
        return
    machine = _machine.describe() | {"others_share": round(watch.others_share(), 3)}
    path = Path(__file__).parent / "results" / f"scaling-{slug(_machine.device_kind())}.json"
    path.write_text(json.dumps({"machine": machine, "link": LINK, "hop": HOP, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
