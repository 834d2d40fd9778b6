"""Trains a reader of handwritten lines with `jaxctc.ctc_loss_with_logits`, and draws what it has learnt.

A small convolutional network looks at a line of digits and gives, for each pair of image columns, a
score to every digit and to the blank. It is never told where a digit stands: the loss finds that out.
"""

import argparse
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _errors import Errors, spell
from _lines import BLANK, CLASSES, HEIGHT, SUBSAMPLING, Lines, best_path, compose, label_errors, load_scans
from tqdm import tqdm

import jaxctc

BATCH = 32
INK, PAPER, QUIET, ACCENT = "#1b1f3b", "#ffffff", "#8a8fa3", "#d1495b"
COLOURS = ["#2f6db5", "#e07b00", "#2a9d4e", "#c8323c", "#7a4fb5", "#8c5a3c", "#d14fa0", "#0f8b8d", "#8a8a00", "#3f3f9e"]


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


def train(steps: int, seed: int) -> tuple[dict[str, jax.Array], list[float], list[tuple[int, Errors]], Lines]:
    """Weights, the loss of every step, the held-out errors on the way, and the held-out lines."""
    training, held_out = load_scans(seed)
    rng = np.random.default_rng(seed)
    test = compose(held_out, 300, rng)
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 4e-3, steps // 10, steps))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights, state, lines):
        value, gradient = jax.value_and_grad(loss)(weights, lines)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    scores = jax.jit(read)
    weights = init(jax.random.key(seed))
    state = optimizer.init(weights)
    losses, errors = [], []
    with tqdm(total=steps, unit="step", file=sys.stdout, mininterval=0.5) as bar:
        for i in range(steps):
            weights, state, value = step(weights, state, compose(training, BATCH, rng))
            losses.append(float(value))
            if (i + 1) % max(steps // 10, 1) == 0:
                errors.append((i + 1, label_errors(np.asarray(scores(weights, test.images)), test)))
            rate = f"{errors[-1][1].rate:.1%}" if errors else "?"
            bar.set_postfix_str(f"loss {losses[-1]:.3f}, held-out label error rate {rate}", refresh=False)
            bar.update()
    return weights, losses, errors, test


def show_reading(scores: np.ndarray, lines: Lines, count: int) -> None:
    """Prints the first lines as they are, and as they were read."""
    print(f"\n{'truth':<12}read")
    for n in range(count):
        truth = lines.targets[n, : lines.target_lengths[n]].tolist()
        found = best_path(scores[n], lines.input_lengths[n])
        print(f"{spell(truth):<12}{spell(found)}{'' if truth == found else '   <- differs'}")


def posterior(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(T, C): the probability of each class at each frame, given the target. It is minus the gradient."""
    log_probs = jax.nn.log_softmax(jnp.asarray(logits))
    gradient = jax.grad(jaxctc.ctc_loss)(log_probs, target, len(logits), len(target), blank=BLANK, reduction="sum")
    return -np.asarray(gradient)


def draw(path: Path, losses: list[float], errors: list[tuple[int, Errors]], scores: np.ndarray, lines: Lines) -> None:
    """The loss curve; and one line, with the posterior of its labels over time beneath it."""
    n = int(np.argmax(lines.target_lengths))
    frames, target = lines.input_lengths[n], lines.targets[n, : lines.target_lengths[n]]
    gamma = posterior(scores[n, :frames], target)

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.edgecolor": QUIET})
    plt.rcParams.update({"axes.labelcolor": INK, "xtick.color": QUIET, "ytick.color": QUIET})
    figure, (top, image, bottom) = plt.subplots(
        3, 1, figsize=(9, 7), gridspec_kw={"height_ratios": [2.6, 1.15, 1.5], "hspace": 0.08}, layout="constrained"
    )
    for axes in (top, image, bottom):
        axes.spines[["top", "right"]].set_visible(False)

    steps = np.arange(1, len(losses) + 1)
    top.semilogy(steps, losses, color=QUIET, linewidth=0.7, alpha=0.6)
    window = max(len(losses) // 40, 1)
    smooth = np.exp(np.convolve(np.log(losses), np.ones(window) / window, mode="valid"))
    top.semilogy(steps[window // 2 :][: len(smooth)], smooth, color=INK, linewidth=1.8)
    top.set(xlabel="step", ylabel="loss a label, nats", xlim=(0, len(losses)))
    top.set_title("Training", loc="left", fontweight="bold")
    rates = top.twinx()
    rates.spines[["top", "left"]].set_visible(False)
    rates.plot([s for s, _ in errors], [100 * e.rate for _, e in errors], "o-", color=ACCENT, markersize=4)
    rates.set_ylabel("held-out label error rate, %", color=ACCENT)
    rates.tick_params(axis="y", colors=ACCENT)
    rates.set_ylim(0, 105)
    last = errors[-1]
    rates.annotate(
        f"{100 * last[1].rate:.1f} %", (last[0], 100 * last[1].rate), (-4, 10), textcoords="offset points",
        ha="right", color=ACCENT, fontweight="bold",
    )  # fmt: skip

    extent = (0, frames, 0, HEIGHT / SUBSAMPLING)
    image.imshow(
        lines.images[n, :, : frames * SUBSAMPLING], cmap="Greys", extent=extent, aspect="auto", interpolation="nearest"
    )
    image.set(xticks=[], yticks=[])
    image.spines[:].set_visible(False)
    image.set_title("A held-out line, and the posterior of its labels", loc="left", fontweight="bold")

    edges = np.arange(frames + 1)
    bottom.stairs(gamma[:, BLANK], edges, fill=True, color=QUIET, alpha=0.15)
    for digit in sorted(set(target.tolist())):
        bottom.stairs(gamma[:, digit], edges, fill=True, color=COLOURS[digit], alpha=0.35)
        bottom.stairs(gamma[:, digit], edges, color=COLOURS[digit], linewidth=1.4)
    found = peaks(gamma, target)
    for digit, frame in found:
        bottom.text(
            frame + 0.5, 1.06, str(digit), ha="center", va="bottom", color=COLOURS[digit], fontsize=13, weight="bold"
        )
    # The word goes where there is most room for it.
    gaps = np.array([0, *(frame + 0.5 for _, frame in found), frames])
    widest = int(np.argmax(np.diff(gaps)))
    bottom.text(gaps[widest : widest + 2].mean(), 0.5, "blank", color=QUIET, fontsize=9, ha="center", va="center")
    bottom.set(xlim=(0, frames), ylim=(0, 1.3), yticks=[0, 0.5, 1], xlabel="frame", ylabel="posterior")
    image.sharex(bottom)
    image.tick_params(bottom=False, labelbottom=False)
    figure.savefig(path, dpi=150, facecolor=PAPER)
    plt.close(figure)


def peaks(gamma: np.ndarray, target: np.ndarray) -> list[tuple[int, int]]:
    """(label, frame) where each label of the target peaks; empty if the runs of likely labels do not spell it."""
    best = gamma.argmax(axis=1)
    starts = np.flatnonzero(np.append(True, best[1:] != best[:-1]))
    runs = [(int(best[a]), a, b) for a, b in zip(starts, [*starts[1:], len(best)], strict=True) if best[a] != BLANK]
    if [digit for digit, _, _ in runs] != target.tolist():
        return []
    return [(digit, int(a + gamma[a:b, digit].argmax())) for digit, a, b in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--fast", action="store_true", help="40 steps: runs everything, learns little")
    options = parser.parse_args()
    weights, losses, errors, test = train(40 if options.fast else options.steps, options.seed)
    scores = np.asarray(read(weights, test.images))
    show_reading(scores, test, 8)
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "handwritten_lines.png"
    draw(picture, losses, errors, scores, test)
    print(f"\npicture: {picture}\nheld-out label error rate: {errors[-1][1]}")
    if not options.fast and errors[-1][1].rate >= 0.05:
        sys.exit("The label error rate is 5% or more: something is wrong.")


if __name__ == "__main__":
    main()
