"""What the library is judged against. Nothing here is shared with it."""

import functools
import itertools
from typing import Any

import numpy as np


def spells(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Merges repeats, then drops blanks."""
    return tuple(k for k, _ in itertools.groupby(path) if k != blank)


@functools.cache
def paths_by_target(frames: int, classes: int, blank: int) -> dict[tuple[int, ...], np.ndarray]:
    """Every path there is, (paths, T), under the target that it spells."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for path in itertools.product(range(classes), repeat=frames):
        found.setdefault(spells(path, blank), []).append(path)
    return {target: np.array(paths, int) for target, paths in found.items()}


def enumerate_paths(log_probs: np.ndarray, target: tuple[int, ...], blank: int) -> tuple[float, np.ndarray]:
    """The loss of one sequence, (T, C), and the posterior of each class at each frame, by every path there is."""
    posterior = np.zeros_like(log_probs, dtype=np.float64)
    paths = paths_by_target(*log_probs.shape, blank).get(target)
    if paths is None:
        return np.inf, posterior
    frames = np.arange(len(log_probs))
    scores = np.asarray(log_probs, np.float64)[frames, paths].sum(axis=1)
    if scores.max() == -np.inf:
        return np.inf, posterior
    weights = np.exp(scores - scores.max())
    np.add.at(posterior, (frames, paths), (weights / weights.sum())[:, None])
    return -(scores.max() + np.log(weights.sum())), posterior


def states_of(path: np.ndarray, blank: int) -> list[int]:
    """The states of a path: 2 s for the blank after s labels, 2 s + 1 for label s."""
    states, before = [], blank
    labels = 0
    for k in path:
        labels += k not in (blank, before)
        states.append(2 * labels if k == blank else 2 * labels - 1)
        before = k
    return states


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def torch_float64(
    log_probs: np.ndarray, targets: Any, input_lengths: Any, target_lengths: Any, blank: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (N,) and posteriors (T, N, C) by PyTorch in double; its gradient is exp(log_probs) minus those."""
    import torch

    leaf = torch.tensor(np.asarray(log_probs, np.float64), requires_grad=True)
    arguments = [torch.as_tensor(np.array(x)) for x in (targets, input_lengths, target_lengths)]
    loss = torch.nn.functional.ctc_loss(leaf, *arguments, blank=blank, reduction="none")
    loss.sum().backward()
    live = np.arange(leaf.shape[0])[:, None] < np.asarray(input_lengths)[None]
    posterior = np.where(live[:, :, None], leaf.detach().exp().numpy() - leaf.grad.numpy(), 0)
    return loss.detach().numpy(), posterior
