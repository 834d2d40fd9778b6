"""Logits of confident models, and what this library and PyTorch make of them: for tests, and `benchmarks.confident`."""

import functools

import jax
import numpy as np
import torch

import jaxctc


def peaked(gap, noise, rows, seed=0, frames=200, classes=20, labels=40, *, uneven=False):
    """Logits (T, N, C) in which the path of each target stands out by so much, or by half to all of it; and targets."""
    random = np.random.default_rng(seed)
    logits = noise * random.normal(size=(frames, rows, classes))
    targets = random.integers(1, classes, (rows, labels))
    for n in range(rows):
        path = np.zeros(frames, int)
        path[np.sort(random.choice(frames // 2, labels, replace=False)) * 2] = targets[n]
        logits[np.arange(frames), n, path] += gap * (random.uniform(0.5, 1, frames) if uneven else 1)
    return logits, targets


def by_torch(logits, targets, dtype):
    """The losses and their gradient, of logits of any type."""
    scores = torch.tensor(np.asarray(logits, np.float64)).to(dtype).requires_grad_()
    frames, rows, _ = scores.shape
    lengths = torch.full((rows,), frames), torch.full((rows,), targets.shape[1])
    loss = torch.nn.functional.ctc_loss(scores.log_softmax(2), torch.tensor(targets), *lengths, reduction="none")
    loss.sum().backward()
    return loss.detach().numpy().astype(np.float64), scores.grad.numpy().astype(np.float64)


@functools.partial(jax.jit, static_argnames=("function", "implementation"))
def ours(logits, targets, function=jaxctc.ctc_loss_with_logits, implementation=None):
    lengths = logits.shape[0], targets.shape[1]

    def total(logits):
        loss = function(logits, targets, *lengths, reduction="none", implementation=implementation)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(logits)
    return loss, gradient
