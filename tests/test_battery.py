"""Judge every implementation, in floating-point types and layouts, by the cases of `jaxctc.conformance`.

The forms in which a caller may write the arguments are in `test_arguments.py`.
"""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import conformance
from jaxctc._kernels import dispatch
from jaxctc._tools.check import worker
from jaxctc._tools.conformance.judge import judge

CASES = conformance.cases()
BY_NAME = {case.name: case for case in CASES}
BASE = BY_NAME["padded frames"]
GPU_KERNELS = "interpreted-gpu"


def fits_one_program(case):
    """Whether a program that was compiled for the base case serves this one too."""
    asked = {"loss", "gradient", "same bits", "refusal"}
    keys = [(x.log_probs.shape, x.targets.shape, x.reduction, x.zero_infinity, x.blank) for x in (case, BASE)]
    return keys[0] == keys[1] and asked >= {*case.asks}


def is_chosen(case, choice):
    """Whether a case is among "every case", the "short" ones, those of "few programs", or is the "one case"."""
    if choice == "few programs":
        return fits_one_program(case) or case.name in ("sequences of all kinds", "a loss is never negative")
    return {"every case": True, "short": len(case.log_probs) <= 200, "one case": case is BASE}[choice]


class Entry(NamedTuple):
    """One way into the library, and the cases that it is judged by."""

    function: Callable[..., jax.Array]
    dtype: str | None = None
    """Every case is made of this type; None: of its own."""
    batch_first: bool = False
    implementation: str | None = None
    """"gpu-loops" are the loops for GPUs; `GPU_KERNELS` and `worker.INTERPRETED` the kernels, interpreted."""
    blank: int = 0
    cases: str = "few programs"

    @property
    def name(self) -> str:
        layout = "NTC" if self.batch_first else "TNC"
        return "-".join(filter(None, (self.function.__name__, self.dtype, layout, self.implementation, self.cases)))

    def made(self, case: conformance.Case) -> conformance.Case:
        """Return the case in this entry's type, with its blank, and with the tolerances that we keep to."""
        if self.dtype not in (None, case.dtype):
            case = case.in_dtype(self.dtype)
        if not case.blank:
            case = case.with_blank(self.blank)
        exact = case.dtype == "float64"
        # Half precision computes in float32, and rounds the gradient once.
        step = 1e-12 if exact else 4e-6 + float(jnp.finfo(case.dtype).eps) / 2
        if "second derivative" in case.asks or len(case.log_probs) > 100:
            step *= 5
        return dataclasses.replace(case, loss_tolerance=1e-12 if exact else 4e-6, gradient_tolerance=step)

    def loss(self, scores: jax.Array, *problem: Any, **options: Any) -> jax.Array:
        if self.batch_first:
            scores = jnp.swapaxes(scores, 0, 1)
        options |= {"batch_first": self.batch_first, "implementation": self.implementation}
        loss = self.function(scores, *problem, **options)
        assert loss.dtype == (jnp.float64 if scores.dtype == jnp.float64 else jnp.float32)
        return loss

    def wrong(self) -> list[str]:
        """Return what is wrong. With a type, all arrays are traced; without, they are what a user has at hand."""
        function = self.loss
        if self.dtype:
            function = jax.jit(self.loss, static_argnames=("blank", "reduction", "zero_infinity"))
        gradient = "logits" if self.function is jaxctc.ctc_loss_with_logits else "log_probs"
        types = "float32", self.dtype
        chosen = [c for c in CASES if is_chosen(c, self.cases) and (self.dtype is None or c.dtype in types)]
        results = {case.name: judge(function, self.made(case), "jaxctc", gradient) for case in chosen}
        assert self.cases == "one case" or len(results) > 40
        return [f"{name}: {result.note}" for name, result in results.items() if result.held is False]


LOSSES = jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits
LOG_PROBS, LOGITS = LOSSES
QUICK = [
    Entry(LOG_PROBS, cases="every case"),
    Entry(LOGITS),
    Entry(LOGITS, "float64", True, None, 2),
    Entry(LOG_PROBS, "bfloat16", True, None, 3),
    Entry(LOGITS, "float16", False, None, 1),
    Entry(LOG_PROBS, "float32", False, "reference", 2),
]
"""Those in `make test`: each function, type, layout and implementation, but not each with each. All compile anew."""
FULL = [
    Entry(LOGITS, cases="every case"),
    Entry(LOG_PROBS, "float64", True, None, 1),
    Entry(LOGITS, "bfloat16", True),
    Entry(LOG_PROBS, "float16", False, None, 2),
    Entry(LOGITS, "float64", True, "reference", cases="short"),
    Entry(LOGITS, "bfloat16", False, "reference", 1),
    Entry(LOG_PROBS, None, False, worker.INTERPRETED, cases="short"),
    Entry(LOGITS, "bfloat16", True, worker.INTERPRETED, 2),
    Entry(LOG_PROBS, "float32", False, "gpu-loops"),
    Entry(LOGITS, "float64", True, "gpu-loops", 3),
    Entry(LOGITS, "float32", False, GPU_KERNELS, cases="one case"),
]


@pytest.mark.parametrize(
    "entry",
    [pytest.param(x, id=x.name) for x in QUICK] + [pytest.param(x, id=x.name, marks=pytest.mark.full) for x in FULL],
)
def test_every_case_is_held_to(entry, monkeypatch):
    if entry.implementation == "gpu-loops":
        dispatch.register_gpu_loops("gpu-loops", turn=2)
    if entry.implementation == worker.INTERPRETED:
        worker.register_interpreted()
    if entry.implementation == GPU_KERNELS:
        _register_gpu_kernels(monkeypatch)
    assert entry.wrong() == []


def _register_gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("absl", reason="Pallas's Mosaic GPU needs absl-py")
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    from jaxctc._kernels import gpu, warpgroup

    monkeypatch.setattr(warpgroup, "THREADS", 8)
    interpreted = {
        name: functools.partial(getattr(gpu, name), interpret=InterpretGPUParams())
        for name in ("likelihood", "posterior")
    }
    dispatch.register(GPU_KERNELS, types.SimpleNamespace(**interpreted, PRECISION=jax.lax.Precision.HIGHEST))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["of PyTorch", "true", "of logits"])
# The oldest forward mode of PyTorch warns about torch.jit when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_the_bridge_holds_to_every_case_with_each_gradient(kind):
    """PyTorch's own is NaN for an infeasible target that is not counted as zero."""
    bridge = pytest.importorskip("bridge")
    function, gradient = {
        "of PyTorch": (bridge.ctc_loss, "torch"),
        "true": (functools.partial(bridge.ctc_loss, normalized=False), "log_probs"),
        "of logits": (bridge.ctc_loss_with_logits, "logits"),
    }[kind]
    results = {case: judge(function, Entry(LOG_PROBS).made(case), "torch", gradient) for case in CASES}
    wrong = {case: result.note for case, result in results.items() if result.held is False}
    nan = [case for case in wrong if np.isposinf(case.losses).any() and "gradient" in case.asks]
    assert {case.name: note for case, note in wrong.items() if kind != "of PyTorch" or case not in nan} == {}
    assert {wrong[case] for case in nan} <= {"gradient nan, not 0"}


@pytest.mark.parametrize("mask", [-1e30, float(np.finfo(np.float32).min)])
def test_a_target_all_of_whose_paths_are_masked_by_so_much_is_infeasible(mask):
    scores = jnp.asarray(BASE.log_probs, jnp.float32).at[:, 1, 1].set(mask)
    problem = BASE.targets, BASE.input_lengths, BASE.target_lengths
    for function in LOSSES:
        loss, pull_back = jax.vjp(lambda x, f=function: f(x, *problem, reduction="none"), scores)
        np.testing.assert_array_equal(np.isposinf(loss), [False, True, False, False])
        assert (pull_back(jnp.ones_like(loss))[0][:, 1] == 0).all()


@pytest.mark.parametrize("others", [-1000.0, -1e29, 1e37])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_a_frame_that_rules_out_blank_and_labels_is_infeasible_wherever_its_other_logits_are(implementation, others):
    """The log-sum-exp must not overflow because it is relative to a class that has no probability."""
    scores = jnp.pad(jnp.asarray(BASE.log_probs, jnp.float32), ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)
    scores = scores.at[2, 1].set(-jnp.inf).at[2, 1, -1].set(others)

    def losses(scores):
        problem = BASE.targets, BASE.input_lengths, BASE.target_lengths
        return LOGITS(scores, *problem, reduction="none", implementation=implementation)

    loss, pull_back = jax.vjp(losses, scores)
    np.testing.assert_array_equal(np.isposinf(loss), [False, True, False, False])
    assert not jnp.isnan(loss).any()
    assert (pull_back(jnp.ones_like(loss))[0][:, 1] == 0).all()
