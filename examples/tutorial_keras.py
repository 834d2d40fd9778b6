"""Handwritten lines with Keras 3."""

# %%
# Keras 3 runs on JAX, and `fit` compiles the training step. A loss of Keras is a function of what is true and
# what was predicted; this tutorial gives it `jaxctc.ctc_loss_with_logits`, and trains a reader of handwritten
# digits on lines composed from the scans that scikit-learn ships. Nothing is downloaded.
#
# Run it with `python examples/tutorial_keras.py`; `--fast` takes a few seconds and learns little.

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import jax
import matplotlib.pyplot as plt
import numpy as np
from _errors import count_errors
from _lines import BLANK, CLASSES, HEIGHT, SUBSAMPLING, WIDTH, Lines, compose, load_scans
from _tutorials import arguments, need

keras = need("keras")

import jaxctc  # noqa: E402

options = arguments(__doc__, steps=600)
keras.utils.set_random_seed(0)

# %%
# ## The loss
#
# Keras hands a loss two arrays: `y_true` and `y_pred`. The lengths must be in one of them. Here `y_true` has a
# row for each line: the labels, padded, then the number of labels, then the number of frames. Keras takes the
# mean over the batch itself.


def ctc(y_true, y_pred):
    """Return the losses, (N,), of logits, (N, T, C)."""
    y_true = y_true.astype("int32")  # Keras has made them float32
    targets, target_lengths, input_lengths = y_true[:, :-2], y_true[:, -2], y_true[:, -1]
    return jaxctc.ctc_loss_with_logits(
        y_pred, targets, input_lengths, target_lengths, blank=BLANK, reduction="none", batch_first=True
    )


def packed(lines: Lines) -> np.ndarray:
    return np.column_stack([lines.targets, lines.target_lengths, lines.input_lengths]).astype(np.int32)


# %%
# The loss of Keras itself, `keras.losses.CTC`, has the blank and the padding of labels in class 0, and takes all
# frames of every row, the padding included. [Moving from another library](moving.md#from-keras) compares the two.
#
# ## The data and the model

training, held_out = load_scans(seed=0)
rng = np.random.default_rng(0)
batch = 32
lines, test = compose(training, options.steps * batch, rng), compose(held_out, 40 if options.fast else 300, rng)

layers = keras.layers
image = keras.Input((HEIGHT, WIDTH, 1))
x = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
x = layers.Conv2D(32, 3, strides=SUBSAMPLING, padding="same", activation="relu")(x)
x = layers.Permute((2, 1, 3))(x)  # a frame is a column of the image
x = layers.Reshape((WIDTH // SUBSAMPLING, -1))(x)
x = layers.Dense(96, activation="relu")(x)
x = layers.Add()([x, layers.Conv1D(96, 5, padding="same", activation="relu")(x)])
model = keras.Model(image, layers.Dense(CLASSES)(x))

# %%
# ## Training

schedule = keras.optimizers.schedules.CosineDecay(
    0.0, options.steps, warmup_target=4e-3, warmup_steps=options.steps // 10
)
model.compile(optimizer=keras.optimizers.AdamW(schedule), loss=ctc)
losses: list[float] = []
history = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(float(logs["loss"])))
model.fit(lines.images[..., None], packed(lines), batch_size=batch, shuffle=False, verbose=2, callbacks=[history])

# %%
# `logs["loss"]` is the mean since the epoch began, so that the curve in the picture lags behind.
#
# ## The error rate

log_probs = jax.nn.log_softmax(model.predict(test.images[..., None], verbose=0))
decoded = jaxctc.greedy_decode(log_probs, test.input_lengths, blank=BLANK, batch_first=True)
found = [row[:length].tolist() for row, length in zip(np.asarray(decoded.labels), decoded.lengths, strict=True)]
truths = [row[:length].tolist() for row, length in zip(test.targets, test.target_lengths, strict=True)]
errors = count_errors(found, truths)
print(f"held-out label error rate: {errors}")

# %%
# ## The picture


def draw(path: Path) -> None:
    n = int(np.argmax(test.target_lengths))
    frames, target = int(test.input_lengths[n]), test.targets[n, : test.target_lengths[n]]
    problem = log_probs[n, :frames], target, frames, len(target), BLANK
    spans = jaxctc.merge_tokens(*jaxctc.forced_align(*problem), blank=BLANK)
    figure = plt.figure(figsize=(9, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 2.6])
    axes = above.subplots()
    axes.semilogy(losses, color="#1b1f3b", linewidth=0.8)
    axes.set(xlabel="step", ylabel="mean loss so far, nats", title=f"held-out label error rate {errors.rate:.1%}")
    jaxctc.plot_alignment(problem[0], spans, jaxctc.ctc_posteriors(*problem).classes, blank=BLANK, figure=below)
    figure.savefig(path, dpi=110)
    plt.close(figure)


draw(options.picture)
print(f"picture: {options.picture}")

# %%
# ![The training; a held-out line, with scores, posteriors and spans](keras.png)
