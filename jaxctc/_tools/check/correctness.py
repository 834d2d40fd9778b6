"""Run one implementation on one case, and compare it with the reference in float64 on a CPU."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxctc
from jaxctc._tools.check import cases
from jaxctc._tools.check.cases import Case
from jaxctc._tools.errors import largest_error

LOSS_TOLERANCE = {"float64": 1e-12}
"""The largest error of a loss, in units of the loss or of 1, whichever is larger; 1e-5 for all other types."""
GRADIENT_TOLERANCE = {"float64": 1e-10, "bfloat16": 4e-3, "float16": 6e-4}
"""The largest error of an element of the gradient, which is between -1 and 1; 5e-5 for float32."""


class Row(NamedTuple):
    """What became of one case."""

    status: str
    """``"right"``, ``"wrong"``, ``"not served"`` or ``"failed"``."""
    loss_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


def row(case: Case, implementation: str) -> Row:
    """Return how far an implementation is from the reference, on JAX's default devices."""
    with jax.enable_x64(case.dtype == "float64"):
        logits, *rest = cases.batch(case, jax.device_count())
        scores = np.asarray(cases.scores_of(case, logits, rest[1]), jnp.dtype(case.dtype))
        try:
            got = jax.tree.map(_wide, _run(case, implementation, _placed(case, scores, rest)))
        except ValueError as error:
            if "there is no kernel" not in str(error):
                raise
            return Row("not served", note=str(error).split("for this: ")[-1].removesuffix(". Leave it to None."))
    return _judged(case, got, _expected(case, scores, rest))


def _expected(case: Case, scores: np.ndarray, rest: list[np.ndarray]) -> Any:
    plain = case._replace(under_vmap=False, chunk=None, sharded=False, batch_first=False)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        want = jax.tree.map(_wide, _run(plain, "reference", [_wide(scores), *rest]))
    return tuple(np.stack([x, x]) for x in want) if case.under_vmap else want


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def _placed(case: Case, scores: np.ndarray, rest: list[np.ndarray]) -> list[Any]:
    arrays = [scores, *rest]
    if case.under_vmap:
        return [np.stack([x, x]) for x in arrays]
    if not case.sharded:
        return arrays
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    specs = [P(None, "devices"), *[P("devices")] * 3]
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


def _run(case: Case, implementation: str, arrays: list[Any]) -> tuple[Any, ...]:
    """Return the losses and the gradient of their sum, or the posteriors of classes and states; (T, N, ...) always."""
    scores, *rest = arrays
    axis = 1 if case.under_vmap else 0
    if case.batch_first:
        scores = scores.swapaxes(axis, axis + 1)
    run = _program(case.function, implementation, case.batch_first, case.under_vmap, case.chunk)
    found = jax.block_until_ready(run(scores, *rest))
    if not case.batch_first:
        return tuple(found)
    return tuple(x.swapaxes(axis, axis + 1) if x.ndim == scores.ndim else x for x in found)


@functools.cache
def _program(name: str, implementation: str, batch_first: bool, under_vmap: bool, chunk: int | None) -> Any:
    """Return one compiled function for all cases that differ in their arrays alone."""
    call = functools.partial(getattr(jaxctc, name), implementation=implementation, batch_first=batch_first)
    if chunk:
        call = functools.partial(call, sequences_at_once=chunk)

    def posteriors(scores: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
        found = call(scores, *rest)
        return found.classes, found.states

    def losses_and_gradient(scores: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
        def total(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = call(scores, *rest, reduction="none")
            return losses.sum(), losses

        gradient, losses = jax.grad(total, has_aux=True)(scores)
        return losses, gradient

    run = posteriors if name == "ctc_posteriors" else losses_and_gradient
    return jax.jit(jax.vmap(run) if under_vmap else run)


def _judged(case: Case, got: tuple[np.ndarray, ...], want: tuple[np.ndarray, ...]) -> Row:
    losses, gradients = zip(got, want, strict=True)
    tolerance = GRADIENT_TOLERANCE.get(case.dtype, 5e-5)
    if case.function == "ctc_posteriors":
        error = max(largest_error(*losses), largest_error(*gradients))
        return Row("right" if error <= tolerance else "wrong", gradient_error=error)
    loss_error, gradient_error = largest_error(*losses, relative=True), largest_error(*gradients)
    right = loss_error <= LOSS_TOLERANCE.get(case.dtype, 1e-5) and gradient_error <= tolerance
    return Row("right" if right else "wrong", loss_error, gradient_error)
