"""The benchmark measures what it says, on problems small enough to know the answer."""

import itertools
import json
import sys

import jax
import numpy as np
import pytest

for package in ("matplotlib", "optax", "rich", "torch"):
    pytest.importorskip(package)
if sys.platform != "linux":
    pytest.skip("the benchmark is for Linux", allow_module_level=True)

from rich.console import Console
from rich.progress import Progress

from benchmarks import _charts, _memory, _peers, _report, _requirements, _run, _sweeps, cores
from benchmarks._peers import Job, installed
from benchmarks._results import Measurement, Results
from benchmarks._roofline import reachable
from benchmarks._run import Plan
from benchmarks._shapes import ACCELERATED, SHAPES, Shape, draw

TINY = Shape.parse("9,3,5,3")
MACHINE = {"device": "cpu", "cpu": "a processor", "threads": 1, "date": "2026-01-01"}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Others' code promotes types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("job", Job)
def test_peers_agree(job):
    batch = draw(TINY, ragged=True)
    # All but one of those that are compared on GPUs alone run here as well.
    peers = [peer for peer in installed(job) if peer.name != "torch cuDNN"]
    (ours, *others) = [peer.numpy(peer.prepare(job, batch)()) for peer in peers]
    assert others
    for theirs in others:
        np.testing.assert_allclose(theirs.losses, ours.losses, rtol=1e-5)
        if job is not Job.LOSS:
            np.testing.assert_allclose(theirs.gradient, ours.gradient, atol=1e-5)


def test_a_run_is_measured_and_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "peaks", lambda _peer, work, _ragged: itertools.repeat(12345, len(work)))
    with Progress(disable=True) as progress:
        plan = Plan(0, 2, rivals=("torch", "optax"))
        measured = list(_run.times_and_errors([(Job.GRADIENT, TINY), (Job.BRIDGE, TINY)], plan, progress))
        _run.add_memory(measured, plan, progress)
    results = Results(MACHINE, measured)
    console = Console(record=True, width=_report.WIDTH)
    for job in (Job.GRADIENT, Job.BRIDGE):
        console.print(_report.table(results, job))
    text = console.export_text()
    assert all(name in text for name in ("jaxctc", "bridge", "torch", "optax", "floor", "compile, CPU s", TINY.name))

    results.write(tmp_path / "cpu.json")
    rows = json.loads((tmp_path / "cpu.json").read_text())["measurements"]
    assert [(row["job"], row["peer"]) for row in rows] == [
        *((Job.GRADIENT, peer) for peer in ("jaxctc", "torch", "optax")),
        *((Job.BRIDGE, peer) for peer in ("bridge", "torch")),
    ]
    assert all(row["compile_cpu_seconds"] >= 0 for row in rows)
    assert all(len(row["rounds"]) == 2 and row["floor_seconds"] > 0 and row["peak_bytes"] == 12345 for row in rows)
    assert all(row["loss_error"] < 1e-5 and row["gradient_error"] < 1e-5 for row in rows if row["job"] == Job.GRADIENT)

    _charts.bars(results, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 10_000


def test_sweeps_are_drawn(tmp_path):
    measured = [
        Measurement(Job.GRADIENT, shape, peer, [0.01], peak_bytes=10**6, floor_seconds=0.001)
        for axis in _sweeps.SIZES
        for shape in _sweeps.along(axis, quick=True)
        for peer in ("jaxctc", "torch")
    ]
    _charts.curves(Results(MACHINE, measured), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_peak_memory_is_what_is_known_to_be_allocated():
    shape = SHAPES[1]
    torch = next(peer for peer in installed(Job.LOSS) if peer.name == "torch")
    (peak,) = _memory.peaks(torch, [(Job.LOSS, shape)])
    forward_variables = 4 * shape.T * shape.N * (2 * shape.S + 1)
    assert 0.9 * forward_variables < peak < 1.5 * forward_variables


def test_ratios_are_taken_within_rounds():
    ours = Measurement(Job.LOSS, TINY, "jaxctc", [1.0, 10.0, 100.0])
    theirs = Measurement(Job.LOSS, TINY, "torch", [4.0, 30.0, 200.0])
    assert Results(MACHINE, [ours, theirs]).ratio(theirs) == 3


@pytest.mark.parametrize(("times_as_fast", "met"), [(10.0, True), (2.6, False)])
def test_what_must_be_reached_is_judged(times_as_fast, met):
    measured = []
    for shape in SHAPES:
        measured.append(Measurement(Job.GRADIENT, shape, "jaxctc", [1.0], 10**6, 1e-5, 3.0, 1e-6))
        measured.append(Measurement(Job.GRADIENT, shape, "torch", [times_as_fast], 2 * 10**6, 4e-5, 9.0, 1e-4))
    verdicts = list(_requirements.verdicts(Results(MACHINE, measured)))
    assert len(verdicts) == 4 * len(SHAPES) + 1
    assert all(verdict.met for verdict in verdicts if "faster" not in verdict.requirement)
    speed = {verdict.where: verdict.met for verdict in verdicts if "faster" in verdict.requirement}
    assert speed == dict.fromkeys([shape.name for shape in SHAPES[1:]] + ["geometric mean"], met) | {"small": True}


def test_who_fails_is_said_and_others_are_measured(monkeypatch, tmp_path):
    def broken(*_):
        raise MemoryError("no room\nand more")

    peers = [peer._replace(prepare=broken) if peer.name == "optax" else peer for peer in _peers.PEERS]
    monkeypatch.setattr(_peers, "PEERS", peers)
    with Progress(disable=True) as progress:
        plan = Plan(0, 2, rivals=("torch", "optax"))
        measured = list(_run.times_and_errors([(Job.LOSS, TINY)], plan, progress))
    ours, torch, optax = measured
    assert optax.failure == "MemoryError: no room"
    assert ours.rounds
    assert torch.rounds
    results = Results(MACHINE, measured)
    console = Console(record=True, width=_report.WIDTH)
    console.print(_report.table(results, Job.LOSS))
    assert "failed" in console.export_text()
    _charts.bars(results, tmp_path / "bars.png")


@pytest.mark.parametrize("met", [True, False])
def test_what_must_be_reached_on_a_gpu_is_judged(met):
    """Others just as slow as they must be, or a little faster; the bridge as late as it may be, or later."""
    off = 1 if met else 1.01
    measured = []
    for shape in (*SHAPES, *ACCELERATED):
        measured += [
            Measurement(Job.GRADIENT, shape, "jaxctc", [1.0 * off], copy_seconds=1 / 3),
            Measurement(Job.GRADIENT, shape, "torch", [2.0]),
            Measurement(Job.GRADIENT, shape, "optax", [10.0]),
        ]
    measured.append(Measurement(Job.GRADIENT, SHAPES[1], "torch cuDNN", [1.0]))
    measured.append(Measurement(Job.BRIDGE, SHAPES[0], "bridge", [1e-3 + 49e-6 * off**5]))
    measured.append(Measurement(Job.BRIDGE, SHAPES[0], "JAX call", [1e-3]))
    verdicts = list(_requirements.verdicts(Results(MACHINE | {"device": "NVIDIA H100"}, measured)))
    assert len(verdicts) == 9 + 9 + 1 + 1 + 1
    assert {verdict.met for verdict in verdicts} == {met}


def test_where_all_fail_nothing_is_judged(monkeypatch):
    def broken(*_):
        raise MemoryError

    monkeypatch.setattr(_peers, "PEERS", [peer._replace(prepare=broken) for peer in _peers.PEERS])
    with Progress(disable=True) as progress:
        measured = list(_run.times_and_errors([(Job.LOSS, TINY)], Plan(0, 2, rivals=("torch",)), progress))
    assert [m.rounds for m in measured] == [[], []]
    measured = [
        Measurement(Job.BRIDGE, TINY, "bridge", [1e-3]),
        Measurement(Job.BRIDGE, TINY, "JAX call", failure="no room"),
    ]
    assert not list(_requirements.verdicts(Results(MACHINE | {"device": "NVIDIA H100"}, measured)))


def test_reachable_states_are_those_on_some_path():
    T, S = 5, 2
    on_paths = set()
    for start, *steps in itertools.product((0, 1), *[(0, 1, 2)] * (T - 1)):
        path = list(itertools.accumulate(steps, initial=start))
        # From a label two steps lead to the next label; from a blank they would leave a label out.
        legal = all(step < 2 or state % 2 for step, state in zip(steps, path, strict=False))
        if legal and path[-1] in (2 * S - 1, 2 * S):
            on_paths.update(enumerate(path))
    assert reachable(T, S) == len(on_paths)


def test_a_shape_without_a_path_is_refused():
    with pytest.raises(ValueError, match="too few"):
        draw(Shape.parse("3,1,5,4"))


@pytest.mark.parametrize(("two", "eight"), [(5.0, 1.25), (4.0, 1.25), (7.5, 5.625), (10.0, 10.0), (12.0, 10.0)])
def test_more_cores_are_extrapolated_by_amdahl_s_law(two, eight):
    """From what takes 10 ms on one core; twice as fast as on one is the most that two can be."""
    assert cores.extrapolated(10.0, two, 8) == eight
