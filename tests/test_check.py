"""Test `python -m jaxctc.check`: what it says of sound kernels, and of those that fail in every way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxctc import check
from jaxctc._tools.check import cases, report, timing
from jaxctc._tools.errors import largest_error

FAULTY = ["--import", "faulty_kernels"]


def run(*arguments, environment=None):
    command = [sys.executable, "-m", "jaxctc.check", "--no-timings", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent, env=environment
    )


@pytest.mark.full
def test_every_way_to_fail_is_a_row_and_not_the_end(tmp_path):
    """The hanging kernel sleeps for an hour: it is stopped, and the rows after it are run."""
    kinds = ["wrong", "hanging", "crashing", "raising", "sound"]
    chosen = [x for name in kinds for x in ("--implementation", name)]
    path = tmp_path / "report.json"
    done = run(*FAULTY, *chosen, "--case", "short targets", "--limit", "25", "--json", str(path), "--full")

    found = json.loads(path.read_text())
    rows = {row["implementation"]: row for row in found["checks"]}
    assert {name: rows[name]["status"] for name in kinds} == {
        "wrong": "wrong",
        "hanging": "no answer",
        "crashing": "crashed",
        "raising": "failed",
        "sound": "right",
    }
    assert rows["hanging"]["note"] == "stopped after 25 s"
    assert rows["crashing"]["note"] == "the process died of SIGABRT"
    assert rows["raising"]["note"] == "RuntimeError: the launch failed"
    assert 1e-4 < rows["wrong"]["gradient_error"] < 1e-2
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("4 of 5 rows are wrong, of wrong, hanging, crashing, raising: do not choose it")
    assert found["verdict"] == last
    assert found["machine"]["versions"]["jaxctc"]


def test_what_is_not_one_of_the_cases_is_refused(capsys):
    with pytest.raises(SystemExit):
        check.main(["--case", "nothing"])
    assert "--case is 'nothing': it must be one of 'short targets'," in capsys.readouterr().err


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_a_case_holds_what_its_row_says(case):
    """Every kind of sequence that there is room for, and all full targets feasible."""
    logits, targets, input_lengths, target_lengths = cases.batch(case, 1)
    scores = cases.scores_of(case, logits, input_lengths)
    assert logits.shape == (case.T, case.N, case.C)
    assert targets.shape == (case.N, case.S)
    repeats = (targets[0, 1:] == targets[0, :-1]).sum()
    assert (input_lengths[0], target_lengths[0], repeats) == (case.T, case.S, 0)
    assert case.T >= case.S
    if case.N > 5:
        assert target_lengths[3] == 0
        assert input_lengths[4] < target_lengths[4]
        assert (input_lengths[5], target_lengths[5]) == (1, 1)
    if case.function == "ctc_loss" and not case.blank_away:
        with np.errstate(invalid="ignore"):
            total = np.exp(scores[:, :, : -1 if case.masked else None]).sum(axis=2)
        assert np.nanmax(total) < 1 + 1e-6
    assert np.isnan(scores).any() == case.masked


def test_errors_are_those_of_the_worst_element():
    want = np.array([1.0, 100.0, np.inf, np.nan])
    assert largest_error(want, want) == 0
    assert largest_error(want + np.array([0.5, 1, 0, 0]), want) == 1
    assert largest_error(want + np.array([0.0, 1, 0, 0]), want, relative=True) == pytest.approx(0.01)
    for wrong in ([np.inf, 100, np.inf, np.nan], [1, 100, -np.inf, np.nan], [1, 100, np.inf, 3], [1, 100, 5, np.nan]):
        assert largest_error(np.array(wrong), want) == np.inf


def row(implementation, status):
    return {"implementation": implementation, "status": status}


@pytest.mark.parametrize(
    ("statuses", "times", "sound", "words"),
    [
        ({"xla": "right", "pallas": "right"}, (3.0, 1.0), True, "are 3 to 3 times as fast as XLA's loops: choose them"),
        ({"xla": "right", "pallas": "right"}, (1.0, 2.0), True, "choose by the shapes that you use"),
        ({"xla": "right", "pallas": "right"}, None, True, "The kernels were not timed"),
        ({"xla": "right", "pallas": "not served"}, None, True, "There are no kernels for this device: leave"),
        ({"xla": "right", "pallas": "not reached"}, None, False, "1 rows were not reached in the time given: --full"),
        ({"xla": "right", "pallas": "wrong"}, (3.0, 1.0), False, "1 of 2 rows are wrong, of pallas: do not choose it"),
        ({"xla": "crashed", "pallas": "right"}, (3.0, 1.0), False, "1 of 2 rows are wrong, of xla"),
    ],
)
def test_the_last_line_says_what_to_choose(statuses, times, sound, words):
    checks = [row(*x) for x in statuses.items()]
    timings = [{"milliseconds": dict(zip(("xla", "pallas"), times, strict=True))}] if times else []
    right, sentence = report.verdict({"backend": "gpu"}, checks, timings)
    assert right == sound
    assert words in sentence


@pytest.mark.full
def test_all_contenders_are_timed():
    found = timing.milliseconds(timing.Shape(6, 2, 4, 2), ["xla"])
    assert {"xla"} < found.keys()
    assert all(value > 0 for value in found.values())
