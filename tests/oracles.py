"""What the library is judged against. Nothing here is shared with it."""

import itertools
from typing import Any

import numpy as np


def spells(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Merges repeats, then drops blanks."""
    return tuple(k for k, _ in itertools.groupby(path) if k != blank)


def enumerate_paths(log_probs: np.ndarray, target: tuple[int, ...], blank: int) -> tuple[float, np.ndarray]:
    """The loss of one sequence, (T, C), and the posterior of each class at each frame, by every path there is."""
    frames, classes = log_probs.shape
    scores, paths = [], []
    for path in itertools.product(range(classes), repeat=frames):
        if spells(path, blank) == target:
            paths.append(path)
            scores.append(sum(log_probs[t, k] for t, k in enumerate(path)))
    scores = np.array(scores, np.float64)
    posterior = np.zeros_like(log_probs, dtype=np.float64)
    if not paths or scores.max() == -np.inf:
        return np.inf, posterior
    weights = np.exp(scores - scores.max())
    for path, weight in zip(paths, weights / weights.sum(), strict=True):
        posterior[np.arange(frames), list(path)] += weight
    return -(scores.max() + np.log(weights.sum())), posterior


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
