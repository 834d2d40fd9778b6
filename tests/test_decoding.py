"""Compare the decoders with all paths, with a plain search, and with other libraries."""

import functools
import math
import os
import warnings

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._tools.conformance.oracle import log_softmax, paths_by_target, spells

T, N, C = 5, 3, 4
LENGTHS = np.array([5, 0, 4], np.int32)
EVERY_PREFIX = 160
"""More prefixes than four classes can spell in five frames."""


def draw(seed: int, shape=(T, N, C), *, holes: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    log_probs = log_softmax(generator.normal(size=shape) * 2)
    if holes:
        log_probs[generator.random(shape) < 0.3] = -np.inf
    return log_probs


def search(log_probs, lengths=LENGTHS, blank=0, **options):
    """Search in float64, with NaN in the padded frames."""
    padding = np.arange(len(log_probs))[:, None] >= lengths
    with jax.enable_x64(True):
        return jaxctc.beam_search_decode(np.where(padding[..., None], np.nan, log_probs), lengths, blank, **options)


def readout(beams) -> list[tuple[tuple[int, ...], float]]:
    """Return labels and log probability of each used place in the beam of one sequence, the best first."""
    rows = [np.asarray(x) for x in (beams.labels, beams.lengths, beams.log_probs)]
    used = rows[2] > -np.inf
    assert (np.diff(rows[2][used]) <= 0).all()
    assert (rows[1][~used] == 0).all()
    for labels, length in zip(*rows[:2], strict=True):
        assert (labels[:length] >= 0).all()
        assert (labels[length:] == -1).all()
    return [(tuple(labels[:n].tolist()), float(p)) for labels, n, p in zip(*rows, strict=True) if p > -np.inf]


def sequences(results):
    """Return the results of a batch one by one, in numpy: JAX would compile each slice."""
    results = jax.tree.map(np.asarray, results)
    return [jax.tree.map(lambda x, n=n: x[n], results) for n in range(len(results.lengths))]


def assert_same(got, want) -> None:
    """Compare labels and probabilities; equally probable ones may come in any order."""
    assert [p for _, p in got] == pytest.approx([p for _, p in want], rel=1e-9, abs=1e-9)
    assert dict(got) == pytest.approx(dict(want), rel=1e-9, abs=1e-9)


def no_score(prefix: tuple[int, ...], label: int) -> float:
    del prefix, label
    return 0.0


def every_labelling(log_probs: np.ndarray, blank: int, score=no_score) -> list[tuple[tuple[int, ...], float]]:
    """Return every labelling and its log probability by all paths, the best first."""
    frames, found = np.arange(len(log_probs)), []
    for target, paths in paths_by_target(*log_probs.shape, blank).items():
        total = np.exp(log_probs[frames, paths].sum(axis=1)).sum()
        added = sum(score(target[:i], label) for i, label in enumerate(target))
        if total > 0 and added > -np.inf:
            found.append((target, math.log(total) + added))
    return sorted(found, key=lambda item: -item[1])


def plain_search(log_probs: np.ndarray, blank: int, width: int, score=no_score) -> list[tuple[tuple[int, ...], float]]:
    """Search by algorithm 1 of Hannun et al. 2014, with a dictionary."""
    beam = {(): (0.0, -np.inf)}
    for frame in log_probs:
        after: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_label) in beam.items():
            both = np.logaddexp(in_blank, in_label)
            for label, p in enumerate(frame):
                if label == blank:
                    grown, kind, total = prefix, 0, both + p
                else:
                    grown, kind = (*prefix, label), 1
                    repeats = prefix[-1:] == (label,)
                    total = (in_blank if repeats else both) + p + score(prefix, label)
                    if repeats:
                        entry = after.setdefault(prefix, [-np.inf, -np.inf])
                        entry[1] = np.logaddexp(entry[1], in_label + p)
                entry = after.setdefault(grown, [-np.inf, -np.inf])
                entry[kind] = np.logaddexp(entry[kind], total)
        best = sorted(after.items(), key=lambda item: -np.logaddexp(*item[1]))[:width]
        beam = {prefix: tuple(parts) for prefix, parts in best if max(parts) > -np.inf}
    return [(prefix, float(np.logaddexp(*parts))) for prefix, parts in beam.items()]


def mood(prefix: tuple[int, ...], label: int) -> float:
    """Return a score that depends on all of the prefix, and that lets no label 2 follow label 1."""
    if prefix[-1:] == (1,) and label == 2:
        return -np.inf
    return math.sin(sum((i + 1) * (k + 1) for i, k in enumerate(prefix)) + label)


@functools.partial(jax.jit, static_argnames="classes")
def traced_mood(labels, lengths, classes=C):
    place = jnp.arange(labels.shape[1], dtype=jnp.int32)[None]
    weighted = jnp.where(place < lengths[:, None], (place + 1) * (labels + 1), 0).sum(axis=1, dtype=jnp.int32)
    label = jnp.arange(classes, dtype=jnp.int32)[None]
    scores = jnp.sin((weighted[:, None] + label).astype(jnp.float64))
    last = labels[jnp.arange(len(lengths)), lengths - 1]
    return jnp.where((last == 1)[:, None] & (label == 2), -jnp.inf, scores)


@pytest.mark.parametrize("blank", range(C))
def test_greedy_spells_the_best_path(blank):
    for seed in range(5):
        log_probs = draw(seed, (12, N, C))
        lengths = np.array([12, 0, 7])
        padded = np.where(np.arange(12)[:, None, None] >= lengths[:, None], np.nan, log_probs)
        decoded = jaxctc.greedy_decode(np.swapaxes(padded, 0, 1).astype(np.float32), lengths, blank, batch_first=True)
        assert (decoded.labels.dtype, decoded.labels.shape) == (jnp.int32, (N, 12))
        for n, one in enumerate(sequences(decoded)):
            inside = log_probs[: lengths[n], n]
            labels = spells(tuple(inside.argmax(axis=1)), blank)
            assert one.labels.tolist() == [*labels, *[-1] * (12 - len(labels))]
            assert one.lengths == len(labels)
            assert float(one.log_probs) == pytest.approx(inside.max(axis=1).sum(), rel=1e-5)


def test_greedy_takes_the_first_of_equals_and_nan_changes_one_log_probability():
    log_probs = np.array([[-1, -1, -9], [-9, -1, -1], [-1, -9, -1]], np.float32)
    decoded = jaxctc.greedy_decode(log_probs, 3, blank=2)
    assert decoded.labels.tolist() == [0, 1, 0]
    assert decoded.log_probs == -3
    batch = np.stack([log_probs, log_probs], axis=1)
    batch[1, 0, 2] = np.nan  # it counts as the best class: the blank here
    decoded = jaxctc.greedy_decode(batch, 3, blank=2)
    assert decoded.labels.tolist() == [[0, 0, -1], [0, 1, 0]]
    np.testing.assert_array_equal(decoded.log_probs, [np.nan, -3])


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_every_labelling(blank):
    for seed in range(4):
        log_probs = draw(seed, holes=seed % 2 == 1)
        beams = search(log_probs, blank=blank, beam_width=EVERY_PREFIX)
        for n, one in enumerate(sequences(beams)):
            assert_same(readout(one), every_labelling(log_probs[: LENGTHS[n], n], blank))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 4e-3), ("float32", 1e-6)])
def test_a_wide_beam_has_the_derivatives_of_the_losses(dtype, tolerance):
    scores = jnp.asarray(draw(0, (T, 1, C)), dtype)
    beams = jaxctc.beam_search_decode(scores, [T], beam_width=EVERY_PREFIX)
    weights = np.array([0.5, 0, -1, 2], np.float32)

    def risk(scores):
        found = jaxctc.beam_search_decode(scores, [T], beam_width=EVERY_PREFIX)
        return (weights * jnp.exp(found.log_probs[0, :4])).sum()

    def by_losses(scores):
        labels, lengths = beams.labels[0, :4], beams.lengths[0, :4]
        losses = jaxctc.ctc_loss(jnp.repeat(scores, 4, 1), jnp.maximum(labels, 0), [T] * 4, lengths, reduction="none")
        return (weights * jnp.exp(-losses)).sum()

    found, expected = (jax.grad(f)(scores).astype(jnp.float32) for f in (risk, by_losses))
    assert (jnp.abs(expected) > 0.01).any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_labellings_of_probability_zero_are_left_out():
    log_probs = draw(0)
    log_probs[2] = -np.inf
    beams = search(log_probs, beam_width=EVERY_PREFIX)
    assert [len(readout(one)) for one in sequences(beams)] == [0, 1, 0]
    masked = np.maximum(log_probs, np.finfo(np.float32).min)
    np.testing.assert_array_equal(search(masked, beam_width=EVERY_PREFIX).log_probs, beams.log_probs)


@pytest.mark.parametrize(("classes", "width"), [(12, 3), (3, 4)])
def test_a_narrow_beam_is_the_plain_search(classes, width):
    """With 12 classes not all extend a prefix; with 3 classes prefixes are dropped, come back and merge."""
    lengths = np.array([14, 9, 14])
    for seed in range(6):
        log_probs = draw(seed, (14, N, classes), holes=seed % 2 == 1)
        beams = search(log_probs, lengths, blank=1, beam_width=width)
        for n, one in enumerate(sequences(beams)):
            assert_same(readout(one), plain_search(log_probs[: lengths[n], n], 1, width))


def test_a_narrow_beam_is_a_lower_bound():
    log_probs = draw(1)
    exact = [dict(every_labelling(log_probs[:n, i], 0)) for i, n in enumerate(LENGTHS)]
    found = [readout(one) for one in sequences(search(log_probs, beam_width=3))]
    gaps = [exact[i][labels] - p for i, rows in enumerate(found) for labels, p in rows]
    assert min(gaps) > -1e-12
    assert max(gaps) > 1e-3


def test_score_function():
    for seed in range(3):
        log_probs = draw(seed, holes=seed == 1)
        wide = search(log_probs, beam_width=EVERY_PREFIX, score_function=traced_mood)
        narrow = search(log_probs, beam_width=3, score_function=traced_mood)
        for n, (one, few) in enumerate(zip(sequences(wide), sequences(narrow), strict=True)):
            inside = log_probs[: LENGTHS[n], n]
            assert_same(readout(one), every_labelling(inside, 0, mood))
            assert_same(readout(few), plain_search(inside, 0, 3, mood))


def test_score_function_may_close_over_traced_arrays():
    """A model's parameters reach it by closure. Its scores of the blank are ignored."""

    @jax.jit
    def decode(table):
        def score(labels, lengths):
            last = labels[jnp.arange(len(lengths)), lengths - 1]
            return table[last].at[:, 0].set(jnp.nan)

        return jaxctc.beam_search_decode(draw(0)[:, 0].astype(np.float32), T, beam_width=3, score_function=score)

    table = np.zeros((C, C), np.float32)
    plain = jaxctc.beam_search_decode(draw(0)[:, 0].astype(np.float32), T, beam_width=3)
    np.testing.assert_array_equal(decode(table).labels, plain.labels)
    np.testing.assert_array_equal(decode(table).log_probs, plain.log_probs)
    assert readout(decode(table - np.float32(100)))[0][0] == ()
    for bad in (np.nan, np.inf):
        assert np.isnan(decode(table + np.float32(bad)).log_probs).all()


def test_equals_come_in_a_fixed_order():
    """The prefix that was not extended comes first; then the extended prefix decides, then the class."""
    beams = jaxctc.beam_search_decode(np.zeros((T, N, C), np.float32), 1, beam_width=3)
    assert [labels for labels, _ in readout(sequences(beams)[0])] == [(), (1,), (2,)]


@pytest.mark.parametrize("decode", [jaxctc.greedy_decode, functools.partial(jaxctc.beam_search_decode, beam_width=3)])
def test_all_forms_of_the_arguments_agree(decode):
    log_probs = draw(3).astype(np.float32)
    batch = decode(log_probs, LENGTHS)
    others = [
        decode(log_probs, LENGTHS.tolist()),
        decode(np.swapaxes(log_probs, 0, 1), LENGTHS.astype(np.int8), batch_first=True),
        jax.jit(jax.vmap(decode, in_axes=(1, 0)))(log_probs, LENGTHS),
        jax.tree.map(lambda *rows: np.stack(rows), *(decode(log_probs[:, n], LENGTHS[n]) for n in range(N))),
    ]
    for other in others:
        assert type(other) is type(batch)
        np.testing.assert_array_equal(other.labels, batch.labels)
        np.testing.assert_array_equal(other.lengths, batch.lengths)
        np.testing.assert_allclose(other.log_probs, batch.log_probs, rtol=1e-6)
    np.testing.assert_array_equal(decode(log_probs, T).labels[0], batch.labels[0])


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("decode", [jaxctc.greedy_decode, functools.partial(jaxctc.beam_search_decode, beam_width=3)])
def test_dtypes(decode, dtype):
    rounded = np.asarray(jnp.asarray(draw(4), jnp.bfloat16).astype(jnp.float32))
    want = decode(rounded, LENGTHS)
    with jax.enable_x64(dtype == jnp.float64):
        got = decode(jnp.asarray(rounded, dtype), LENGTHS)
    assert got.log_probs.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert got.labels.dtype == got.lengths.dtype == jnp.int32
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.log_probs, want.log_probs, rtol=1e-6 if dtype == jnp.float64 else 1e-3)


@pytest.mark.parametrize("decode", [jaxctc.greedy_decode, functools.partial(jaxctc.beam_search_decode, beam_width=3)])
def test_illegal_lengths_under_jit_make_their_rows_nan(decode):
    log_probs = draw(3).astype(np.float32)
    jitted = jax.jit(decode)
    legal = jax.tree.map(np.asarray, decode(log_probs, T))
    for bad in (-1, T + 1, np.iinfo(np.int32).min):
        marked = jax.tree.map(np.asarray, jitted(log_probs, np.array([T, bad, T], np.int32)))
        assert np.isnan(marked.log_probs[1]).all()
        assert (marked.labels[1] == -1).all()
        assert (marked.lengths[1] == 0).all()
        for n in (0, 2):
            np.testing.assert_array_equal(marked.labels[n], legal.labels[n])
            np.testing.assert_array_equal(marked.log_probs[n], legal.log_probs[n])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("frame", [0, 3])
def test_a_bad_score_makes_the_beams_of_its_sequence_nan(bad, frame):
    log_probs = draw(3).astype(np.float32)
    legal = jax.tree.map(np.asarray, jaxctc.beam_search_decode(log_probs, T, beam_width=3))
    log_probs[frame, 1, 2] = bad
    marked = jax.tree.map(np.asarray, jaxctc.beam_search_decode(log_probs, T, beam_width=3))
    assert np.isnan(marked.log_probs[1]).all()
    assert (marked.labels[1] == -1).all()
    assert (marked.lengths[1] == 0).all()
    for n in (0, 2):
        np.testing.assert_array_equal(marked.log_probs[n], legal.log_probs[n])


@pytest.mark.parametrize(("shape", "frames"), [((0, 2, 3), 0), ((4, 0, 3), 4), ((4, 2, 1), 4)])
def test_nothing_to_decode(shape, frames):
    decoded = jaxctc.greedy_decode(np.zeros(shape, np.float32), frames)
    beams = jaxctc.beam_search_decode(np.zeros(shape, np.float32), frames, beam_width=3)
    assert decoded.labels.shape == (shape[1], shape[0])
    assert beams.labels.shape == (shape[1], 3, shape[0])
    assert (np.asarray(decoded.lengths) == 0).all()
    assert (np.asarray(decoded.log_probs) == 0).all()
    np.testing.assert_array_equal(beams.log_probs, np.tile([0, -np.inf, -np.inf], (shape[1], 1)))


class Unhashable:
    __hash__ = None

    def __call__(self, labels, lengths):
        """Raise nothing: it is never called."""


ILLEGAL = [
    ({"input_lengths": [6, 1, 1]}, ValueError, r"input_lengths\[0\] is 6, .* T = 5 frames: .* \[0, 5\].* subsampling"),
    ({"input_lengths": [6]}, ValueError, r"input_lengths has shape \(1,\), .* N = 3 .* \(3,\)"),
    ({"input_lengths": 2.0}, TypeError, r"input_lengths must be .* integer type, got float64"),
    ({"blank": 4}, ValueError, r"blank is 4, .* C = 4 classes: .* \[0, 4\)"),
    ({"batch_first": 1}, TypeError, r"batch_first must be True or False, .* got 1"),
    ({"log_probs": np.zeros((T, N, C), int)}, TypeError, r"log_probs must be of a floating-point type"),
    ({"log_probs": np.zeros((T, C), np.float32)}, ValueError, r"input_lengths must be one number .* \(3,\)"),
]
ILLEGAL_BEAMS = [
    ({"beam_width": 0}, ValueError, r"beam_width is 0: it must be at least 1"),
    ({"beam_width": 2.0}, TypeError, r"beam_width must be .* a Python int; got 2.0"),
    ({"score_function": 3}, TypeError, r"score_function must be a function of labels and lengths, or None; got 3"),
    ({"score_function": Unhashable()}, TypeError, r"score_function must be hashable.* Pass a function that calls it"),
    (
        {"score_function": lambda labels, lengths: jnp.zeros((3, 5))},  # noqa: ARG005
        ValueError,
        r"score_function returned .* \(3, 5\): it must return \(K, C\) = \(16, 4\)",
    ),
    (
        {"score_function": lambda labels, lengths: jnp.zeros((16, 4), int)},  # noqa: ARG005
        TypeError,
        r"score_function must return .* floating-point type, got int32.*astype",
    ),
]
CASES = [(jaxctc.greedy_decode, *case) for case in ILLEGAL]
CASES += [(jaxctc.beam_search_decode, *case) for case in ILLEGAL + ILLEGAL_BEAMS]


@pytest.mark.parametrize(
    ("decode", "change", "exception", "message"), CASES, ids=[f"{f.__name__} {m[:24]}" for f, _, _, m in CASES]
)
def test_illegal_argument(decode, change, exception, message):
    arguments = {"log_probs": np.zeros((T, N, C), np.float32), "input_lengths": LENGTHS} | change
    with pytest.raises(exception, match=message):
        decode(**arguments)


def test_a_traced_width_is_an_error_that_says_how():
    with pytest.raises(TypeError, match=r"beam_width must be .* known when tracing.*static_argnames=\('beam_width',\)"):
        jax.jit(lambda k: jaxctc.beam_search_decode(np.zeros((T, C), np.float32), T, beam_width=k))(3)


@pytest.fixture
def emission(shared_data):
    """Return log probabilities of one utterance by a trained speech recogniser, its alphabet and the transcript."""
    with np.load(shared_data / "libri_emission.npz") as stored:
        return log_softmax(stored["logits"]), stored["labels"].tolist(), str(stored["text"])


def text(labels, alphabet) -> str:
    return "".join(alphabet[k] for k in np.asarray(labels) if k >= 0)


def test_speech(emission):
    log_probs, alphabet, transcript = emission
    frames, blank = len(log_probs), len(alphabet) - 1
    with jax.enable_x64(True):
        assert text(jaxctc.greedy_decode(log_probs, frames, blank).labels, alphabet) == transcript
        beams = jaxctc.beam_search_decode(log_probs, frames, blank)
    assert text(beams.labels[0], alphabet) == transcript
    assert_same(readout(beams), plain_search(log_probs, blank, 16))


@pytest.fixture
def keras():
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorflow", reason="Keras decodes with TensorFlow, which is not installed")
        return pytest.importorskip("keras", reason="Keras is not installed")


def by_keras(keras, log_probs, lengths, blank, **options):
    """Return labels (N, K, T) and scores."""
    inputs = np.swapaxes(log_probs, 0, 1).astype(np.float32)
    labels, scores = keras.ops.ctc_decode(inputs, lengths, mask_index=blank, **options)
    return np.swapaxes(np.array(labels), 0, 1), np.array(scores)


@pytest.mark.parametrize("blank", [0, 3])
def test_against_keras(keras, blank):
    """The beam is so wide that no prefix is dropped: TensorFlow may drop others than this library."""
    lengths = np.array([5, 3, 4], np.int32)
    for seed in range(3):
        log_probs = draw(seed).astype(np.float32)
        labels, scores = by_keras(keras, log_probs, lengths, blank, strategy="greedy")
        decoded = jaxctc.greedy_decode(log_probs, lengths, blank)
        np.testing.assert_array_equal(labels[:, 0], decoded.labels)
        np.testing.assert_allclose(-scores[:, 0], decoded.log_probs, rtol=1e-5)

        options = {"strategy": "beam_search", "beam_width": EVERY_PREFIX, "top_paths": 8}
        labels, scores = by_keras(keras, log_probs, lengths, blank, **options)
        beams = jaxctc.beam_search_decode(log_probs, lengths, blank, beam_width=EVERY_PREFIX)
        np.testing.assert_array_equal(labels, beams.labels[:, :8])
        np.testing.assert_allclose(scores, beams.log_probs[:, :8], rtol=1e-5, atol=1e-5)


def test_speech_against_keras(keras, emission):
    log_probs, alphabet, transcript = emission
    blank, lengths = len(alphabet) - 1, np.array([len(log_probs)], np.int32)
    options = {"strategy": "beam_search", "beam_width": 16, "top_paths": 3}
    labels, scores = by_keras(keras, log_probs[:, None], lengths, blank, **options)
    beams = jaxctc.beam_search_decode(log_probs.astype(np.float32), len(log_probs), blank)
    assert text(labels[0, 0], alphabet) == transcript
    np.testing.assert_array_equal(labels[0], beams.labels[:3])
    assert scores[0, 0] == pytest.approx(float(beams.log_probs[0]), abs=1e-4)


def test_speech_against_pyctcdecode(emission):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyctcdecode = pytest.importorskip("pyctcdecode", reason="pyctcdecode is not installed")
    log_probs, alphabet, transcript = emission
    decoder = pyctcdecode.build_ctcdecoder([*alphabet[:-1], ""])
    best = decoder.decode_beams(log_probs, beam_width=16, beam_prune_logp=-1e9, token_min_logp=-1e9)[0]
    beams = jaxctc.beam_search_decode(log_probs.astype(np.float32), len(log_probs), len(alphabet) - 1)
    assert best[0] == text(beams.labels[0], alphabet) == transcript


def test_a_frame_costs_the_same_however_many_there_are():
    """No array of a frame's step but the tree, to which it adds one row, has a size that grows with T."""

    def sizes(frames):
        traced = jax.make_jaxpr(functools.partial(jaxctc.beam_search_decode, beam_width=3))(
            np.zeros((frames, 2, 5), np.float32), np.full(2, frames)
        )
        equations = list(traced.jaxpr.eqns)
        while not any(equation.primitive.name == "scan" for equation in equations):
            equations = [
                e for x in equations for inner in jax.extend.core.jaxprs_in_params(x.params) for e in inner.eqns
            ]
        search = next(equation for equation in equations if equation.primitive.name == "scan")
        found = {}
        for equation in search.params["jaxpr"].eqns:
            for x in equation.outvars:
                found.setdefault(equation.primitive.name, set()).add(x.aval.size)
        return found

    few, many = sizes(50), sizes(90)
    assert {name for name in few if few[name] != many[name]} == {"scatter"}
