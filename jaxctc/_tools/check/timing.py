"""Time loss and gradient from logits: the implementations in turn with optax and PyTorch, where those are installed."""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import numpy as np

import jaxctc
from jaxctc._types import Implementation


class Shape(NamedTuple):
    """T frames, N sequences, C classes, S labels."""

    T: int
    N: int
    C: int
    S: int


SHAPES = (Shape(50, 16, 20, 30), Shape(500, 16, 32, 100))
FULL_SHAPES = (*SHAPES, Shape(300, 32, 1024, 60), Shape(2000, 4, 64, 400), Shape(1000, 128, 128, 200))
_SECONDS = 2.0
"""How long a shape is measured for each contender, after it has been compiled and called once."""


def milliseconds(shape: Shape, implementations: list[str], *, peers: bool = True) -> dict[str, float]:
    """Return the median time of loss and gradient of every contender, which take turns."""
    T, N, C, S = shape
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((T, N, C)).astype(np.float32)
    targets = rng.integers(1, C, (N, S)).astype(np.int32)
    batch = logits, targets, np.full(N, T, np.int32), np.full(N, S, np.int32)
    ready = {name: _ours(name, *batch) for name in implementations}
    if peers:
        ready |= _peers(*batch)
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for call in ready.values():
        call()
    end = time.perf_counter() + _SECONDS * len(ready)
    while time.perf_counter() < end or min(map(len, taken.values())) < 3:
        for name, call in ready.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def _ours(name: str, *batch: np.ndarray) -> Callable[[], Any]:
    asked = cast(Implementation, name)
    loss = functools.partial(jaxctc.ctc_loss_with_logits, implementation=asked, reduction="sum")
    run, arrays = jax.jit(jax.value_and_grad(loss)), jax.device_put(batch)
    return lambda: jax.block_until_ready(run(*arrays))


def _optax(logits: np.ndarray, targets: np.ndarray, *lengths: np.ndarray) -> Callable[[], Any]:
    import optax

    padding = [
        (np.arange(size) >= n[:, None]).astype(np.float32)
        for size, n in zip((len(logits), targets.shape[1]), lengths, strict=True)
    ]

    def total(logits: jax.Array, *rest: jax.Array) -> jax.Array:
        return optax.ctc_loss(logits, *rest).sum()

    arrays = jax.device_put((logits.swapaxes(0, 1).copy(), padding[0], targets, padding[1]))
    run = jax.jit(jax.value_and_grad(total))
    return lambda: jax.block_until_ready(run(*arrays))


def _peers(*batch: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the calls of other libraries that are installed, by name and, for PyTorch, device."""
    found = {"optax": _optax(*batch)} if importlib.util.find_spec("optax") else {}
    if not importlib.util.find_spec("torch"):
        return found
    import torch

    if not torch.cuda.is_available():
        return {**found, "torch (CPU)": _torch("cpu", *batch)}
    found["torch"] = _torch("cuda", *batch)
    if torch.backends.cudnn.is_available() and batch[1].shape[1] < 256:
        found["torch (cuDNN)"] = _torch("cuda", *batch, cudnn=True)
    return found


def _torch(
    device: str, logits: np.ndarray, targets: np.ndarray, *lengths: np.ndarray, cudnn: bool = False
) -> Callable[[], Any]:
    import torch

    leaf = torch.tensor(logits, device=device, requires_grad=True)
    # PyTorch takes cuDNN's kernel for 32-bit labels end to end on the host, and its own for any others.
    labels = torch.tensor(targets).int().flatten() if cudnn else torch.tensor(targets, device=device).long()
    frames, counts = (torch.tensor(n).int() if cudnn else torch.tensor(n).long() for n in lengths)

    def call() -> None:
        leaf.grad = None
        log_probs = leaf.log_softmax(2)
        torch.nn.functional.ctc_loss(log_probs, labels, frames, counts, reduction="sum").backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return call
