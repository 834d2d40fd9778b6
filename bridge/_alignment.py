"""Provide the alignment, the posteriors and the decoding of `jaxctc` for tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridge import _autograd, _programs
from bridge._arguments import Call, Lengths, canonical
from bridge._batch import Batch, Spec
from jaxctc._api.alignment import TokenSpan, check_feasible, merge_tokens
from jaxctc._api.beam_search import ScoreFunction
from jaxctc._api.decoding import check_score_function
from jaxctc._inputs import checks


class Alignment(NamedTuple):
    """Hold the best path of each target, frame by frame."""

    labels: Tensor
    """(N, T): the class of each frame, blanks included; the blank beyond a sequence's length; -1 without a path."""
    scores: Tensor
    """(N, T): the log probability of that class at that frame; 0 beyond a sequence's length."""


class Posteriors(NamedTuple):
    """Hold probabilities given the target; both sum to one over the last axis in every frame of a sequence."""

    states: Tensor
    """(T, N, 2 S + 1): the states in order: blank 0, label 0, blank 1, and so on."""
    classes: Tensor
    """(T, N, C): the classes."""


class Decoded(NamedTuple):
    """Hold what the best path of each sequence spells."""

    labels: Tensor
    """(N, T): the labels, and -1 after the last one."""
    lengths: Tensor
    """(N,): the number of labels."""
    log_probs: Tensor
    """(N,): the log probability of the path."""


class Beams(NamedTuple):
    """Hold the best labellings of each sequence, the most probable first."""

    labels: Tensor
    """(N, K, T): the labels, and -1 after the last one."""
    lengths: Tensor
    """(N, K): the number of labels."""
    log_probs: Tensor
    """(N, K): the log probability; -inf in places that are not used, because there are fewer than K labellings."""


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    *,
    batch_first: bool = False,
) -> Alignment:
    """Return the most probable path that spells each target, as `jaxctc.forced_align` does.

    `torchaudio.functional.forced_align` takes one sequence, as (1, T, C): pass ``batch_first=True`` for that layout.

    Args:
        log_probs: (T, N, C), or (T, C) for one sequence; on the CPU or a CUDA device. The result has no derivative.
        targets: (N, S), padded with anything, or end to end; of any integer type. One sequence: (S,) or (1, S).
        input_lengths: Frames of each sequence: a tensor, an array, a sequence of ints, or one int.
        target_lengths: Labels of each target; the same forms.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        `Alignment`: labels, (N, T), int32 if the targets are, else int64; scores, (N, T), of the dtype of
        `log_probs`; (T,) for one sequence. `jaxctc.merge_tokens` takes both, on the CPU, and returns the spans.

    Raises:
        RuntimeError: A shape, a length, a label or `blank` is illegal, or a target needs more frames than there are.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument is of the wrong type.

    Example:
        >>> import torch, bridge
        >>> log_probs = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]).log()
        >>> bridge.forced_align(log_probs, torch.tensor([1, 2]), 4, 2).labels.tolist()
        [0, 1, 1, 2]

    Reference:
        See `jaxctc.forced_align`.
    """
    call = _canonical(log_probs, targets, input_lengths, target_lengths, blank, batch_first)
    batch = Batch(*call.tensors, call.spec)
    if isinstance(batch.labels, np.ndarray):
        frames, counts = batch.lengths[: batch.sequences].T
        try:
            check_feasible(batch.labels[: batch.sequences], frames, counts, call.batched)
        except ValueError as error:
            raise RuntimeError(str(error)) from None
    labels, scores = _programs.aligned(batch, call.scores.detach())
    labels = labels if call.targets.dtype == torch.int32 else labels.long()
    return Alignment(labels, scores) if call.batched else Alignment(labels[0], scores[0])


def ctc_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    *,
    batch_first: bool = False,
) -> Posteriors:
    """Return the probability of each state and of each class at each frame, given the target.

    Args:
        log_probs: (T, N, C), or (T, C) for one sequence; on the CPU or a CUDA device. Differentiable once.
        targets: (N, S), padded with anything, or end to end; of any integer type. One sequence: (S,) or (1, S).
        input_lengths: Frames of each sequence: a tensor, an array, a sequence of ints, or one int.
        target_lengths: Labels of each target; the same forms.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C), and frames and sequences of the results have this order too.

    Returns:
        `Posteriors`: states, (T, N, 2 S + 1), and classes, (T, N, C), float64 for float64 and float32 otherwise; S is
        the longest target's length if targets are end to end. For one sequence the axis N is missing.

    Raises:
        RuntimeError: A shape, a length, a label or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument is of the wrong type.

    Example:
        >>> import torch, bridge
        >>> log_probs = torch.zeros(2, 3).log_softmax(1)
        >>> states, classes = bridge.ctc_posteriors(log_probs, torch.tensor([1]), 2, 1)
        >>> [round(p, 3) for p in states[0].tolist()]  # three paths: blank 1, 1 1, 1 blank
        [0.333, 0.667, 0.0]

    Reference:
        See `jaxctc.ctc_posteriors`.
    """
    call = _canonical(log_probs, targets, input_lengths, target_lengths, blank, batch_first)
    slots = call.targets.shape[1] if call.targets.ndim == 2 else int(call.target_lengths.max())
    made = Posteriors(*_autograd.posteriors(call.tensors, call.spec, slots))
    if call.transposed:
        made = Posteriors(*(x.transpose(0, 1) for x in made))
    return made if call.batched else Posteriors(*(x.squeeze(0 if batch_first else 1) for x in made))


def greedy_decode(log_probs: Tensor, input_lengths: Lengths, blank: int = 0, *, batch_first: bool = False) -> Decoded:
    """Return the labels of the best path, with repeats merged and blanks removed, as `jaxctc.greedy_decode` does.

    Args:
        log_probs: (T, N, C), or (T, C) for one sequence, normalized or not; on the CPU or a CUDA device.
        input_lengths: Frames of each sequence: a tensor, an array, a sequence of ints, or one int.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        `Decoded`: labels, (N, T) and int64, -1 after the last; lengths, (N,) and int64; and the paths' log
        probabilities, (N,). One sequence gives (T,), () and ().

    Raises:
        RuntimeError: A shape, a length or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument is of the wrong type.

    Example:
        >>> import torch, bridge
        >>> path = torch.tensor([0, 1, 1, 0, 1, 2])  # 0 is the blank
        >>> decoded = bridge.greedy_decode(torch.nn.functional.one_hot(path, 3).float().log(), 6)
        >>> decoded.labels[: decoded.lengths].tolist()
        [1, 1, 2]

    Reference:
        Graves et al., ICML 2006: section 3.2, best path decoding.
    """
    call = _without_targets(log_probs, input_lengths, blank, batch_first)
    found = _best_paths(_batch(call), call.scores.detach(), blank)
    return found if call.batched else Decoded(*(x[0] for x in found))


def _best_paths(batch: Batch, scores: Tensor, blank: int) -> Decoded:
    """Return what the best paths spell. PyTorch computes it: JAX would be given a padded copy of all scores."""
    top, best = scores.max(dim=2)
    if not batch.request.batch_first:
        top, best = top.T, best.T
    frame_mask = batch.frame_mask().T.to(best.device, non_blocking=True)
    before = torch.cat([torch.full_like(best[:, :1], -1), best[:, :-1]], dim=1)
    is_label = frame_mask & (best != blank) & (best != before)
    # All other frames write to a slot of their own, which is cut off.
    slot = torch.where(is_label, is_label.cumsum(1) - 1, batch.frames)
    labels = best.new_full((batch.sequences, batch.frames + 1), -1).scatter_(1, slot, best)[:, :-1]
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return Decoded(labels, is_label.sum(1), torch.where(frame_mask, top.to(dtype), 0).sum(1))


def beam_search_decode(
    log_probs: Tensor,
    input_lengths: Lengths,
    blank: int = 0,
    *,
    beam_width: int = 16,
    score_function: ScoreFunction | None = None,
    batch_first: bool = False,
) -> Beams:
    """Return the most probable labellings, by prefix beam search, as `jaxctc.beam_search_decode` does.

    Args:
        log_probs: (T, N, C), or (T, C) for one sequence; on the CPU or a CUDA device.
        input_lengths: Frames of each sequence: a tensor, an array, a sequence of ints, or one int.
        blank: Index of the blank class.
        beam_width: The number of prefixes to keep, K, at least 1.
        score_function: Additional scores, as for `jaxctc.beam_search_decode`: a function of JAX arrays, not of tensors,
            for JAX compiles it. The labels that it gets are (K, T'), where T' is T padded to a size: see `set_sizes`.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        `Beams`: labels, (N, K, T) and int64, -1 after the last; lengths, (N, K) and int64; and log probabilities,
        (N, K), best first. One sequence gives (K, T), (K,) and (K,).

    Raises:
        RuntimeError: A shape, a length or `blank` is illegal; or JAX lacks the tensor's device.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument, or the result of `score_function`, is of the wrong type.
        ValueError: `beam_width` is below 1, or `score_function` returns a wrong shape.

    Example:
        >>> import torch, bridge
        >>> log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()  # 0 is the blank
        >>> beams = bridge.beam_search_decode(log_probs, 2, beam_width=3)
        >>> beams.labels[0, : beams.lengths[0]].tolist(), round(beams.log_probs[0].exp().item(), 2)
        ([1], 0.64)

    Reference:
        See `jaxctc.beam_search_decode`.
    """
    call = _without_targets(log_probs, input_lengths, blank, batch_first)
    width = checks.integer("beam_width", beam_width, "the number of prefixes to keep")
    check_score_function(score_function)
    labels, lengths, values = _programs.beams(_batch(call), call.scores.detach(), width, score_function)
    found = Beams(labels.long(), lengths.long(), values)
    return found if call.batched else Beams(*(x[0] for x in found))


def decoded_spans(
    log_probs: Tensor,
    decoded: Decoded | Beams,
    input_lengths: Lengths,
    blank: int = 0,
    *,
    batch_first: bool = False,
) -> list[TokenSpan] | list[list[TokenSpan]]:
    """Return the frames of decoded labels: the spans on the best of all paths that spell them.

    Args:
        log_probs: The log probabilities that were decoded, (T, N, C), or (T, C) for one sequence.
        decoded: What `greedy_decode` or `beam_search_decode` returned for them. Of several labellings of a beam the
            first is taken, which is the most probable one.
        input_lengths: Frames of each sequence: a tensor, an array, a sequence of ints, or one int.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).

    Returns:
        A list of `jaxctc.TokenSpan` for each sequence, in the order of time; for one sequence its list alone.

    Raises:
        RuntimeError: A shape, a length or `blank` is illegal, or the labels do not belong to these scores.
        NotImplementedError: `log_probs` is not of a floating-point type.
        TypeError: An argument is of the wrong type.

    Example:
        >>> import torch, bridge
        >>> path = torch.tensor([0, 1, 1, 0, 1, 2])  # 0 is the blank
        >>> log_probs = (9.0 * torch.nn.functional.one_hot(path, 3)).log_softmax(1)
        >>> decoded = bridge.greedy_decode(log_probs, 6)
        >>> [(span.token, span.start, span.end) for span in bridge.decoded_spans(log_probs, decoded, 6)]
        [(1, 1, 3), (1, 4, 5), (2, 5, 6)]

    Reference:
        See `jaxctc.decoded_spans`.
    """
    if not isinstance(decoded, Decoded | Beams):
        raise TypeError(
            "decoded must be what bridge.greedy_decode or bridge.beam_search_decode returns; got "
            f"{type(decoded).__module__.split('.')[0]}.{type(decoded).__name__}."
        )
    labels, lengths = decoded.labels, decoded.lengths
    if isinstance(decoded, Beams):
        labels, lengths = labels[..., 0, :], lengths[..., 0]
    # No wider than it has to be, which the alignment pays for.
    width = max(int(lengths.max()), 1) if lengths.numel() else 1
    found = forced_align(log_probs, labels[..., :width], input_lengths, lengths, blank, batch_first=batch_first)
    return merge_tokens(*found, blank)


def _canonical(
    log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, blank: int, batch_first: bool
) -> Call:
    spec = Spec(blank, from_logits=False, batch_first=batch_first, normalized=False)
    return canonical(log_probs, targets, input_lengths, target_lengths, spec)


def _without_targets(log_probs: Tensor, input_lengths: Lengths, blank: int, batch_first: bool) -> Call:
    sequences = log_probs.shape[0 if batch_first else 1] if getattr(log_probs, "ndim", 0) == 3 else 1
    no_labels = torch.zeros((sequences, 0), dtype=torch.int64, device="cpu")
    return _canonical(log_probs, no_labels, input_lengths, 0, blank, batch_first)


def _batch(call: Call) -> Batch:
    return Batch(*call.tensors, call.spec, may_be_compact=False)
