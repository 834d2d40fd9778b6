"""Test the conformance kit: that its answers are right, and that it finds what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles import enumerate_paths

import jaxctc
from jaxctc import conformance
from jaxctc._tools.conformance import oracle
from jaxctc._tools.conformance.cases import Case

CASES = conformance.cases()
BY_NAME = {case.name: case for case in CASES}
SMALL = [case for case in CASES if len(case.log_probs) <= 7 and "refusal" not in case.asks]


def test_names_are_unique_and_every_case_is_the_same_each_time():
    assert len(BY_NAME) == len(CASES) > 40
    for one, two in zip(CASES, conformance.cases(), strict=True):
        np.testing.assert_array_equal(one.log_probs, two.log_probs)
        np.testing.assert_array_equal(one.targets, two.targets)


def test_answers_are_those_of_every_path():
    """Of another enumeration, and of the recursion that gives the answers of long cases."""
    for case in SMALL:
        for n, length in enumerate(case.input_lengths):
            x, target = case.log_probs[:length, n], case._target(n)
            want, posterior = enumerate_paths(x, tuple(map(int, target)), case.blank)
            for found in (case.answers[n], oracle.by_recursion(x, target, case.blank)):
                np.testing.assert_allclose(found.loss, want, rtol=1e-12, atol=1e-12, err_msg=case.name)
                np.testing.assert_allclose(found.posterior, posterior, atol=1e-12, err_msg=case.name)


def test_the_second_derivative_is_that_of_the_gradient():
    case = BY_NAME["second derivative"]

    def gradient(x):
        return Case("", "", x, case.targets, case.input_lengths, case.target_lengths).gradient("log_probs")

    step = 1e-5 * case.direction
    difference = (gradient(case.log_probs + step) - gradient(case.log_probs - step)) / 2e-5
    np.testing.assert_allclose(case.hessian_product(case.direction), difference, atol=1e-8)


@pytest.mark.parametrize("aspect", dict.fromkeys(case.aspect for case in CASES))
def test_the_losses_hold_to_every_case(aspect):
    """Logits are asked where the scores are a distribution."""
    for case in (case for case in CASES if case.aspect == aspect):
        assert conformance.check(jaxctc.ctc_loss, case).held in (True, None)
        if case.normalized and len(case.log_probs) < 1000:
            conformance.check(jaxctc.ctc_loss_with_logits, case, gradient="logits")


@pytest.mark.full
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_the_implementations_hold_to_every_case(implementation):
    def function(*arguments, **options):
        return jaxctc.ctc_loss(*arguments, **options, implementation=implementation)

    for case in CASES:
        # Where logarithms are added up for thousands of frames, float32 loses digits: that is why the loops do not.
        if implementation == "xla" or len(case.log_probs) < 2000:
            exact = case if implementation == "xla" else Case(**{**vars_of(case), "gradient_tolerance": 1e-2})
            conformance.check(function, exact)


def vars_of(case):
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


@pytest.mark.full
def test_the_bridge_holds_to_every_case():
    """With PyTorch's gradient; that of an infeasible target is then NaN, which is PyTorch's too."""
    bridge = pytest.importorskip("bridge")
    for case in CASES:
        if case.aspect != "infeasible: gradient 0":
            conformance.check(bridge.ctc_loss, case, signature="torch")


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda loss: loss * (1 + 1e-3), "values"),
        (lambda loss: loss * 1.001 - 0.001 * loss, "twice the same bits"),
        (lambda loss: jaxctc._types.LOG_ZERO * 0 + loss + 1e-3 * (loss > 0), "gradient"),
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
    assert conformance.main(["export", str(tmp_path / "cases.npz")]) == 0
    described = json.loads((tmp_path / "cases.json").read_text())["cases"]
    assert [row["name"] for row in described] == [case.name for case in CASES]
    with np.load(tmp_path / "cases.npz") as arrays:
        case = BY_NAME["padded frames"]
        number = CASES.index(next(x for x in CASES if x.name == case.name))
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
    command = [sys.executable, "-m", "jaxctc.conformance", f"{tmp_path}/crash.py:ctc", "--signature", "jaxctc"]
    done = subprocess.run(
        [*command, "--json", str(path), "--dtype", "float64"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    rows = {row["aspect"]: row for row in json.loads(path.read_text())["aspects"]}
    assert rows["empty targets"]["held"] == 0
    assert "SIGABRT" in rows["empty targets"]["note"]
    assert rows["values"]["held"] == 1
    assert (
        "| empty targets | not held |"
        in subprocess.run(
            [sys.executable, "-m", "jaxctc.conformance", "table", str(path)], capture_output=True, text=True, check=True
        ).stdout
    )
    assert Path(path).exists()
