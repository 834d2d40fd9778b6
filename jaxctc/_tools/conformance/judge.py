"""Ask an implementation for what a case is about, and compare its answer with the right one."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxctc._tools.conformance.case import Case
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
        return _together(
            list(_asked(function, case.of_logits if convention == "logits" else case, how, convention, device))
        )
    except Exception as error:  # noqa: BLE001, an implementation may raise anything
        said = str(error).strip().splitlines()[:1]
        note = f"{type(error).__name__}: {said[0] if said else ''}"
        return Result("refusal" in case.asks, note=note)


def _not_asked(case: Case, how: Signature, convention: str) -> str:
    if convention == "logits" and not case.normalized:
        return "it takes logits, and these scores are no distribution"
    if not how.reduces and (case.reduction != "none" or case.zero_infinity or case.end_to_end):
        return "its signature has no such argument"
    if not how.lengths and case.aspect == "lengths out of range":
        return "its signature has no lengths"
    if not case.contiguous and not how.strided:
        return "its arrays have no strides"
    return ""


def _asked(
    function: Callable[..., Any], case: Case, how: Signature, convention: str, device: str | None
) -> Iterator[Result]:
    """Yield a result for all that the case asks."""
    asks = {*case.asks}
    if asks & {"loss", "sign"}:
        loss = how.loss(function, case, device)
        yield _loss_result(loss, case)
        if "sign" in asks:
            yield Result(bool(np.all(loss >= 0)), note=f"a loss is {np.min(loss):.1g}")
    if asks & {"gradient", "same bits"}:
        loss, gradient = how.call(function, case, device)
        if "gradient" in asks:
            yield _loss_result(loss, case)
            yield _gradient_result(gradient.copy(), case, convention)
        if "same bits" in asks:
            again = how.call(function, case.clean, device)
            same = all(np.array_equal(x, y, equal_nan=True) for x, y in zip((loss, gradient), again, strict=True))
            yield Result(same, note="two calls differ")
    if "second derivative" in asks:
        product, want = how.hessian_product(function, case, device), case.hessian_product(convention)
        yield _within("second derivative", product, want, case.gradient_tolerance)
    if "forward mode" in asks:
        along = how.directional(function, case, device)
        want = (case.gradient(convention) * case.direction).sum()
        yield _within("derivative", along, want, case.loss_tolerance, relative=True)


def _loss_result(loss: np.ndarray, case: Case) -> Result:
    if loss.shape != case.loss.shape:
        return Result(False, float("inf"), f"the loss has the shape {loss.shape}, not {case.loss.shape}")
    if case.refused and not np.isnan(loss[case.refused[0]]):
        return Result(False, note=f"it returned {loss[case.refused[0]]:.3g}")
    return _within("loss", loss, case.loss, case.loss_tolerance, relative=True)


def _gradient_result(gradient: np.ndarray, case: Case, convention: str) -> Result:
    want = case.gradient(convention)
    for n in case.refused:  # nobody knows which of its frames are padding
        if np.isnan(gradient[:, n]).any():
            gradient[:, n], want[:, n] = np.nan, np.nan
    nothing = gradient[case.without_gradient & ~np.isnan(want).any(axis=2)]
    if (nothing != 0).any():
        stray = nothing.flat[np.argmax(np.abs(nothing))]  # a NaN is the largest
        return Result(False, abs(stray) if np.isfinite(stray) else float("inf"), f"gradient {stray:.2g}, not 0")
    return _within("gradient", gradient, want, case.gradient_tolerance)


def _within(what: str, got: np.ndarray, want: np.ndarray, tolerance: float, *, relative: bool = False) -> Result:
    error = largest_error(got, want, relative=relative)
    if error <= tolerance:
        return Result(True, error)
    if np.isfinite(error):
        return Result(False, error, f"{what} off by {error:.1g}")
    got, want = np.broadcast_arrays(got, want)
    wrong = (got != want) & ~(np.isfinite(got) & np.isfinite(want)) & ~(np.isnan(got) & np.isnan(want))
    return Result(False, error, f"{what} {got[wrong][0]:.2g}, not {want[wrong][0]:.2g}")


def _together(results: list[Result]) -> Result:
    """Return the largest error of those that do not hold and what the first of them says, or of all that hold."""
    wrong = [result for result in results if not result.held]
    errors = [result.error for result in wrong or results if result.error is not None]
    return Result(not wrong, max(errors, default=None), wrong[0].note if wrong else "")
