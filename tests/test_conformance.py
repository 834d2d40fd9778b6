"""Test the conformance kit: that its answers are right, and that it finds what is wrong."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from oracles import torch_float64

import jaxctc
from jaxctc import conformance
from jaxctc._tools.conformance import export, oracle

CASES = conformance.cases()
BY_NAME = {case.name: case for case in CASES}


def test_names_are_unique_and_every_case_is_the_same_each_time():
    assert len(BY_NAME) == len(CASES) > 40
    for one, two in zip(CASES, conformance.cases(), strict=True):
        np.testing.assert_array_equal(one.log_probs, two.log_probs)
        np.testing.assert_array_equal(one.targets, two.targets)


def test_the_two_oracles_agree():
    """Enumeration and recursion share nothing; and a path is spelled by hand."""
    assert oracle.spells((0, 1, 1, 0, 1, 2, 2), 0) == (1, 1, 2)
    assert len(oracle.paths(4, np.array([1, 1]), 0)) == 5  # 1-1 in three frames, and four places for one frame more
    for case in CASES:
        for n, length in enumerate(case.input_lengths):
            if n not in case.refused and len(case.log_probs) <= 7:
                x, target = case.log_probs[:length, n], case.target(n)
                enumerated, recursive = (f(x, target, case.blank) for f in (oracle.by_enumeration, oracle.by_recursion))
                # In log space, a sum with a huge mask keeps no more digits than the mask has.
                lost = 1e-15 * np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max(initial=1e3)
                for one, other in zip(enumerated, recursive, strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-12, atol=lost, err_msg=case.name)


def test_the_answers_are_those_of_pytorch():
    """In float64, where its gradient is a number: of every feasible sequence that has no -inf and no NaN."""
    pytest.importorskip("torch")
    for case in CASES:
        live = case.log_probs[case.frame_mask]
        ordinary = all(np.isfinite(x.loss) for x in case.answers) and (np.abs(live) < 1e6).all()
        if ordinary and len(case.log_probs) <= 200:
            problem = case.targets, case.input_lengths, case.target_lengths
            losses, posteriors = torch_float64(case.log_probs, *problem, case.blank)
            np.testing.assert_allclose([x.loss for x in case.answers], losses, rtol=1e-11, atol=1e-11)
            for n, answer in enumerate(case.answers):
                np.testing.assert_allclose(posteriors[: len(answer.posterior), n], answer.posterior, atol=1e-9)


def test_the_second_derivative_is_that_of_the_gradient():
    for convention in ("log_probs", "torch", "logits"):
        case = BY_NAME["second derivative"]
        case = case.of_logits if convention == "logits" else case

        def gradient(x, case=case, convention=convention):
            log_probs = oracle.log_softmax(x) if convention == "logits" else x
            return dataclasses.replace(case, log_probs=log_probs).gradient(convention)

        step = 1e-5 * case.direction
        difference = (gradient(case.scores + step) - gradient(case.scores - step)) / 2e-5
        np.testing.assert_allclose(case.hessian_product(convention), difference, atol=1e-8)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda loss: loss * (1 + 1e-3), "values"),
        (lambda loss: loss * 1.001 - 0.001 * loss, "twice the same bits"),
        (lambda loss: loss, "gradient"),
    ],
)
def test_a_wrong_answer_is_found(spoil, name):
    calls = []

    def function(*arguments, **options):
        calls.append(1)
        loss = jaxctc.ctc_loss(*arguments, **options)
        if name == "gradient":
            return loss * 1.01
        return spoil(loss) + (len(calls) * 1e-6 if name == "twice the same bits" else 0)

    with pytest.raises(AssertionError, match=BY_NAME[name].aspect):
        conformance.check(function, BY_NAME[name])


def test_what_raises_is_wrong_but_where_a_refusal_is_right():
    def function(*_, **__):
        raise RuntimeError("no")

    with pytest.raises(AssertionError, match="values, values: RuntimeError: no"):
        conformance.check(function, BY_NAME["values"])
    assert conformance.check(function, BY_NAME["label C"]).held
    with pytest.raises(AssertionError, match="labels out of range, label C: it returned"):
        conformance.check(lambda x, *_, **__: x.sum(axis=(0, 2)), BY_NAME["label C"])
    with pytest.raises(ValueError, match=r"signature is 'mine': it must be one of 'torch', 'jaxctc'"):
        conformance.check(function, BY_NAME["values"], signature="mine")
    with pytest.raises(ValueError, match=r"gradient is 'mine': it must be one of 'log_probs'"):
        conformance.check(function, BY_NAME["values"], gradient="mine")


def test_the_archive_holds_what_a_case_does(tmp_path):
    short = [case for case in CASES if len(case.log_probs) <= 60]
    export.export(short, tmp_path / "cases.npz")
    described = json.loads((tmp_path / "cases.json").read_text())["cases"]
    assert [row["name"] for row in described] == [case.name for case in short]
    with np.load(tmp_path / "cases.npz") as arrays:
        case = BY_NAME["padded frames"]
        number = short.index(case)
        np.testing.assert_array_equal(arrays[f"{number}.log_probs"], case.log_probs)
        np.testing.assert_allclose(arrays[f"{number}.losses"], case.losses)
        np.testing.assert_allclose(arrays[f"{number}.gradient.torch"], case.gradient("torch"))


@pytest.mark.full
def test_the_program_survives_a_crash_and_compares_reports(tmp_path):
    """One function ends its process on the first case with an empty target."""
    (tmp_path / "crash.py").write_text(
        "import os, jaxctc\n"
        "def ctc(x, targets, frames, counts, **options):\n"
        "    if (counts == 0).any(): os.abort()\n"
        "    return jaxctc.ctc_loss(x, targets, frames, counts, **options)\n"
    )
    path = tmp_path / "report.json"
    program = [sys.executable, "-m", "jaxctc.conformance"]
    command = [*program, f"{tmp_path}/crash.py:ctc", "--signature", "jaxctc", "--json", str(path)]
    aspects = "values", "empty targets", "repeats"
    for aspect in aspects:
        command += ["--aspect", aspect]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    rows = {row["aspect"]: row for row in json.loads(path.read_text())["aspects"]}
    assert tuple(rows) == aspects
    assert rows["empty targets"]["held"] == 0
    assert "SIGABRT" in rows["empty targets"]["note"]
    assert rows["values"]["held"] == 1
    assert rows["repeats"]["held"] == rows["repeats"]["asked"] == 3
    table = subprocess.run([*program, "table", str(path)], capture_output=True, text=True, check=True).stdout
    assert "| empty targets | not held |" in table
    command = [*program, f"{tmp_path}/crash.py:ctc", "--signature", "jaxctc", "--dtype", "float64"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    assert conformance.main(["export", str(tmp_path / "cases.npz")]) == 0
    assert len(json.loads((tmp_path / "cases.json").read_text())["cases"]) == len(CASES)


def test_an_unknown_aspect_is_named(capsys):
    with pytest.raises(SystemExit):
        conformance.main(["jaxctc:ctc_loss", "--aspect", "speed"])
    assert "'speed' is no aspect: it must be one of 'values', 'gradient'" in capsys.readouterr().err
