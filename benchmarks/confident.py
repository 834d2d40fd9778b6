"""Compare losses and gradients of confident models, from logits, with PyTorch's in float32 behind a log-softmax.

Run it with JAX_PLATFORMS=cpu python -m benchmarks.confident; it takes some minutes and writes results/confident.md.

In each frame one class of a path that spells the target stands out by a gap, whole or drawn between half and all of it,
over logits that are 0 or noise. Truth is PyTorch in float64, on the logits as each type rounds them: what a rounding in
each frame makes of that is not known to it. And jaxctc counts posteriors below 2^-42 as 0. Errors that are no larger
are no defeat.
"""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxctc

OUTPUT = Path(__file__).parent / "results" / "confident.md"
GAPS = (5, 7, 8, 9, 10, 11, 12, 15, 20, 30, 45, 60)
NOISES = ("no noise", "noise 0.3", "noise 1", "noise 1, uneven")
OFFSETS = (0, 100, 1e3, -1e3, 1e4, -1e4)
DTYPES = ("float32", "bfloat16", "float16")
SEEDS = 3
T, N, C, S = 500, 4, 32, 100


def logits_and_targets(gap: float, noise: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (T, N, C) in which the path of each target stands out, and the targets (N, S)."""
    rng = np.random.default_rng(seed)
    strength = {"no noise": 0.0, "noise 0.3": 0.3}.get(noise, 1.0)
    logits, targets = strength * rng.normal(size=(T, N, C)), rng.integers(1, C, (N, S))
    for n in range(N):
        path = np.zeros(T, int)
        path[np.sort(rng.choice(T // 2, S, replace=False)) * 2] = targets[n]
        logits[np.arange(T), n, path] += gap * (rng.uniform(0.5, 1, T) if "uneven" in noise else 1)
    return logits, targets


@functools.partial(jax.jit, static_argnames="dtype")
def ours(logits: jax.Array, targets: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Return losses, and their gradient in the type of the logits."""

    def losses(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = jaxctc.ctc_loss_with_logits(x, targets, T, S, reduction="none")
        return loss.sum(), loss

    gradient, loss = jax.grad(losses, has_aux=True)(logits.astype(dtype))
    return loss, gradient.astype(jnp.float32)


def by_torch(logits: np.ndarray, targets: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return losses and gradient."""
    scores = torch.tensor(logits, dtype=dtype, requires_grad=True)
    lengths = torch.full((N,), T), torch.full((N,), S)
    loss = torch.nn.functional.ctc_loss(scores.log_softmax(2), torch.tensor(targets), *lengths, reduction="none")
    loss.sum().backward()
    assert scores.grad is not None
    return loss.detach().double().numpy(), scores.grad.double().numpy()


def errors(gap: float, noise: str, dtype: str) -> list[float]:
    """Return a loss, and the root mean square errors: losses of jaxctc and PyTorch, then gradients of both."""
    squares, size = np.zeros(4), 0.0
    for seed, offset in itertools.product(range(SEEDS), OFFSETS):
        logits, targets = logits_and_targets(gap, noise, seed)
        rounded = np.asarray(jnp.asarray(logits + offset, dtype).astype(jnp.float32))
        truth = by_torch(rounded, targets, torch.float64)
        loss, gradient = by_torch(rounded, targets, torch.float32)
        # As ours has the type of the logits.
        results = ours(rounded, targets, dtype), (loss, jnp.asarray(gradient, dtype).astype(jnp.float32))
        squares += [((np.asarray(x[k], np.float64) - truth[k]) ** 2).mean() for k in range(2) for x in results]
        size += truth[0].mean() / (SEEDS * len(OFFSETS))
    return [size, *np.sqrt(squares / (SEEDS * len(OFFSETS)))]


def main() -> None:
    """Measure, print and write."""
    lines = [
        "| gap | | type | mean loss | loss: jaxctc | PyTorch | gradient: jaxctc | PyTorch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    behind = []
    for gap, noise, dtype in itertools.product(GAPS, NOISES, DTYPES):
        found = errors(gap, noise, dtype)
        lines.append(f"| {gap} | {noise} | {dtype} | " + " | ".join(f"{x:.2g}" for x in found) + " |")
        if found[1] > max(found[2], T * 2.0**-53) or found[3] > max(found[4], 2.0**-42):
            behind.append(f"gap {gap}, {noise}, {dtype}")
        print(lines[-1], flush=True)
    said = f"jaxctc is behind in {len(behind)} of {len(lines) - 2} rows" + (": " if behind else "") + "; ".join(behind)
    print(said)
    title = f"Root mean square errors over {SEEDS} seeds and offsets of {', '.join(f'{x:g}' for x in OFFSETS)}."
    OUTPUT.write_text("\n".join([title, "", *lines, "", f"{said}.", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
