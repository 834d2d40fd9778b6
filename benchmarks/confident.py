"""Compare losses and gradients of confident models, from logits, with PyTorch's in float32 behind a log-softmax.

Run it with JAX_PLATFORMS=cpu python -m benchmarks.confident; it takes some minutes and writes results/confident.md.

In each frame one class of a path that spells the target stands out by a gap, whole or drawn between half and all of it,
over logits that are 0 or noise. Truth is PyTorch in float64, on the logits as each type rounds them: what a rounding in
each frame makes of that is not known to it. And jaxctc counts posteriors below 2^-42 as 0. Errors that are no larger
are no defeat.
"""

import itertools
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from confident_models import by_torch, ours, peaked

OUTPUT = Path(__file__).parent / "results" / "confident.md"
GAPS = (5, 7, 8, 9, 10, 11, 12, 15, 20, 30, 45, 60)
NOISES = {"no noise": 0.0, "noise 0.3": 0.3, "noise 1": 1.0, "noise 1, uneven": 1.0}
OFFSETS = (0, 100, 1e3, -1e3, 1e4, -1e4)
DTYPES = ("float32", "bfloat16", "float16")
SEEDS = 3
T, N, C, S = 500, 4, 32, 100


def errors(gap: float, noise: str, dtype: str) -> list[float]:
    """Return a loss, and the root mean square errors: losses of jaxctc and PyTorch, then gradients of both."""
    squares, size = np.zeros(4), 0.0
    for seed, offset in itertools.product(range(SEEDS), OFFSETS):
        logits, targets = peaked(gap, NOISES[noise], N, seed, T, C, S, uneven="uneven" in noise)
        rounded = jnp.asarray(logits + offset, dtype)
        truth = by_torch(rounded, targets, torch.float64)
        loss, gradient = by_torch(rounded, targets, torch.float32)
        # As ours has the type of the logits.
        results = ours(rounded, targets), (loss, jnp.asarray(gradient, dtype))
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
