"""Convert the caller's arguments to one batch in canonical form, or raise the exception that PyTorch raises."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bridge._batch import Spec, Tensors
from bridge._eager import plain
from jaxctc._inputs import advice, checks

Lengths: TypeAlias = Tensor | np.ndarray | Sequence[Any] | int
"""The types of lengths: those that PyTorch takes, numpy arrays, and single numbers."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class Call(NamedTuple):
    """Hold a call whose arguments are checked and converted. Shapes as in `_batch`."""

    scores: Tensor
    targets: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    spec: Spec
    """`batch_first` is that of `scores` here: a transposed view is taken as it lies in memory rather than copied."""
    batched: bool
    transposed: bool
    """Frames and sequences are swapped with respect to the caller's scores."""

    @property
    def tensors(self) -> Tensors:
        return self.scores, self.targets, self.input_lengths, self.target_lengths


def canonical(scores: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, spec: Spec) -> Call:
    """Check the arguments and convert them to one form."""
    checks.flag("normalized", spec.normalized)
    batch_first, name = checks.flag("batch_first", spec.batch_first), spec.scores_name
    checks.implementation(spec.implementation)
    _check_scores(name, scores, batch_first)
    try:
        blank = checks.blank(spec.blank, scores.shape[-1])
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    targets = _labels(targets)
    lengths = (_lengths("input_lengths", input_lengths), _lengths("target_lengths", target_lengths))

    batched = scores.ndim == 3
    if not batched:
        scores, targets = scores.unsqueeze(0 if batch_first else 1), _one_target(name, targets)
    sequences = scores.shape[0 if batch_first else 1]
    _check_shapes(name, targets, lengths, scores.shape[:2], batch_first)
    input_lengths, target_lengths = (x if x.ndim == 1 else x.reshape(-1).expand(sequences) for x in lengths)

    transposed = not scores.is_contiguous() and scores.transpose(0, 1).is_contiguous()
    if transposed:
        scores, batch_first = scores.transpose(0, 1), not batch_first
    spec = Spec(blank, spec.from_logits, batch_first, spec.normalized, spec.implementation)
    return Call(scores, targets, input_lengths, target_lengths, spec, batched, transposed)


def _check_scores(name: str, scores: Any, batch_first: bool) -> None:
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(scores).__name__}. Convert it with torch.as_tensor({name})."
        )
    if scores.dtype not in _FLOATS:
        raise NotImplementedError(
            f"{name} must be of a floating-point type ({', '.join(str(x)[6:] for x in _FLOATS)}), got {scores.dtype}. "
            f"Convert it with {name}.float()."
        )
    if scores.layout != torch.strided or scores.is_nested:
        raise NotImplementedError(
            f"{name} must be a dense tensor, got {'a nested one' if scores.is_nested else scores.layout}. Convert it "
            f"with {name}.to_{'padded_tensor(0)' if scores.is_nested else 'dense()'}."
        )
    if scores.ndim not in (2, 3):
        order = "(N, T, C)" if batch_first else "(T, N, C)"
        raise RuntimeError(f"{name} must have shape {order}, or (T, C) for one sequence; got {tuple(scores.shape)}.")
    if scores.numel() == 0:
        raise RuntimeError(
            f"{name} must not be empty, got shape {tuple(scores.shape)}: at least one frame, one sequence and one "
            "class."
        )


def _labels(targets: Any) -> Tensor:
    targets = _tensor("targets", targets, "the labels, padded to (N, S) or end to end")
    if targets.dtype == torch.bool or targets.is_complex():
        raise TypeError(
            f"targets must hold the indices of labels, in an integer type; got {targets.dtype}. "
            "For labels that are one-hot pass targets.long().argmax(dim=-1)."
        )
    if not targets.is_floating_point():
        return targets
    converted = targets.long()
    if not torch.equal(converted.double(), targets.double()):
        raise RuntimeError(
            f"targets is of type {targets.dtype} and holds values that are no whole numbers, such as "
            f"{targets.double()[converted.double() != targets.double()][0]:.6g}: labels are indices of classes."
        )
    return converted


def _lengths(name: str, lengths: Any) -> Tensor:
    lengths = _tensor(name, lengths, "lengths, one for each sequence")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        if lengths.numel() == 0:
            return lengths.long()
        axis = "T" if name == "input_lengths" else "S"
        raise RuntimeError(
            f"{name} must be integral, got {lengths.dtype}. "
            + advice.convert_lengths(name, _host_values(lengths), axis, advice.TORCH)
        )
    if lengths.dtype in _UNSIGNED:  # PyTorch does not calculate with them
        lengths = lengths.long()
        return torch.where(lengths < 0, torch.iinfo(torch.int64).max, lengths)
    return lengths


def _host_values(x: Tensor) -> np.ndarray | None:
    """Return the values of a CPU tensor; None where reading them would mean waiting, or is not possible."""
    if x.device.type != "cpu" or not plain((x,)):
        return None
    return checks.numbers(x.double() if x.is_floating_point() else x)


def _tensor(name: str, x: Any, what: str) -> Tensor:
    """Return a caller's numbers as a tensor: those that are no tensor yet on the CPU, whatever the default device."""
    if isinstance(x, Tensor):
        return x.resolve_neg()
    try:
        if isinstance(x, Sequence) and any(isinstance(item, Tensor) for item in x):
            device = next(item.device for item in x if isinstance(item, Tensor))
            return torch.stack(
                [item.reshape(()) if isinstance(item, Tensor) else torch.as_tensor(item, device=device) for item in x]
            )
        # A copy: PyTorch takes no array that is read-only, reversed, or of another byte order.
        return torch.as_tensor(np.array(checks.numbers(x)) if _holds_arrays(x) else x, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_not_a_tensor(name, x, what, error)) from None


def _holds_arrays(x: Any) -> bool:
    return hasattr(x, "__array__") or (isinstance(x, Sequence) and any(hasattr(item, "__array__") for item in x))


def _not_a_tensor(name: str, x: Any, what: str, error: Exception) -> str:
    """Return the message on something that does not become a tensor of integers."""
    message = f"{name} must be a tensor of integers, got {type(x).__name__}"
    if x is None or isinstance(x, dict | set):
        return f"{message}. Pass {what}."
    items = list(x.flat) if isinstance(x, np.ndarray) else list(x) if isinstance(x, Sequence) else []
    if isinstance(x, str | bytes) or any(isinstance(item, str | bytes) for item in items):
        return f"{message} {x!r:.40}. Pass {what}: texts must be encoded first, as indices of classes."
    if not any(isinstance(item, Sequence) or getattr(item, "ndim", 0) for item in items):
        return f"{message} ({error})."
    if name != "targets":
        return f"{message} of {len(items)} sequences. Pass {what}."
    rows = name if all(isinstance(item, Tensor) for item in items) else f"[torch.as_tensor(row) for row in {name}]"
    return (
        f"{message} of {len(items)} sequences. Join them end to end with torch.cat({rows}), or pad them with "
        f"torch.nn.utils.rnn.pad_sequence({rows}, batch_first=True)."
    )


def _one_target(name: str, targets: Tensor) -> Tensor:
    """Check the target of one sequence. (S,) counts as end to end, without padding, as in PyTorch."""
    if not (targets.ndim == 1 or (targets.ndim == 2 and targets.shape[0] == 1)):
        raise RuntimeError(
            f"targets must have shape (S,) or (1, S) for one sequence, that is {name} of shape (T, C); got "
            f"{tuple(targets.shape)}."
        )
    return targets


def _check_shapes(
    name: str, targets: Tensor, lengths: tuple[Tensor, Tensor], sizes: torch.Size, batch_first: bool
) -> None:
    frames, sequences = reversed(sizes) if batch_first else sizes

    def hint(size: int) -> str:
        return advice.order_of_axes(name, batch_first, sequences != frames == size)

    if targets.ndim not in (1, 2) or (targets.ndim == 2 and targets.shape[0] != sequences):
        raise RuntimeError(
            f"targets must have shape (N, S) with N = {sequences}, as {name} has, or be one-dimensional, all "
            f"targets end to end; got {tuple(targets.shape)}." + (hint(targets.shape[0]) if targets.ndim == 2 else "")
        )
    for which, length in zip(("input_lengths", "target_lengths"), lengths, strict=True):
        if tuple(length.shape) not in ((), (sequences,), (sequences, 1)):
            raise RuntimeError(
                f"{which} has shape {tuple(length.shape)}, but there {'is' if sequences == 1 else 'are'} N = "
                f"{checks.plural(sequences, 'sequence')}: it must have shape ({sequences},), or be one number that "
                "serves all."
                + advice.reduce_lengths(which, _host_values(length), advice.TORCH)
                + (hint(length.shape[0]) if length.ndim == 1 else "")
            )
