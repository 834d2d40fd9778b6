"""Trains a recogniser of spoken digit strings, and tests it on a held-out speaker.

Four speakers of the Free Spoken Digit Dataset are for training, a fifth for validation, and the sixth for the test.
A small convolutional network gives every 40 ms a score to each digit and to the blank. The training data do not tell
where a digit begins or ends: the loss sums over all positions, and `jaxctc.forced_align` finds the best.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _errors import Errors, count_errors, spell
from _speech import BLANK, CLASSES, MELS, SECONDS_PER_FRAME, SPEAKERS, SUBSAMPLING, Speech, Takes, compose, load_takes
from tqdm import tqdm

import jaxctc

BATCH = 32
WIDTH = 128
CONTEXT = {"context 1": 1, "context 2": 1, "context 3": 2}
"""The layers that look at a frame's neighbours, and how many frames apart these are."""
DROPOUT = 0.2
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "blank"]
WHERE = """It needs the Free Spoken Digit Dataset (3,000 recordings, CC BY-SA 4.0). Fetch it, and pass its path:

    git clone --depth 1 https://github.com/Jakobovski/free-spoken-digit-dataset
    python examples/spoken_digits.py --data free-spoken-digit-dataset"""

Weights = dict[str, jax.Array]


def init(key: jax.Array) -> Weights:
    """Weights, scaled to keep the variance of what passes through (He et al., 2015)."""
    shapes = {
        "onset": (3, 3, 1, 16),
        "formant": (3, 3, 16, 32),
        "frame": (3, MELS // SUBSAMPLING * 32, WIDTH),
        **dict.fromkeys(CONTEXT, (5, WIDTH, WIDTH)),
        "class": (1, WIDTH, CLASSES),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) * (2 / np.prod(shape[:-1])) ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def listen(weights: Weights, features: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Logits (N, T, C) of features (N, FRAMES, MELS); with a key, as in training, some channels are dropped."""
    x = jax.nn.relu(_convolve(features[..., None], weights["onset"], stride=2))
    x = jax.nn.relu(_convolve(x, weights["formant"], stride=2))
    x = jax.nn.relu(_convolve(x.reshape(*x.shape[:2], -1), weights["frame"]))
    for i, (name, apart) in enumerate(CONTEXT.items()):
        x = x + jax.nn.relu(_convolve(_drop(_normalize(x), key, i), weights[name], apart=apart))
    return _convolve(_drop(_normalize(x), key, len(CONTEXT)), weights["class"])


def _convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, apart: int = 1) -> jax.Array:
    """Over time, and over frequency where there is that axis."""
    axes = ("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NHC", "HIO", "NHC")
    over = x.ndim - 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * over, "SAME", rhs_dilation=(apart,) * over, dimension_numbers=axes
    )


def _normalize(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-3)


def _drop(x: jax.Array, key: jax.Array | None, layer: int) -> jax.Array:
    """Drops channels of the whole utterance (Tompson et al., 2015): neighbours would reveal a dropped frame."""
    if key is None:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - DROPOUT, (x.shape[0], 1, x.shape[2]))
    return jnp.where(kept, x / (1 - DROPOUT), 0)


def loss(weights: Weights, batch: Speech, key: jax.Array) -> jax.Array:
    logits = listen(weights, batch.features, key)
    return jaxctc.ctc_loss_with_logits(
        logits, batch.targets, batch.input_lengths, batch.target_lengths, blank=BLANK, batch_first=True
    )


def train(speakers: list[Takes], validation: Speech, steps: int, seed: int) -> Weights:
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, steps // 10, steps), weight_decay=1e-2),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights, state, batch, key):
        value, gradient = jax.value_and_grad(loss)(weights, batch, key)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state, value

    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    weights = init(key)
    state = optimizer.init(weights)
    rate = "?"
    with tqdm(total=steps, unit="step", file=sys.stdout, mininterval=0.5) as bar:
        for i in range(steps):
            batch = compose(speakers, BATCH, rng, vary=True)
            weights, state, value = step(weights, state, batch, jax.random.fold_in(key, i))
            if (i + 1) % max(steps // 10, 1) == 0:
                rate = f"{errors(log_probs_of(weights, validation), validation).rate:.1%}"
            bar.set_postfix_str(f"loss {value:.3f}, validation label error rate {rate}", refresh=False)
            bar.update()
    return weights


@jax.jit
def _log_probs(weights: Weights, features: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(listen(weights, features))


def log_probs_of(weights: Weights, batch: Speech) -> jax.Array:
    """(N, T, C)."""
    return _log_probs(weights, batch.features)


def greedy(log_probs: jax.Array, batch: Speech) -> list[list[int]]:
    found = jaxctc.greedy_decode(log_probs, batch.input_lengths, blank=BLANK, batch_first=True)
    return _unpad(found.labels, found.lengths)


def beam(log_probs: jax.Array, batch: Speech) -> list[list[int]]:
    found = jaxctc.beam_search_decode(log_probs, batch.input_lengths, blank=BLANK, beam_width=16, batch_first=True)
    return _unpad(found.labels[:, 0], found.lengths[:, 0])


def _unpad(labels: jax.Array, lengths: jax.Array) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(np.asarray(labels), np.asarray(lengths), strict=True)]


def errors(log_probs: jax.Array, batch: Speech) -> Errors:
    return count_errors(greedy(log_probs, batch), batch.truths)


def show_reading(log_probs: jax.Array, batch: Speech, count: int) -> None:
    """Prints the first utterances as they are, and as they were heard."""
    print(f"\n{'truth':<10}{'greedy':<10}beam")
    rows = zip(batch.truths, greedy(log_probs, batch), beam(log_probs, batch), strict=True)
    for truth, *found in list(rows)[:count]:
        differs = "" if truth == found[0] == found[1] else "   <- differs"
        print(f"{spell(truth):<10}{spell(found[0]):<10}{spell(found[1])}{differs}")


def draw(path: Path, log_probs: jax.Array, batch: Speech, speaker: str) -> None:
    """The longest utterance, aligned with what was said."""
    n = int(np.argmax(batch.target_lengths))
    frames, target = int(batch.input_lengths[n]), batch.targets[n, : batch.target_lengths[n]]
    scores = log_probs[n, :frames]
    spans = jaxctc.merge_tokens(*jaxctc.forced_align(scores, target, frames, len(target), blank=BLANK), blank=BLANK)
    posteriors = jaxctc.ctc_posteriors(scores, target, frames, len(target), blank=BLANK).classes
    figure = jaxctc.plot_alignment(
        scores, spans, posteriors, blank=BLANK, label_names=NAMES, seconds_per_frame=SECONDS_PER_FRAME,
        title=f"{spell(target)}, spoken by {speaker}, a held-out speaker",
    )  # fmt: skip
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the dataset: a clone of its repository, or an .npz of it")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--fast", action="store_true", help="10 steps: runs everything, learns little")
    options = parser.parse_args()
    if options.data is None:
        parser.error(WHERE)
    takes = load_takes(options.data)
    if not takes:
        parser.error(f"there are no recordings in {options.data}. {WHERE}")
    voices = {part: [takes[name] for name in names] for part, names in SPEAKERS.items()}
    count = 20 if options.fast else 300
    validation, test = (
        compose(voices[part], count, np.random.default_rng(seed)) for seed, part in enumerate(("validation", "test"))
    )
    start = time.perf_counter()
    weights = train(voices["training"], validation, 10 if options.fast else options.steps, options.seed)
    print(f"trained in {time.perf_counter() - start:.0f} s on {', '.join(SPEAKERS['training'])}")

    log_probs = log_probs_of(weights, test)
    show_reading(log_probs, test, 8)
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "spoken_digits.png"
    (speaker,) = SPEAKERS["test"]
    draw(picture, log_probs, test, speaker)
    found = errors(log_probs, test)
    print(f"\npicture: {picture}\nlabel error rate on {speaker}, the held-out speaker: {found}")
    print(f"with a beam of 16: {count_errors(beam(log_probs, test), test.truths)}")
    if not options.fast and found.rate >= 0.25:
        sys.exit("The label error rate is 25% or more: something is wrong.")


if __name__ == "__main__":
    main()
