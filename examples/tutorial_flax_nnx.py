"""Handwritten lines with Flax NNX."""

# %%
# This tutorial trains a network that reads lines of handwritten digits. Nobody tells it where a digit stands: it
# gets an image and the digits in order, and CTC sums over all positions. The lines are composed from the 1,797
# scans that scikit-learn ships, so that nothing is downloaded.
#
# Run it with `python examples/tutorial_flax_nnx.py`; `--fast` takes a few seconds and learns little.

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _errors import count_errors
from _lines import BLANK, CLASSES, HEIGHT, SUBSAMPLING, Lines, compose, load_scans
from _tutorials import arguments, need

nnx = need("flax.nnx")

import jaxctc  # noqa: E402

options = arguments(__doc__, steps=600)

# %%
# ## The data
#
# A line is an image of 12 rows and up to 112 columns, and 3 to 9 digits. Scans of the held-out lines are in no
# line of the training.

training, held_out = load_scans(seed=0)
rng = np.random.default_rng(0)
test = compose(held_out, 40 if options.fast else 300, rng)

# %%
# ## The model
#
# Convolutions look at the image and give a vector for every second column. These are the frames: one score for
# each digit and the blank, class 10. Padding is "same", so that a line of `width` columns has `width / 2` frames,
# rounded up.


class Reader(nnx.Module):
    """Give logits, (N, T, C), of images, (N, HEIGHT, WIDTH)."""

    def __init__(self, rngs):
        self.stroke = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.shape = nnx.Conv(16, 32, (3, 3), strides=SUBSAMPLING, rngs=rngs)
        self.column = nnx.Linear(HEIGHT // SUBSAMPLING * 32, 96, rngs=rngs)
        self.context = nnx.Conv(96, 96, (5,), rngs=rngs)
        self.classes = nnx.Linear(96, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stroke(images[..., None]))
        x = nnx.relu(self.shape(x))
        x = jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)  # a frame is a column of the image
        x = nnx.relu(self.column(x))
        x = x + nnx.relu(self.context(x))
        return self.classes(x)


# %%
# ## The loss and one step
#
# `ctc_loss_with_logits` takes what the last layer gives. `batch_first` is for (N, T, C). The lengths are counted in
# frames: the columns over the subsampling, rounded up.


def loss_of(model, lines):
    return jaxctc.ctc_loss_with_logits(
        model(lines.images),
        lines.targets,
        -(-lines.widths // SUBSAMPLING),
        lines.target_lengths,
        blank=BLANK,
        batch_first=True,
    )


@nnx.jit
def step(model, optimizer, lines):
    value, gradient = nnx.value_and_grad(loss_of)(model, lines)
    optimizer.update(model, gradient)
    return value


# %%
# ## Training

model = Reader(nnx.Rngs(0))
schedule = optax.warmup_cosine_decay_schedule(0, 4e-3, options.steps // 10, options.steps)
optimizer = nnx.Optimizer(model, optax.adamw(schedule), wrt=nnx.Param)
losses = []
for i in range(options.steps):
    losses.append(float(step(model, optimizer, compose(training, 32, rng))))
    if (i + 1) % max(options.steps // 10, 1) == 0:
        print(f"step {i + 1:5}: loss {losses[-1]:.3f}")

# %%
# ## What it reads, and the error rate
#
# The greedy decoder takes the best class of each frame, merges repeats and removes blanks. The label error rate
# counts insertions, deletions and substitutions over all labels of the held-out lines.

log_probs = jax.nn.log_softmax(nnx.jit(lambda model, images: model(images))(model, test.images))
decoded = jaxctc.greedy_decode(log_probs, test.input_lengths, blank=BLANK, batch_first=True)
found = [row[:length].tolist() for row, length in zip(np.asarray(decoded.labels), decoded.lengths, strict=True)]
truths = [row[:length].tolist() for row, length in zip(test.targets, test.target_lengths, strict=True)]
errors = count_errors(found, truths)
print(f"held-out label error rate: {errors}")

# %%
# ## Where the digits stand
#
# `forced_align` finds the best alignment of the truth, `merge_tokens` the frames of each digit, and
# `ctc_posteriors` how sure they are. `plot_alignment` draws all of it; the line itself goes above, in the same
# frames.


def draw(path: Path, lines: Lines) -> None:
    n = int(np.argmax(lines.target_lengths))
    frames, target = int(lines.input_lengths[n]), lines.targets[n, : lines.target_lengths[n]]
    problem = log_probs[n, :frames], target, frames, len(target), BLANK
    spans = jaxctc.merge_tokens(*jaxctc.forced_align(*problem), blank=BLANK)
    figure = plt.figure(figsize=(9, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 2.6])
    above, beside = above.subplots(1, 2, width_ratios=[1, 1.6])
    above.semilogy(losses, color="#1b1f3b", linewidth=0.8)
    above.set(xlabel="step", ylabel="loss a label, nats", title=f"label error rate {errors.rate:.1%}")
    beside.imshow(lines.images[n, :, : frames * SUBSAMPLING], cmap="Greys", aspect="auto", extent=(0, frames, 0, 1))
    beside.set(yticks=[], xlabel="frame", title="a held-out line")
    jaxctc.plot_alignment(problem[0], spans, jaxctc.ctc_posteriors(*problem).classes, blank=BLANK, figure=below)
    figure.savefig(path, dpi=110)
    plt.close(figure)


draw(options.picture, test)
print(f"picture: {options.picture}")

# %%
# ![The training; a held-out line, with scores, posteriors and spans](flax_nnx.png)
