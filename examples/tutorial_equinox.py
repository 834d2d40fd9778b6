"""Spoken digits with Equinox."""

# %%
# This tutorial trains a network on strings of spoken digits, and tests it on a voice that it has never heard.
# With `--data PATH` it uses the Free Spoken Digit Dataset, 3,000 recordings of six people (`git clone
# https://github.com/Jakobovski/free-spoken-digit-dataset`). Without it, it makes artificial voices, so that
# nothing has to be downloaded: `examples/_voices.py`.
#
# Run it with `python examples/tutorial_equinox.py`; `--fast` takes a few seconds and learns little.

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _errors import count_errors
from _speech import BLANK, CLASSES, MELS, SECONDS_PER_FRAME, SPEAKERS, SUBSAMPLING, Speech, compose, load_takes
from _tutorials import arguments, need
from _voices import voice

eqx = need("equinox")

import jaxctc  # noqa: E402

options = arguments(__doc__, steps=1000, data=True)

# %%
# ## The data
#
# An utterance is three to seven digits of one voice, with pauses and noise, as features of 40 mel bands every 10
# ms. Voices of the test are in no other part.

if options.data:
    takes = load_takes(options.data)
    training, test_voices = ([takes[name] for name in SPEAKERS[part]] for part in ("training", "test"))
else:
    training, test_voices = [voice(seed) for seed in range(2 if options.fast else 12)], [voice(100), voice(101)]
test = compose(test_voices, 10 if options.fast else 200, np.random.default_rng(1))

# %%
# ## The model
#
# An Equinox module is a function of one utterance; `jax.vmap` makes it one of a batch. Two strides of two give a
# frame every 40 ms: a digit lasts a third of a second, and so has frames enough.


class Listener(eqx.Module):
    """Give logits, (T, C), of features, (frames, MELS)."""

    layers: list
    classes: eqx.nn.Conv1d

    def __init__(self, width, key):
        keys = jax.random.split(key, 5)
        strides = (2, 2, 1, 1)
        widths = (MELS, *[width] * len(strides))
        self.layers = [
            eqx.nn.Conv1d(before, after, 5, stride, padding=2, key=k)
            for before, after, stride, k in zip(widths, widths[1:], strides, keys, strict=False)
        ]
        self.classes = eqx.nn.Conv1d(width, CLASSES, 1, key=keys[4])

    def __call__(self, features):
        x = features.T  # Equinox has channels first
        for layer in self.layers:
            found = layer(x)
            x = jax.nn.relu(found) + (x if found.shape == x.shape else 0)
            x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=0) + 1e-3)
        return self.classes(x).T


# %%
# ## The loss and one step
#
# The loss needs the frames of the **scores**. A stride of two with padding gives half as many, rounded up; two of
# them give a quarter.


def loss_of(model, features, frames, targets, target_lengths):
    logits = jax.vmap(model)(features)
    return jaxctc.ctc_loss_with_logits(
        logits, targets, -(-frames // SUBSAMPLING), target_lengths, blank=BLANK, batch_first=True
    )


@eqx.filter_jit
def step(model, state, batch):
    value, gradient = eqx.filter_value_and_grad(loss_of)(model, *batch)
    updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state, value


# %%
# ## Training

schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, options.steps // 10, options.steps)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))
model = Listener(96, jax.random.key(0))
state = optimizer.init(eqx.filter(model, eqx.is_array))
rng = np.random.default_rng(0)
losses = []
for i in range(options.steps):
    model, state, value = step(model, state, tuple(compose(training, 16, rng, vary=True)))
    losses.append(float(value))
    if (i + 1) % max(options.steps // 10, 1) == 0:
        print(f"step {i + 1:5}: loss {losses[-1]:.3f}")

# %%
# ## The error rate on unheard voices
#
# Greedy decoding takes the best path; the beam sums the paths of each labelling, and may find a better one.

log_probs = jax.nn.log_softmax(eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(model, test.features))
greedy = jaxctc.greedy_decode(log_probs, test.input_lengths, blank=BLANK, batch_first=True)
beams = jaxctc.beam_search_decode(log_probs, test.input_lengths, blank=BLANK, beam_width=8, batch_first=True)


def errors_of(labels, lengths):
    found = [row[:length].tolist() for row, length in zip(np.asarray(labels), lengths, strict=True)]
    return count_errors(found, test.truths)


errors = errors_of(greedy.labels, greedy.lengths)
print(f"label error rate on voices that were not in the training: {errors}")
print(f"with a beam of 8: {errors_of(beams.labels[:, 0], beams.lengths[:, 0])}")

# %%
# ## When each digit was said


def draw(path: Path, speech: Speech) -> None:
    n = int(np.argmax(speech.target_lengths))
    frames, target = int(speech.input_lengths[n]), speech.targets[n, : speech.target_lengths[n]]
    problem = log_probs[n, :frames], target, frames, len(target), BLANK
    spans = jaxctc.merge_tokens(*jaxctc.forced_align(*problem), blank=BLANK)
    figure = plt.figure(figsize=(9, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 2.4])
    above, beside = above.subplots(1, 2, width_ratios=[1, 1.6])
    above.semilogy(losses, color="#1b1f3b", linewidth=0.8)
    above.set(xlabel="step", ylabel="loss a label, nats", title=f"label error rate {errors.rate:.1%}")
    mels = speech.features[n, : speech.frames[n]].T
    beside.imshow(mels, origin="lower", aspect="auto", cmap="Greys", extent=(0, frames * SECONDS_PER_FRAME, 0, MELS))
    beside.set(xlabel="seconds", ylabel="mel band", title="an utterance of a voice not in the training")
    jaxctc.plot_alignment(
        problem[0],
        spans,
        jaxctc.ctc_posteriors(*problem).classes,
        blank=BLANK,
        seconds_per_frame=SECONDS_PER_FRAME,
        figure=below,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


draw(options.picture, test)
print(f"picture: {options.picture}")

# %%
# ![The training; an utterance of an unheard voice, with scores, posteriors and spans](equinox.png)
#
# The picture is of artificial voices. `examples/spoken_digits.py` trains on the recordings, with a larger model
# and without a library of layers; [Alignment in figures](../alignment.md#held-out-speaker) has its error rate.
