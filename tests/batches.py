"""Batches for `jaxctc.diagnose`: a healthy one, and one for every code that has what the code is about."""

import numpy as np

T, N, C, S = 24, 6, 8, 5
NAMES = ["-", *"abcdefg"]


def log_softmax(x, axis=-1):
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def logits_of(targets, frames, counts, *, blank=0, height=5.0, noise=1.0, seed=0, classes=C, length=T):
    """Logits (T, N, C) of a model that has learned these targets: noise, and a peak on a path that spells them."""
    rng = np.random.default_rng(seed)
    x = noise * rng.normal(size=(length, len(targets), classes))
    for n, target in enumerate(targets):
        path = np.full(length, blank)
        used = 2 * int(counts[n])  # a frame for each label, and a blank behind it
        starts = np.sort(rng.choice(int(frames[n]) - used + int(counts[n]), int(counts[n]), replace=False))
        for s, start in enumerate(starts):
            path[start + s] = target[s]
        x[np.arange(length), n, path] += height
    return x.astype(np.float32)


def healthy(**options):
    """The arguments of a batch in which nothing is wrong."""
    rng = np.random.default_rng(3)
    frames = np.array([24, 22, 19, 24, 21, 16])
    counts = np.array([4, 5, 3, 5, 4, 3])
    targets = rng.integers(1, C, (N, S))
    targets[0, :2] = 3  # a repeat
    scores = log_softmax(logits_of(targets, frames, counts, **options))
    return {"log_probs": scores, "targets": targets, "input_lengths": frames, "target_lengths": counts, "blank": 0}


def changed(batch=None, **values):
    return {**(healthy() if batch is None else batch), **values}


def edited(name, change, batch=None):
    """The batch with one argument changed in place."""
    batch = healthy() if batch is None else batch
    array = np.array(batch[name])
    change(array)
    return {**batch, name: array}


def put(*index, value):
    def change(array):
        array[index] = value

    return change


def padded_targets(value, blank=0):
    """Targets whose padding is counted."""
    batch = healthy() if blank == 0 else with_blank(blank)
    inside = np.arange(S) < batch["target_lengths"][:, None]
    return {**batch, "targets": np.where(inside, batch["targets"], value), "target_lengths": np.full(N, S)}


def with_blank(blank):
    """The healthy batch with another blank, by a permutation of the classes."""
    batch = healthy()
    order = np.roll(np.arange(C), blank)  # class k becomes class (k + blank) % C
    return {
        **batch,
        "log_probs": batch["log_probs"][:, :, order],
        "targets": (batch["targets"] + blank) % C,
        "blank": blank,
    }


def masked(row, *classes):
    return edited("log_probs", put(slice(None), row, list(classes), value=-np.inf))


def padded_frames():
    """Every length is T, and the model says the same in all padded frames."""
    batch = healthy()
    scores = batch["log_probs"].copy()
    silence = log_softmax(np.random.default_rng(9).normal(size=C)).astype(np.float32)
    for n, frames in enumerate(batch["input_lengths"]):
        scores[frames:, n] = silence
    return {**batch, "log_probs": scores, "input_lengths": np.full(N, T)}


def like(height, path):
    """A model that says this class in every frame, or another at random in each for None."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(T, N, C)) * (0.05 if height == 0 else 0.5)
    classes = rng.integers(0, C, (T, N)) if path is None else np.full((T, N), path)
    np.put_along_axis(x, classes[:, :, None], np.take_along_axis(x, classes[:, :, None], 2) + height, 2)
    return changed(log_probs=log_softmax(x).astype(np.float32))


def in_half(scores, dtype=np.float16, **options):
    """Scores that were computed in float16, without padding."""
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float16).astype(dtype)
    return changed(
        log_probs=np.where(np.arange(T)[:, None, None] < healthy()["input_lengths"][:, None], narrow, 0), **options
    )


def log_of_zero(logits):
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_softmax(logits)).astype(np.float16))


def broken():
    """A batch for every code, and some more where a code has several causes: name, code, arguments."""
    batch = healthy()
    x, targets = batch["log_probs"], batch["targets"]
    frames, counts = batch["input_lengths"], batch["target_lengths"]
    probabilities = np.exp(x)
    logits = logits_of(targets, frames, counts)
    return [
        ("scores are text", "unreadable", changed(log_probs=[["a"]])),
        ("scores have four axes", "unreadable", changed(log_probs=x[None])),
        ("targets are fractions", "unreadable", changed(targets=targets + 0.5)),
        ("targets are None", "unreadable", changed(targets=None)),
        ("the blank is a name", "unreadable", changed(blank="-")),
        ("targets are floats", "wrong-dtype", changed(targets=targets.astype(np.float32))),
        ("lengths are floats", "wrong-dtype", changed(input_lengths=frames.astype(np.float64))),
        ("scores are integers", "wrong-dtype logits", changed(log_probs=np.round(x * 100).astype(int))),
        (
            "targets are ragged",
            "ragged-targets",
            changed(targets=[row[:count].tolist() for row, count in zip(targets, counts, strict=True)]),
        ),
        ("there are no frames", "empty-batch", changed(log_probs=x[:0])),
        ("there are no sequences", "empty-batch", changed(log_probs=x[:, :0], targets=targets[:0])),
        ("(N, T, C) as (T, N, C)", "swapped-axes", changed(log_probs=x.swapaxes(0, 1))),
        ("(T, N, C) as (N, T, C)", "swapped-axes", changed(batch_first=True)),
        (
            "one length for all, beyond T",
            "swapped-axes",
            {
                "log_probs": x.swapaxes(0, 1), "targets": targets[:, :3].reshape(-1), "input_lengths": T,
                "target_lengths": 3, "blank": 0,
            },
        ),
        ("a length too few", "shape-mismatch", changed(input_lengths=frames[:-1])),
        ("lengths (N, 1)", "shape-mismatch", changed(input_lengths=frames[:, None])),
        ("padded targets, flattened", "targets-total", changed(targets=targets.reshape(-1))),
        ("labels end to end, one too many", "targets-total", changed(targets=np.ones(counts.sum() + 1, int))),
        ("a name too few", "class-names", changed(labels=NAMES[1:])),
        ("too few frames", "infeasible", edited("input_lengths", put(3, value=4))),
        (
            "too few frames for a repeat",
            "infeasible",
            edited("input_lengths", put(0, value=4), edited("targets", put(0, value=[3, 3, 5, 6, 7]))),
        ),
        ("hardly any frame to spare", "tight", edited("input_lengths", put(3, value=6))),
        ("a length beyond T", "input-length-range", edited("input_lengths", put(1, value=T + 1))),
        ("one length far beyond T", "input-length-range", edited("input_lengths", put(1, value=10 * T))),
        ("a negative length", "input-length-range", edited("input_lengths", put(1, value=-1))),
        ("lengths in samples", "lengths-before-subsampling", changed(input_lengths=frames * 160)),
        ("lengths before subsampling", "lengths-before-subsampling", changed(input_lengths=frames * 4 - 1)),
        (
            "lengths before subsampling, T is padded",
            "lengths-before-subsampling",
            changed(log_probs=np.concatenate([x, x[:16]]), input_lengths=frames * 4 - 1),
        ),
        (
            "lengths before subsampling by 2, T is padded",
            "lengths-before-subsampling",
            changed(log_probs=np.concatenate([x, x[:8]]), input_lengths=frames * 2 - 1),
        ),
        ("lengths swapped", "lengths-swapped", changed(input_lengths=counts, target_lengths=frames)),
        (
            "lengths swapped, wide targets",
            "lengths-swapped",
            changed(targets=np.pad(targets, ((0, 0), (0, T))), input_lengths=counts, target_lengths=frames),
        ),
        (
            "lengths swapped, labels end to end",
            "lengths-swapped",
            changed(
                targets=np.concatenate([row[:count] for row, count in zip(targets, counts, strict=True)]),
                input_lengths=counts,
                target_lengths=frames,
            ),
        ),
        ("lengths divided twice", "lengths-too-short", changed(input_lengths=frames // 2)),
        ("a mask as lengths", "lengths-are-masks", changed(input_lengths=np.arange(T) < frames[:, None])),
        ("optax's paddings", "lengths-are-masks", changed(target_lengths=(np.arange(S) >= counts[:, None]) * 1.0)),
        ("lengths as fractions", "lengths-are-fractions", changed(input_lengths=(frames / T).astype(np.float32))),
        ("every length is T", "padded-frames-counted", padded_frames()),
        ("a target length beyond S", "target-length-range", edited("target_lengths", put(2, value=S + 1))),
        ("an empty target", "empty-target", edited("target_lengths", put(2, value=0))),
        ("the blank is -1", "blank-range", {**with_blank(C - 1), "blank": -1}),
        ("the blank is C", "blank-range", changed(blank=C)),
        ("a label is the blank", "label-is-blank", edited("targets", put(1, 2, value=0))),
        ("a label is the blank, some classes unused", "label-is-blank", changed(targets=np.minimum(targets, 4) % 4)),
        ("a label is C", "label-range", edited("targets", put(1, 2, value=C + 3))),
        ("labels from 0, blank 0", "targets-zero-based", changed(targets=targets - 1)),
        ("labels from 1, the last is the blank", "targets-one-based", changed(blank=C - 1)),
        ("labels from 1 to C", "targets-one-based", {**edited("targets", put(1, 2, value=C)), "blank": C - 1}),
        ("padded with -1", "padding-counted", padded_targets(-1)),
        ("padded with -100", "padding-counted", padded_targets(-100)),
        ("padded with the blank", "padding-counted", padded_targets(0)),
        ("padded with C", "padding-counted", padded_targets(C)),
        ("padded with a legal 0", "padding-counted", without_zeros(padded_targets(0, blank=C - 1))),
        ("the blank of another model", "wrong-blank", other_blank()),
        ("targets in another order", "targets-shuffled", in_another_order()),
        ("classes that never occur", "classes-unseen", many_labels(np.arange(1, C - 2))),
        ("NaN", "nan", edited("log_probs", put(2, 1, value=np.nan))),
        ("+inf", "positive-infinity", edited("log_probs", put(2, 1, 3, value=np.inf))),
        ("NaN in padding", "non-finite-padding", edited("log_probs", put(slice(20, None), 5, value=np.nan))),
        ("a masked label", "masked-target", masked(0, 3)),
        ("a masked label, finite", "masked-target", edited("log_probs", put(slice(None), 0, 3, value=-1e9))),
        ("a masked frame", "masked-target", edited("log_probs", put(3, 2, value=-np.inf))),
        ("float16 overflows", "half-overflow", in_half(logits * 2e4, from_logits=True)),
        ("float16 overflows, then float32", "half-overflow", in_half(logits * 2e4, np.float32, from_logits=True)),
        ("log of a float16 softmax", "half-underflow", in_half(log_of_zero(logits * 4))),
        ("log(softmax + 1e-7)", "clamped", changed(log_probs=np.log(np.exp(log_softmax(logits * 4)) + 1e-7))),
        ("learned by heart", "vanishing-gradient", healthy(height=60.0)),
        ("probabilities", "probabilities", changed(log_probs=probabilities)),
        ("logits", "logits", changed(log_probs=logits)),
        ("logits that are all log(1e-4)", "logits", changed(log_probs=np.full((T, N, C), np.log(1e-4)))),
        ("softmax over frames", "wrong-axis", changed(log_probs=log_softmax(logits, 0))),
        ("softmax over sequences", "wrong-axis", changed(log_probs=log_softmax(logits, 1))),
        ("softmax twice", "double-softmax", changed(log_probs=log_softmax(probabilities))),
        ("softmax before the logits", "double-softmax", changed(log_probs=probabilities + 1, from_logits=True)),
        ("zeros", "constant-output", changed(log_probs=np.full((T, N, C), -np.log(C), np.float32))),
        ("a model that knows nothing", "uniform", like(0, None)),
        ("all blank", "all-blank", like(6.0, 0)),
        ("one label", "one-class", like(3.0, 2)),
        ("sure and wrong", "confident-wrong", like(12.0, None)),
    ]  # fmt: skip


def without_padding(targets, blank=0, noise=1.0):
    """Every sequence has T frames and S labels."""
    frames, counts = np.full(N, T), np.full(N, S)
    x = logits_of(targets, frames, counts, blank=blank, noise=noise)
    lengths = {"input_lengths": frames, "target_lengths": counts}
    return {"log_probs": log_softmax(x), "targets": targets, **lengths, "blank": blank}


def without_zeros(batch):
    """No label is 0 but the padding."""
    inside = np.arange(S) < healthy()["target_lengths"][:, None]
    targets = np.where(inside & (batch["targets"] == 0), 2, batch["targets"])
    targets[1, -1], targets[3, -1] = 0, 0
    return {**batch, "targets": targets}


def in_another_order():
    """Each target is that of the sequence before, and all are long."""
    rng = np.random.default_rng(2)
    batch = without_padding(rng.integers(1, C, (N, S)))
    return {**batch, "targets": np.roll(batch["targets"], 1, axis=0)}


def other_blank():
    """Labels are 1 to C - 2, the model's blank is C - 1, and 0 was passed."""
    batch = healthy()
    targets = np.clip(batch["targets"], 1, C - 2)
    x = logits_of(targets, batch["input_lengths"], batch["target_lengths"], blank=C - 1)
    return {**batch, "targets": targets, "log_probs": log_softmax(x)}


def many_labels(classes):
    """Long targets, of these classes only."""
    rng = np.random.default_rng(5)
    targets = np.stack([rng.permutation(np.resize(classes, 30)) for _ in range(N)])
    frames, counts = np.full(N, 90), np.full(N, 30)
    x = logits_of(targets, frames, counts, length=90)
    return {
        "log_probs": log_softmax(x), "targets": targets, "input_lengths": frames, "target_lengths": counts, "blank": 0,
    }  # fmt: skip
