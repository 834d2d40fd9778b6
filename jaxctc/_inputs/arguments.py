"""Make one batch in canonical form of whatever the caller passed, and one description of what was asked."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from jaxctc._inputs import advice, checks
from jaxctc._inputs.checks import LOG_PROBS, Form, Names
from jaxctc._inputs.default_implementation import served_by
from jaxctc._inputs.mesh_axis import mesh_axis_of_frames
from jaxctc._lattice.lattices import in_range, row_of_indices, wide
from jaxctc._sizes import Size, is_at_most, is_known, smaller
from jaxctc._types import ArrayLike, Implementation, Problem, Request


def canonical_batch(
    scores: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    blank: int,
    *,
    from_logits: bool = False,
    batch_first: bool = False,
    max_target_length: int | None = None,
    implementation: Implementation | None = None,
    sequences_at_once: int | None = None,
    frame_axis: str | Literal[False] | None = False,
    names: Names = LOG_PROBS,
) -> tuple[Problem, Request, bool]:
    """Return the caller's batch in canonical form, the description of what was asked, and whether it was a batch.

    `names` is what error messages call the arguments, no more. `frame_axis` is False for functions that do not divide
    frames among devices.
    """
    checks.implementation(implementation)
    asked, prefers_kernels = served_by(implementation)
    scores, request, batched = canonical_scores(scores, blank, batch_first, names)
    request = Request(
        request.blank,
        from_logits,
        request.batch_first,
        frame_axis=None if frame_axis is False else mesh_axis_of_frames(frame_axis, scores, request, names),
        sequences_at_once=checks.at_least_one("sequences_at_once", sequences_at_once, "a number of sequences"),
        implementation=asked,
        prefers_kernels=prefers_kernels,
    )
    bound = None
    if max_target_length is not None:
        bound = checks.integer("max_target_length", max_target_length, "a bound on the target lengths")
        if bound < 0:
            raise ValueError(f"max_target_length is {bound}: it must be at least 0, or None.")

    frames, sequences = _frames_and_sequences(scores, request)
    targets = checks.integers(names.targets, targets, checks.LABELS)
    targets, form = _form(targets, sequences, batched, names, _order_hint(scores, request, names))
    input_lengths = canonical_frames(input_lengths, scores, request, batched, names)
    if not batched:
        target_lengths = _one(names.target_lengths, target_lengths)
    hint = _order_hint(scores, request, names)
    target_lengths = checks.lengths(names.target_lengths, target_lengths, sequences, "S", hint)

    counts = checks.host_values(target_lengths)
    longest = targets.shape[-1]
    slots = f"{names.targets} has S = {checks.plural(longest, 'slot')}"
    if form is Form.END_TO_END:
        slots = f"{names.targets} holds {checks.plural(longest, 'label')} end to end"
    if bound is not None and not is_at_most(longest, bound):
        longest, slots = bound, f"max_target_length is {bound}"

    def explain() -> tuple[str, str]:
        inputs = checks.host_values(input_lengths)
        fits = counts is not None and inputs is not None and counts.max() <= frames and inputs.max() <= longest
        # Functions with other names for their arguments have them in another order.
        return slots, "A target length counts the labels of a target, without its padding." + advice.swapped_lengths(
            bool(fits) and names in (checks.LOG_PROBS, checks.LOGITS)
        )

    checks.length_values(names.target_lengths, counts, longest, explain, batched)
    if counts is not None:  # legal, so that they fit; of uint64 and int64 numpy would make float64
        counts = counts.astype(np.int64)
    if form is Form.END_TO_END:
        targets, target_lengths = _pad(targets, target_lengths, counts, bound, frames, names)
    elif bound is not None:
        targets = targets[:, :bound]

    values = checks.host_values(targets)
    if values is not None and counts is not None:
        checks.label_values(values, counts, request.blank, scores.shape[-1], form, names)
    problem = Problem(scores, _device(targets), input_lengths, _device(target_lengths))
    return problem, request, batched


def canonical_scores(
    scores: ArrayLike, blank: int, batch_first: bool, names: Names = LOG_PROBS
) -> tuple[jax.Array, Request, bool]:
    """Return the scores with an axis of sequences, a request that has their layout alone, and whether they had one."""
    scores = checks.scores(names.scores, scores)
    batch_first = checks.flag("batch_first", batch_first)
    request = Request(checks.blank(blank, scores.shape[-1], names.blank), batch_first=batch_first)
    batched = scores.ndim == 3
    if not batched:
        scores = scores[None] if batch_first else scores[:, None]
    return scores, request, batched


def canonical_frames(
    input_lengths: ArrayLike,
    scores: jax.Array,
    request: Request,
    batched: bool,
    names: Names = LOG_PROBS,
) -> jax.Array:
    """Return the input lengths of such scores, checked, one a sequence."""
    frames, sequences = _frames_and_sequences(scores, request)
    if not batched:
        input_lengths = _one(names.input_lengths, input_lengths)
    hint = _order_hint(scores, request, names)
    input_lengths = checks.lengths(names.input_lengths, input_lengths, sequences, "T", hint)
    values = checks.host_values(input_lengths)

    def explain() -> tuple[str, str]:
        swapped = values is not None and batched and is_known(sequences) and frames < values.max() <= sequences
        return f"{names.scores} has T = {checks.plural(frames, 'frame')}", (
            "An input length counts the frames that the model gives for a sequence, after any subsampling."
            + (hint(frames) if swapped else "")
        )

    checks.length_values(names.input_lengths, values, frames, explain, batched)
    return _device(input_lengths)


def _order_hint(scores: jax.Array, request: Request, names: Names) -> Callable[[Size], str]:
    """Return a function that says, of a size that is wrong, whether it would be right with T and N swapped."""
    frames, sequences = _frames_and_sequences(scores, request)

    def hint(size: Size) -> str:
        # Functions with other names for their arguments have no argument batch_first.
        fits = names in (checks.LOG_PROBS, checks.LOGITS) and sequences != frames == size
        return advice.order_of_axes(names.scores, request.batch_first, fits)

    return hint


def _frames_and_sequences(scores: jax.Array, request: Request) -> tuple[Size, Size]:
    first, second, _ = scores.shape
    return (second, first) if request.batch_first else (first, second)


def _form(
    targets: jax.Array | np.ndarray, sequences: Size, batched: bool, names: Names, hint: Callable[[Size], str]
) -> tuple[jax.Array | np.ndarray, Form]:
    shape = tuple(targets.shape)
    if not batched:
        if len(shape) != 1:
            raise ValueError(
                f"{names.targets} must have shape (S,) for one sequence, that is {names.scores} of shape (T, C); "
                f"got {shape}."
            )
        return targets[None], Form.ONE
    if len(shape) == 1:
        return targets, Form.END_TO_END
    if len(shape) != 2 or shape[0] != sequences:
        raise ValueError(
            f"{names.targets} must have shape (N, S) with N = {sequences}, as {names.scores} has, or be "
            f"one-dimensional, all targets end to end; got {shape}." + (hint(shape[0]) if len(shape) == 2 else "")
        )
    return targets, Form.PADDED


def _one(name: str, x: ArrayLike) -> ArrayLike:
    """Return the length of one sequence, which may be a number or an array of one number."""
    shape = np.shape(x)
    if shape not in ((), (1,)):
        raise ValueError(f"{name} must be one number for one sequence; got an array of shape {shape}.")
    return x


def _pad(
    targets: jax.Array | np.ndarray,
    target_lengths: jax.Array | np.ndarray,
    counts: np.ndarray | None,
    bound: int | None,
    frames: Size,
    names: Names,
) -> tuple[Any, Any]:
    """Return end-to-end targets as padded ones, of a width that is known when tracing, and their lengths.

    A target longer than T is infeasible whatever its labels: T + 1 columns tell all there is to know.
    """
    total = targets.shape[0]
    if counts is None:
        width = (frames + 1 if is_at_most(frames + 1, total) else total) if bound is None else smaller(bound, total)
        return _pad_traced(targets, target_lengths, width, exact=bound is not None)
    if int(counts.sum()) != total:
        raise ValueError(
            f"{names.targets} holds {checks.plural(total, 'label')} end to end, but {names.target_lengths} sum to "
            f"{counts.sum()}: the two must be equal. Padded targets must be two-dimensional, of shape (N, S)."
        )
    width = int(counts.max(initial=0)) if bound is None else bound
    slot = np.arange(width)
    index = np.cumsum(counts) - counts
    index = np.minimum(index[:, None] + slot, max(total - 1, 0))
    if total == 0:
        return np.zeros((len(counts), width), np.int32), target_lengths
    return targets[index], target_lengths


@functools.partial(jax.jit, static_argnames=("width", "exact"))
def _pad_traced(
    targets: Integer[Array, " total"], target_lengths: Integer[Array, " N"], width: Size, *, exact: bool
) -> tuple[Int[Array, "N width"], Int[Array, " N"]]:
    """Return padded targets and their lengths, which become -1, an illegal length, if they cannot be the targets'."""
    total = targets.shape[0]
    lengths = wide(target_lengths)
    lengths = jnp.where(in_range(lengths, total), lengths, -1).astype(jnp.int32)
    belongs = (lengths >= 0).all() & (lengths.sum(dtype=jnp.int32) == total)
    index = (jnp.cumsum(lengths, dtype=jnp.int32) - lengths)[:, None] + row_of_indices(width)
    padded = targets.at[index].get(mode="fill", fill_value=0)
    if not exact:
        lengths = jnp.minimum(lengths, width)
    return padded, jnp.where(belongs, lengths, -1)


def _device(x: jax.Array | np.ndarray) -> jax.Array:
    """Return a JAX array of 32 bits, which hold every legal label and length; what they do not hold stays illegal."""
    if isinstance(x, np.ndarray):
        limits = np.iinfo(np.int32)
        return jnp.asarray(np.clip(x, limits.min, limits.max).astype(np.int32))
    return x
