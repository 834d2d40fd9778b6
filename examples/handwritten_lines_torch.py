"""The reader of handwritten lines in PyTorch, trained with PyTorch's own CTC loss and with the bridge's.

Weights and batches are the same for both losses: the two curves must be the same.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _errors import Errors
from _lines import BLANK, CLASSES, HEIGHT, SUBSAMPLING, Lines, compose, label_errors, load_scans
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import bridge

BATCH = 32
INK, QUIET, ACCENT = "#1b1f3b", "#8a8fa3", "#d1495b"
Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {"torch": functional.ctc_loss, "bridge": bridge.ctc_loss}


class Reader(nn.Module):
    """Log probabilities (T, N, C) of images (N, HEIGHT, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.stroke = nn.Conv2d(1, 16, 3, padding=1)
        self.shape = nn.Conv2d(16, 32, 3, stride=SUBSAMPLING, padding=1)
        self.column = nn.Conv2d(32, 96, (HEIGHT // SUBSAMPLING, 3), padding=(0, 1))
        self.context = nn.Conv1d(96, 96, 5, padding=2)
        self.classes = nn.Conv1d(96, CLASSES, 1)
        for module in self.children():
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stroke(images[:, None]).relu()
        x = self.shape(x).relu()
        x = self.column(x).relu().squeeze(2)
        x = x + self.context(x).relu()
        return self.classes(x).permute(2, 0, 1).log_softmax(2)


def train(
    loss: Loss, name: str, steps: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[np.ndarray, Errors]:
    """The loss of every step, and the held-out errors at the end."""
    torch.manual_seed(seed)
    model = Reader().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-4)
    warmup = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, 1) * 0.5 * (1 + np.cos(np.pi * i / steps))
    )
    training, held_out = load_scans(seed)
    rng = np.random.default_rng(seed)
    test = compose(held_out, 300, rng)
    losses = np.zeros(steps)
    with tqdm(total=steps, unit="step", desc=name, file=sys.stdout, mininterval=0.5) as bar:
        for i in range(steps):
            batch = compose(training, BATCH, rng)
            value = _evaluate(loss, model(torch.from_numpy(batch.images).to(dtype)), batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses[i] = value.item()
            bar.set_postfix_str(f"loss {losses[i]:.3f}", refresh=False)
            bar.update()
    with torch.no_grad():
        scores = model(torch.from_numpy(test.images).to(dtype)).transpose(0, 1).numpy()
    return losses, label_errors(scores, test)


def _evaluate(loss: Loss, log_probs: Tensor, lines: Lines) -> Tensor:
    lengths = (torch.from_numpy(x).long() for x in (lines.input_lengths, lines.target_lengths))
    return loss(log_probs, torch.from_numpy(lines.targets).long(), *lengths, blank=BLANK)


def compare(losses: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Prints the curves side by side; returns their difference."""
    theirs, ours = losses.values()
    difference = np.abs(ours - theirs)
    print("\n" + "".join(f"{title:>14}" for title in ("step", *losses, "difference")))
    for i in np.unique(np.linspace(0, len(ours) - 1, rows).astype(int)):
        print(f"{i + 1:>14}{theirs[i]:>14.6f}{ours[i]:>14.6f}{difference[i]:>14.1e}")
    return difference


def draw(path: Path, losses: dict[str, np.ndarray], exact: np.ndarray) -> None:
    """Both curves, and beneath them their difference, in float32 and in float64."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.edgecolor": QUIET})
    plt.rcParams.update({"axes.labelcolor": INK, "xtick.color": QUIET, "ytick.color": QUIET})
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, gridspec_kw={"height_ratios": [3, 2]}, layout="constrained"
    )
    theirs, ours = losses.values()
    steps = np.arange(1, len(ours) + 1)
    top.semilogy(steps, theirs, color=ACCENT, linewidth=2.6, alpha=0.55, label="torch.nn.functional.ctc_loss")
    top.semilogy(steps, ours, color=INK, linewidth=0.8, label="bridge.ctc_loss")
    top.set(ylabel="loss a label, nats", xlim=(0, len(ours)))
    top.set_title("One training, two losses", loc="left", fontweight="bold")
    top.legend(frameon=False)
    floor = 1e-17  # a logarithm has no place for a difference of nothing
    bottom.semilogy(steps, np.abs(ours - theirs) + floor, color=INK, linewidth=0.8, label="float32")
    bottom.semilogy(steps[: len(exact)], exact + floor, color=ACCENT, linewidth=0.8, label="float64")
    bottom.set(xlabel="step", ylabel="difference")
    bottom.legend(frameon=False)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--steps64", type=int, default=150, help="steps of the run in float64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--fast", action="store_true", help="40 steps: runs everything, learns little")
    options = parser.parse_args()
    steps, steps64 = (40, 20) if options.fast else (options.steps, options.steps64)
    torch.use_deterministic_algorithms(True)

    losses, errors = {}, {}
    for name, loss in LOSSES.items():
        losses[name], errors[name] = train(loss, name, steps, options.seed)
    difference = compare(losses, 12)
    losses64 = {
        name: train(loss, f"{name}, float64", steps64, options.seed, torch.float64)[0] for name, loss in LOSSES.items()
    }
    difference64 = compare(losses64, 6)

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "handwritten_lines_torch.png"
    draw(picture, losses, difference64)
    print(f"\npicture: {picture}")
    print(f"largest difference of the first 20 steps: {difference[:20].max():.1e}; in float64, of all: ", end="")
    print(f"{difference64.max():.1e}")
    for name, error in errors.items():
        print(f"held-out label error rate with {name}: {error}")
    if difference[:20].max() > 1e-3 or difference64.max() > 1e-6:
        sys.exit("The two losses differ by more than rounding.")
    if abs(errors["torch"].rate - errors["bridge"].rate) > 0.02:
        sys.exit("The two models differ by more than two percentage points.")


if __name__ == "__main__":
    main()
