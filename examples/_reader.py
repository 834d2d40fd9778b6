"""A reader of handwritten lines, and how it learns: what handwritten_lines.py and distributed.py train."""

import jax
import numpy as np
import optax
from _lines import BLANK, CLASSES, HEIGHT, SUBSAMPLING, Lines

import jaxctc

BATCH = 32


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Weights, scaled to keep the variance of what passes through (He et al., 2015)."""
    shapes = {
        "stroke": (3, 3, 1, 16),
        "shape": (3, 3, 16, 32),
        "column": (HEIGHT // SUBSAMPLING, 3, 32, 96),
        "context": (1, 5, 96, 96),
        "class": (1, 1, 96, CLASSES),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) * (2 / np.prod(shape[:3])) ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def read(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Logits (N, T, C) of images (N, HEIGHT, WIDTH)."""
    x = jax.nn.relu(convolve(images[..., None], weights["stroke"]))
    x = jax.nn.relu(convolve(x, weights["shape"], SUBSAMPLING))
    x = jax.nn.relu(convolve(x, weights["column"], padding=((0, 0), (1, 1))))
    x = x + jax.nn.relu(convolve(x, weights["context"]))
    return convolve(x, weights["class"])[:, 0]


def loss(weights: dict[str, jax.Array], lines: Lines) -> jax.Array:
    images, widths, targets, target_lengths = lines
    return jaxctc.ctc_loss_with_logits(
        read(weights, images), targets, -(-widths // SUBSAMPLING), target_lengths, blank=BLANK, batch_first=True
    )


def optimizer_for(steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.warmup_cosine_decay_schedule(0, 4e-3, steps // 10, steps))


def descend(optimizer: optax.GradientTransformation, weights, state, lines: Lines):
    """One step: the new weights, the optimizer's new state, and the loss of the old weights."""
    value, gradient = jax.value_and_grad(loss)(weights, lines)
    updates, state = optimizer.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, value
