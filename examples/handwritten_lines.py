"""Trains a reader of handwritten lines with `jaxctc.ctc_loss_with_logits`, and draws what it has learnt.

A small convolutional network looks at a line of digits and gives, for each pair of image columns, a
score to every digit and to the blank. The training data do not tell where a digit stands: the
loss sums over all positions.
"""

import argparse
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from _errors import Errors, spell
from _lines import BLANK, SUBSAMPLING, Lines, best_path, compose, label_errors, load_scans
from _reader import BATCH, descend, init, optimizer_for, read
from matplotlib.axes import Axes
from tqdm import tqdm

import jaxctc

INK, QUIET, ACCENT = "#1b1f3b", "#8a8fa3", "#d1495b"


def train(steps: int, seed: int) -> tuple[dict[str, jax.Array], list[float], list[tuple[int, Errors]], Lines]:
    """Weights, the loss of every step, the held-out errors on the way, and the held-out lines."""
    training, held_out = load_scans(seed)
    rng = np.random.default_rng(seed)
    test = compose(held_out, 300, rng)
    optimizer = optimizer_for(steps)
    step = jax.jit(functools.partial(descend, optimizer), donate_argnums=(0, 1))
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


def draw(path: Path, losses: list[float], errors: list[tuple[int, Errors]], scores: np.ndarray, lines: Lines) -> None:
    """The training; and one held-out line with its alignment beneath it."""
    figure = plt.figure(figsize=(9, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.9])
    draw_training(above.subplots(), losses, errors)

    n = int(np.argmax(lines.target_lengths))
    frames, target = lines.input_lengths[n], lines.targets[n, : lines.target_lengths[n]]
    problem = jax.nn.log_softmax(jnp.asarray(scores[n, :frames])), target, frames, len(target), BLANK
    spans = jaxctc.merge_tokens(*jaxctc.forced_align(*problem), blank=BLANK)
    posteriors = jaxctc.ctc_posteriors(*problem).classes
    jaxctc.plot_alignment(problem[0], spans, posteriors, blank=BLANK, figure=below)
    # Over the first panel, so that a column of the scan stands where its frame does.
    image = below.axes[0].inset_axes((0, 1.04, 1, 0.6))
    image.imshow(
        lines.images[n, :, : frames * SUBSAMPLING],
        cmap="Greys", extent=(0, frames, 0, 1), aspect="auto", interpolation="nearest",
    )  # fmt: skip
    image.set_axis_off()
    image.set_title("A held-out line, and where its labels lie", loc="left", color=INK, size=10, fontweight="bold")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_training(axes: Axes, losses: list[float], errors: list[tuple[int, Errors]]) -> None:
    """The loss of every step and its course, and the held-out errors."""
    steps = np.arange(1, len(losses) + 1)
    axes.semilogy(steps, losses, color=QUIET, linewidth=0.7, alpha=0.6)
    window = max(len(losses) // 40, 1)
    smooth = np.exp(np.convolve(np.log(losses), np.ones(window) / window, mode="valid"))
    axes.semilogy(steps[window // 2 :][: len(smooth)], smooth, color=INK, linewidth=1.8)
    axes.set(xlabel="step", ylabel="loss a label, nats", xlim=(0, len(losses)))
    axes.set_title("Training", loc="left", color=INK, size=10, fontweight="bold")
    rates = axes.twinx()
    rates.plot(
        [s for s, _ in errors], [100 * e.rate for _, e in errors], "o-", color=ACCENT, markersize=4, clip_on=False
    )
    rates.set_ylabel("held-out label error rate, %", color=ACCENT)
    rates.set_ylim(0, 105)
    step, last = errors[-1][0], 100 * errors[-1][1].rate
    rates.annotate(
        f"{last:.1f} %", (step, last), (-4, 10), textcoords="offset points",
        ha="right", color=ACCENT, fontweight="bold",
    )  # fmt: skip
    for side, colour in ((axes, QUIET), (rates, ACCENT)):
        side.spines[["top", "right"]].set_visible(False)
        side.spines[["left", "bottom"]].set_color(QUIET)
        side.tick_params(colors=colour, labelsize=8)
        side.xaxis.label.set(color=INK, size=9)
        side.yaxis.label.set(size=9)


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
