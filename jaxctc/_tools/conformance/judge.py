"""Ask an implementation for what a case is about, and compare its answer with the right one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxctc._tools.conformance.cases import Case
from jaxctc._tools.conformance.signatures import CONVENTIONS, SIGNATURES, Signature
from jaxctc._tools.errors import largest_error


class Result(NamedTuple):
    """Whether an implementation holds to one case."""

    held: bool | None
    """None: it was not asked, and `note` says why."""
    error: float | None = None
    """The largest error found, of a loss in units of the loss or of 1, or of the gradient; infinity for a NaN."""
    note: str = ""


def judge(
    function: Callable[..., Any], case: Case, signature: str, gradient: str | None = None, device: str | None = None
) -> Result:
    """Return the result of one case. `gradient` is one of `CONVENTIONS`; None: what functions of the signature give."""
    if signature not in SIGNATURES:
        raise ValueError(f"signature is {signature!r}: it must be one of {', '.join(map(repr, SIGNATURES))}.")
    how = SIGNATURES[signature]
    convention = how.convention if gradient is None else gradient
    if convention not in CONVENTIONS:
        raise ValueError(f"gradient is {convention!r}: it must be one of {', '.join(map(repr, CONVENTIONS))}, or None.")
    if why := _not_asked(case, how, convention):
        return Result(None, note=why)
    try:
        return _asked(function, case, how, convention, device)
    except Exception as error:  # noqa: BLE001, an implementation may raise anything
        said = str(error).strip().splitlines()[:1]
        note = f"{type(error).__name__}: {said[0] if said else ''}"
        return Result(True, note=note) if "refusal" in case.asks else Result(False, note=note)


def _not_asked(case: Case, how: Signature, convention: str) -> str:
    if (how.takes_logits or convention == "logits") and not case.normalized:
        return "it takes logits, and these scores are no distribution"
    if not how.reduces and (case.reduction != "none" or case.zero_infinity or case.end_to_end):
        return "its signature has no such argument"
    if not case.contiguous and not how.strided:
        return "its arrays have no strides"
    return ""


def _asked(function: Callable[..., Any], case: Case, how: Signature, convention: str, device: str | None) -> Result:
    answers = case.of_logits if how.takes_logits or convention == "logits" else case
    if case.asks == ("second derivative",):
        want = answers.hessian_product(case.direction)
        if convention != "log_probs":
            want = want + _of_probabilities(answers, convention)
        return _within(largest_error(how.hessian_product(function, case, device), want), case.gradient_tolerance)
    loss, gradient = how.call(function, case, device)
    if case.asks == ("refusal",):
        silent = not np.isnan(np.ravel(loss)[0])
        return Result(not silent, note=f"it returned {np.ravel(loss)[0]:.6g}" if silent else "NaN")
    if case.asks == ("same bits",):
        again = how.call(function, case, device)
        same = all(np.array_equal(x, y, equal_nan=True) for x, y in zip((loss, gradient), again, strict=True))
        return Result(same, note="" if same else "two calls differ")
    results = []
    if "loss" in case.asks:
        results.append(_within(largest_error(loss, answers.loss, relative=True), case.loss_tolerance))
    if "gradient" in case.asks:
        results.append(_within(largest_error(gradient, answers.gradient(convention)), case.gradient_tolerance))
    wrong = [result for result in results if not result.held]
    return max(wrong or results, key=lambda result: result.error or 0)


def _of_probabilities(case: Case, convention: str) -> np.ndarray:
    """Return the derivative, in the case's direction, of the probabilities that the gradient of a convention adds.

    They are exp(log_probs) for "torch" and the softmax for "logits"; 0 in padded frames and for infeasible targets.
    """
    counts = np.arange(len(case.log_probs))[:, None] < case.input_lengths
    counts = (counts & np.isfinite(case.losses))[:, :, None]
    p = np.where(counts, np.exp(np.where(counts, case.log_probs, 0)), 0)
    along = p * case.direction
    return along if convention == "torch" else along - p * along.sum(axis=2, keepdims=True)


def _within(error: float, tolerance: float) -> Result:
    return Result(error <= tolerance, error)
