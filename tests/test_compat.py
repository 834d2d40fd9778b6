"""Compare each function with the one whose signature it has."""

import functools
import os
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import losses as optax

from jaxctc import compat
from jaxctc._inputs import default_implementation
from jaxctc._kernels import dispatch
from jaxctc._lattice import indexing

N, T, C, S = 12, 9, 5, 4
FEW, REPEATS = 0, 1
"""The first two rows are infeasible: the second has too few frames because of its repeats alone."""


def batch(blank=0, dtype=np.float32):
    """Return sequences of every length, with empty targets and repeated labels among them."""
    rng = np.random.default_rng(blank)
    logits = (2 * rng.normal(size=(N, T, C))).astype(dtype)
    labels = rng.choice([c for c in range(C) if c != blank][:3], (N, S)).astype(np.int32)
    frames = rng.integers(S, T + 1, N).astype(np.int32)
    counts = rng.integers(0, S + 1, N).astype(np.int32)
    labels[REPEATS] = labels[REPEATS, 0]
    frames[[FEW, REPEATS, 2, 3]], counts[[FEW, REPEATS, 2, 3]] = [S - 1, S, 0, T], [S, S, 0, 0]
    return logits, labels, frames, counts


def paddings(lengths, most):
    return (np.arange(most) >= lengths[:, None]).astype(np.float32)


def padded(blank=0, dtype=np.float32, *, holes=False):
    """Return a batch with the arguments of optax; with `holes` the padded frames stand anywhere."""
    logits, labels, frames, counts = batch(blank, dtype)
    of_frames = paddings(frames, T)
    if holes:
        of_frames = np.random.default_rng(1).permuted(of_frames, axis=1)
    return logits, of_frames, labels, paddings(counts, S)


@contextmanager
def as_peers_like_it():
    """Allow what the other libraries need: implicit promotions, and warnings of their own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FEASIBLE = np.arange(N) > REPEATS
OURS = np.linspace(1, 2, N, dtype=np.float32)
"""The weight of each loss in the sum, so that a gradient in the wrong row shows."""
THEIRS = np.where(FEASIBLE, OURS, 0)
"""The weights without infeasible rows, of which the originals have gradients of their own."""


@functools.cache
def with_gradient(function, **options):
    """Return a function of logits, other arrays and a weight for each loss, which JAX compiles once."""

    def total(logits, others, weights):
        losses = function(logits, *others, **options)
        return jnp.where(weights == 0, 0, weights * losses).sum(), losses

    return jax.jit(jax.grad(total, has_aux=True))


def same(ours, theirs):
    """Compare losses and gradients; those of infeasible rows must be inf and 0."""
    (gradient, losses), (slope, want) = ours, theirs
    np.testing.assert_allclose(losses, np.where(FEASIBLE, want, np.inf), rtol=2e-6)
    np.testing.assert_allclose(gradient, slope, atol=4e-6)


@pytest.mark.parametrize("holes", [False, True])
def test_optax(holes):
    blank = C - 1
    logits, *others = padded(blank, holes=holes)
    with as_peers_like_it():
        want = with_gradient(optax.ctc_loss, blank_id=blank)(logits, others, THEIRS)
    same(with_gradient(compat.optax_ctc_loss, blank_id=blank)(logits, others, OURS), want)


def moved_to_the_end(of_frames):
    """Return, for each frame of a batch whose padded frames come last, the frame that it was before."""
    return np.argsort(of_frames, axis=1, kind="stable")


@pytest.mark.parametrize("implementation", [None, "reference", "gpu-loops", "products"])
def test_padded_frames_anywhere_are_as_if_they_came_last(implementation, monkeypatch):
    """In loss, gradient and a product with the Hessian, for traced paddings, which keep the logits where they are."""
    if implementation == "gpu-loops":
        monkeypatch.setattr(dispatch, "REGISTERED", dispatch.REGISTERED.copy())
        dispatch.register_gpu_loops("gpu-loops", turn=2)
    if implementation == "products":
        monkeypatch.setattr(indexing, "on_tpu", lambda multiplied, _: multiplied())
    monkeypatch.setattr(default_implementation, "_default", implementation if implementation != "products" else None)
    logits, of_frames, *labels = padded(holes=True)
    logits[3, of_frames[3] == 1] = np.nan
    order = moved_to_the_end(of_frames)
    tangent = np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)

    @jax.jit
    def everything(logits, of_frames, tangent):
        def total(logits):
            losses = compat.optax_ctc_loss(logits, of_frames, *labels)
            return jnp.where(FEASIBLE, OURS * losses, 0).sum(), losses

        gradient, change, losses = jax.jvp(jax.grad(total, has_aux=True), (logits,), (tangent,), has_aux=True)
        return losses, gradient, change

    rows = np.arange(N)[:, None]
    want = everything(logits[rows, order], of_frames[rows, order], tangent[rows, order])
    found = everything(logits, of_frames, tangent)
    assert np.isfinite(want[0][2:]).all()
    np.testing.assert_allclose(found[0], want[0], rtol=2e-6)
    for x, y in zip(found[1:], want[1:], strict=True):
        np.testing.assert_allclose(x[rows, order], y, atol=2e-6, rtol=2e-6)


@pytest.mark.full
def test_traced_paddings_take_no_copy_of_the_logits():
    frames, classes = 120, 512
    shapes = (N, frames, classes), (N, frames), (N, S), (N, S)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.int32 if shape is shapes[2] else jnp.float32) for shape in shapes]
    function = jax.jit(jax.value_and_grad(lambda *problem: compat.optax_ctc_loss(*problem).sum()))
    memory = function.lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 4


@pytest.mark.parametrize("holes", [False, True])
def test_optax_forward_probabilities(holes, x64):
    """Infeasible targets have forward variables as well, such as one that is longer than the input."""
    del x64
    most = T - 4
    logits, of_frames, labels, of_labels = padded(1, np.float64, holes=holes)
    labels, of_labels = np.hstack([labels, labels]), np.hstack([of_labels, np.ones_like(of_labels)])
    of_labels[FEW] = 0
    arguments = logits[:, :most], of_frames[:, :most], labels, of_labels
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(most, N, 2 * S + 1)), rng.normal(size=(most, N, 2 * S))
    with as_peers_like_it():
        slope, want = _through_states(optax.ctc_loss_with_forward_probs)(*arguments, weights)
    gradient, found = _through_states(compat.optax_ctc_loss_with_forward_probs)(*arguments, weights)
    np.testing.assert_allclose(gradient, slope, atol=1e-11)
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x, jnp.where(jnp.abs(y) < LARGE, y, jnp.sign(y) * jnp.inf), rtol=1e-12)
    assert np.isposinf(found[0][:2]).all()


LARGE = 5e4
"""The magnitude beyond which a score of optax stands for probability zero."""


@functools.cache
def _through_states(function):
    """Return the gradient of the states alone: `test_optax` tests that of the losses."""

    def total(logits, of_frames, labels, of_labels, weights):
        found = function(logits, of_frames, labels, of_labels, blank_id=1)
        pairs = zip(found[1:], weights, strict=True)
        return sum((jnp.where(jnp.abs(x) < LARGE, x, 0) * weight).sum() for x, weight in pairs), found

    return jax.jit(jax.grad(total, has_aux=True))


def test_illegal_optax_arguments_under_jit_make_their_rows_nan():
    arguments = padded()

    @jax.jit
    def ours(*arguments):
        found = compat.optax_ctc_loss_with_forward_probs(*arguments)
        return compat.optax_ctc_loss(*arguments), *(jnp.moveaxis(x, -2, 0) for x in found[1:])

    want = ours(*arguments)
    logits, of_frames, labels, of_labels = (x.copy() for x in arguments)
    labels[4, 0], of_labels[4] = C, 0
    of_frames[5, 0] = 0.5
    of_labels[6] = [1, 0, 0, 0]
    for found, before in zip(ours(logits, of_frames, labels, of_labels), want, strict=True):
        assert jnp.isnan(found[4:7]).all()
        np.testing.assert_array_equal(np.delete(found, [4, 5, 6], 0), np.delete(before, [4, 5, 6], 0))
    assert jnp.isposinf(want[0][0])


@pytest.mark.parametrize("compiled", [False, True])
def test_no_loss_is_a_negative_zero(compiled):
    """The target is certain, or it is empty and has no frames."""
    logits = np.full((2, 2, 3), -np.inf, np.float32)
    logits[:, :, 1] = 0
    target, frames, counts = np.array([[1], [1]]), np.array([2, 0]), np.array([1, 0])
    of_frames, of_labels = paddings(frames, 2), paddings(counts, 1)
    for function in (
        lambda x: compat.optax_ctc_loss(x, of_frames, target, of_labels),
        lambda x: compat.optax_ctc_loss_with_forward_probs(x, of_frames, target, of_labels)[0],
        lambda x: compat.keras_ctc_loss(target, x, counts, frames),
        lambda x: compat.tensorflow_ctc_loss(target, x, counts, frames, False),
    ):
        losses = (jax.jit(function) if compiled else function)(logits)
        np.testing.assert_array_equal(losses, 0)
        assert not np.signbit(losses).any()


def test_no_frames():
    problem = np.zeros((2, 0, 3), np.float32), np.zeros((2, 0)), np.array([[1], [1]]), np.array([[0], [1]])
    losses, blank, label = jax.jit(compat.optax_ctc_loss_with_forward_probs)(*problem)
    assert losses.tolist() == [np.inf, 0]
    assert (blank.shape, label.shape) == ((0, 2, 2), (0, 2, 1))


def test_keras(monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    with as_peers_like_it():
        keras = pytest.importorskip("keras", reason="keras is not installed")
    if keras.backend.backend() != "jax":
        pytest.skip("keras runs on another backend")
    blank = 2
    logits, labels, frames, counts = batch(blank)

    def theirs(logits):
        return keras.ops.ctc_loss(labels, logits, counts, frames, mask_index=blank)

    def ours(logits):
        return compat.keras_ctc_loss(labels, logits, counts, frames, blank)

    with as_peers_like_it():
        want = with_gradient(theirs)(logits, (), THEIRS)
    same(with_gradient(ours)(logits, (), OURS), want)


@pytest.mark.parametrize(("blank_index", "time_major"), [(None, True), (-1, False), (2, True)])
def test_tensorflow(blank_index, time_major):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with as_peers_like_it():
        tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    logits, labels, frames, counts = batch((blank_index or 0) % C)
    logits = logits.swapaxes(0, 1) if time_major else logits
    options = {"logits_time_major": time_major, "blank_index": blank_index}
    with as_peers_like_it(), tf.GradientTape() as tape:
        leaf = tf.Variable(logits)
        want = tf.nn.ctc_loss(labels, leaf, counts, frames, **options)
        slope = tape.gradient(tf.where(FEASIBLE, THEIRS * want, 0), leaf).numpy()

    def ours(logits):
        return compat.tensorflow_ctc_loss(labels, logits, counts, frames, **options)

    same(with_gradient(ours)(logits, (), OURS), (slope, want))


class Sparse(NamedTuple):
    """Hold labels as `tf.SparseTensor` does."""

    indices: np.ndarray
    values: np.ndarray
    dense_shape: np.ndarray


def sparse(labels, counts):
    inside = np.arange(S) < counts[:, None]
    return Sparse(np.argwhere(inside), labels[inside], np.array(labels.shape))


def test_sparse_labels_of_tensorflow():
    """Their values follow the columns, which may have gaps, and the order of the list does not count."""
    logits, labels, frames, counts = batch(1)
    given = sparse(labels, counts)
    shuffled = np.random.default_rng(0).permutation(len(given.values))
    gaps = Sparse((given.indices * [1, 2])[shuffled], given.values[shuffled], given.dense_shape * [1, 2])
    want = compat.tensorflow_ctc_loss(labels, logits, counts, frames, False, blank_index=1)
    for x in (given, gaps):
        np.testing.assert_array_equal(compat.tensorflow_ctc_loss(x, logits, None, frames, False, None, 1), want)
    with pytest.raises(TypeError, match=r"labels are sparse and traced.* Pass dense labels"):
        jax.jit(lambda x: compat.tensorflow_ctc_loss(x, logits, None, frames, False, None, 1))(given)


def test_tensorflow_takes_sparse_labels_and_a_hint_for_tpus():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with as_peers_like_it():
        tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    taken = FEASIBLE & (batch(1)[3] > 0)  # TensorFlow takes no empty target in a SparseTensor
    logits, labels, frames, counts = (x[taken] for x in batch(1))
    arguments = logits, counts, frames, False
    of_sparse = tf.SparseTensor(*sparse(labels, counts))
    with as_peers_like_it():
        want = tf.nn.ctc_loss(of_sparse, logits, None, frames, False, None, 1)
        hint = tf.nn.ctc_unique_labels(labels)
        hinted = tf.nn.ctc_loss(labels, *arguments, unique=hint, blank_index=1)
    np.testing.assert_allclose(compat.tensorflow_ctc_loss(of_sparse, logits, None, frames, False, None, 1), want, 2e-6)
    np.testing.assert_allclose(compat.tensorflow_ctc_loss(labels, *arguments, hint, 1), hinted, 2e-6)


def test_whole_numbers_in_floats():
    """Keras hands labels on in the type of the scores; what stands in the padding is nobody's label."""
    logits, labels, frames, counts = batch()
    of_frames, of_labels = paddings(frames, T), paddings(counts, S)
    floats = np.where(of_labels == 0, labels, np.nan)

    def each(labels, frames, counts):
        return (
            compat.optax_ctc_loss(logits, of_frames, labels, of_labels),
            compat.keras_ctc_loss(labels, logits, counts, frames),
            compat.tensorflow_ctc_loss(labels, logits, counts, frames, False),
        )

    want = each(labels, frames, counts)
    compiled = jax.jit(each)
    for function, dtype in ((each, "float32"), (each, "float16"), (compiled, "float16")):
        given = [x.astype(dtype) for x in (floats, frames, counts)]
        np.testing.assert_array_equal(function(*given), want)
    fraction, row = given[0].copy(), int(np.argmax(counts))
    fraction[row, 0] += 0.5
    for found in compiled(fraction, *given[1:]):
        assert np.isnan(found).tolist() == [n == row for n in range(N)]
    for function in (_optax, _keras, _tensorflow):
        name = "target" if function is _keras else "labels"
        with pytest.raises(TypeError, match=rf"{name}\[{row}, 0\] = {fraction[row, 0]}: floats .* whole numbers"):
            function(**{name: fraction})


def test_negative_blanks_count_from_the_last_class():
    blank = C - 2
    logits, labels, *_ = batch(blank)
    for function in (
        lambda blank: _optax(logits=logits, labels=labels, blank_id=blank),
        lambda blank: _keras(output=logits, target=labels, mask_index=blank),
        lambda blank: _tensorflow(logits=logits, labels=labels, blank_index=blank),
    ):
        np.testing.assert_array_equal(function(-2), function(blank))


def of_keras(dtype=np.float32):
    """Return labels and logits with the conventions of `keras.losses.ctc`, and the lengths that they stand for."""
    logits, labels, _, counts = batch()
    return np.where(np.arange(S) < counts[:, None], labels, 0).astype(dtype), logits, counts


def test_keras_conventions():
    """The blank is 0, and so is the padding; all frames are read."""
    labels, logits, counts = of_keras()
    want = compat.keras_ctc_loss(labels, logits, counts, np.full(N, T))
    np.testing.assert_array_equal(compat.keras_ctc(labels, logits), want)
    hole, negative = labels.copy(), labels.copy()
    row = int(np.argmax(counts))
    hole[row, :2], negative[row, -1] = [0, 1], -1
    compiled = jax.jit(compat.keras_ctc)
    np.testing.assert_array_equal(compiled(labels, logits), want)
    for wrong in (hole, negative):
        assert np.isnan(compiled(wrong, logits)).tolist() == [n == row for n in range(N)]
    with pytest.raises(ValueError, match=rf"y_true\[{row}, 0\] is 0, before the label y_true\[{row}, 1\]: .* last"):
        compat.keras_ctc(hole, logits)
    with pytest.raises(ValueError, match=rf"y_true\[{row}, 3\] is -1, .* labels in y_true\[{row}\] = 4 is too long"):
        compat.keras_ctc(negative, logits)
    for wrong, message in (((labels[0], logits), "y_true must have shape"), ((labels, logits[0]), "y_pred must have")):
        with pytest.raises(ValueError, match=message):
            compat.keras_ctc(*wrong)


def test_a_keras_model_is_compiled_with_the_loss(monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    with as_peers_like_it():
        keras = pytest.importorskip("keras", reason="keras is not installed")
    if keras.backend.backend() != "jax":
        pytest.skip("keras runs on another backend")
    labels, logits, _ = of_keras()
    labels, logits = labels[FEASIBLE], logits[FEASIBLE]

    def trained(loss):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((T, C)), keras.layers.Dense(C)])
        model.compile("sgd", loss)
        return model.fit(logits, labels.astype(np.int32), epochs=3, batch_size=5, verbose=0).history["loss"]

    with as_peers_like_it():
        np.testing.assert_allclose(compat.keras_ctc(labels, logits), keras.losses.ctc(labels, logits), 2e-6)
        want, found = (trained(loss) for loss in (keras.losses.CTC(), compat.keras_ctc))
        np.testing.assert_allclose(found, want, 1e-5)
        assert found[-1] < found[0]


@pytest.mark.parametrize(("name", "shown"), [(None, "ctc_loss_dense"), ("speech", "speech")])
def test_profiles_show_the_tensorflow_name(name, shown):
    logits, labels, frames, counts = batch()
    function = functools.partial(compat.tensorflow_ctc_loss, logits_time_major=False, name=name)
    assert f"/{shown}/" in jax.jit(function).lower(labels, logits, counts, frames).as_text(debug_info=True)


def test_the_three_losses_agree():
    """This tests the order of the arguments, and other dtypes, where the originals are not installed."""
    logits, labels, frames, counts = batch()
    kinds = jnp.asarray(paddings(frames, T), bool), labels, jnp.asarray(paddings(counts, S), jnp.float16)

    @jax.jit
    def each(logits, *kinds):
        return (
            compat.optax_ctc_loss(logits, *kinds),
            compat.keras_ctc_loss(labels, logits, counts, frames),
            compat.tensorflow_ctc_loss(labels, logits, counts, frames, False, blank_index=-C),
            compat.tensorflow_ctc_loss(labels, logits.swapaxes(0, 1), counts, frames),
        )

    want, *others = each(jnp.asarray(logits, jnp.bfloat16), *kinds)
    assert want.dtype == jnp.float32
    for found in others:
        np.testing.assert_allclose(found, want, rtol=1e-6)


def test_torchaudio():
    torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is not installed")
    import torch

    blank = 2
    scores, labels, frames, counts = (x[2:] for x in batch(blank))
    found = compat.torchaudio_forced_align(scores, labels, frames, counts, blank)
    for n in np.flatnonzero(counts):
        row = torch.from_numpy(scores[None, n, : frames[n]]), torch.from_numpy(labels[None, n, : counts[n]])
        theirs = torchaudio.functional.forced_align(*row, blank=blank)
        for ours, want in zip(found, theirs, strict=True):
            np.testing.assert_array_equal(ours[n, : frames[n]], want[0])


def test_torchaudio_lengths_default_to_those_of_the_arrays():
    scores, labels, *_ = batch()

    def total(scores):
        found, of_frames = compat.torchaudio_forced_align(scores, labels)
        return of_frames.sum(), (found, compat.torchaudio_forced_align(scores, labels, T, S).labels)

    slope, (found, want) = jax.jit(jax.grad(total, has_aux=True))(scores)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(slope, jax.nn.one_hot(want, C))


def _optax(function=compat.optax_ctc_loss, **changes):
    names = ("logits", "logit_paddings", "labels", "label_paddings")
    return function(**dict(zip(names, padded(), strict=True)) | changes)


def _keras(**changes):
    logits, labels, frames, counts = batch()
    legal = {"target": labels, "output": logits, "target_length": counts, "output_length": frames}
    return compat.keras_ctc_loss(**legal | changes)


def _tensorflow(**changes):
    logits, labels, frames, counts = batch()
    legal = {"labels": labels, "logits": logits, "label_length": counts, "logit_length": frames}
    return compat.tensorflow_ctc_loss(**legal | {"logits_time_major": False} | changes)


def _torchaudio(**changes):
    logits, labels, frames, counts = (x[2:] for x in batch())
    legal = {"log_probs": logits, "targets": labels, "input_lengths": frames, "target_lengths": counts}
    return compat.torchaudio_forced_align(**legal | changes)


LABELS, FRAMES, COUNTS = batch()[1:]
HALF, HOLE = np.full((N, T), 0.5), np.tile([0, 1, 0, 1], (N, 1))
NONE = np.zeros((N, S))
SPARSE = sparse(LABELS, COUNTS)
ILLEGAL = [
    (_optax, {"logits": batch()[0][0]}, ValueError, r"logits must have three axes.* got .*\(9, 5\).* logits\[None\]"),
    (_optax, {"logits": np.zeros((N, T, C), int)}, TypeError, r"logits must be of a floating-point type"),
    (_optax, {"labels": LABELS[0]}, ValueError, r"labels must have shape \(12, S\).* got \(4,\)"),
    (_optax, {"labels": LABELS + 0.5}, TypeError, r"labels must be labels, an array of an integer type, got float64"),
    (
        _optax,
        {"label_paddings": NONE, "labels": LABELS * 0},
        ValueError,
        r"labels\[0, 0\] is 0.* the blank.* blank_id",
    ),
    (_optax, {"label_paddings": NONE, "labels": LABELS + C}, ValueError, r"labels\[0, 0\] .* the length by label_padd"),
    (_optax, {"logit_paddings": HALF}, ValueError, r"logit_paddings\[0, 0\] is 0.5: it must be 0, or 1 where logits"),
    (_optax, {"logit_paddings": HALF[0]}, ValueError, r"logit_paddings must have shape \(12, 9\), as logits .* \(9,\)"),
    (_optax, {"label_paddings": HALF}, ValueError, r"label_paddings must have shape \(12, 4\), as labels .* \(12, 9\)"),
    (
        _optax,
        {"label_paddings": HOLE},
        ValueError,
        r"label_paddings\[0\] is 0 at 2, behind a 1: padding must come last",
    ),
    (_optax, {"blank_id": C}, ValueError, r"blank_id is 5, but there are C = 5 classes: .* in \[-5, 5\), .* -1"),
    (_optax, {"blank_id": 1.5}, TypeError, r"blank_id must be .* a Python int; got 1.5"),
    (_optax, {"log_epsilon": -1e5}, TypeError, r"unexpected keyword argument 'log_epsilon'"),
    (_keras, {"output": HALF}, ValueError, r"output must have three axes.* \(12, 9\)"),
    (_keras, {"target": LABELS[:2]}, ValueError, r"target must have shape \(12, S\).* got \(2, 4\)"),
    (_keras, {"target_length": COUNTS + S}, ValueError, r"target_length\[0\] is 8, but target has S = 4 .* \[0, 4\]"),
    (_keras, {"output_length": FRAMES - T}, ValueError, r"output_length\[0\] is -6, but output has T = 9 .* \[0, 9\]"),
    (_keras, {"output_length": FRAMES[:2]}, ValueError, r"output_length has shape \(2,\).* must have shape \(12,\)"),
    (_keras, {"target": LABELS * 0}, ValueError, r"target\[0, 0\] is 0.* mask_index.* target_length\[0\] = 4 is too"),
    (_keras, {"mask_index": -6}, ValueError, r"mask_index is -6, .* in \[-5, 5\)"),
    (_tensorflow, {"blank_index": -6}, ValueError, r"blank_index is -6, .* in \[-5, 5\)"),
    (_tensorflow, {"blank_index": 5}, ValueError, r"blank_index is 5, .* in \[-5, 5\)"),
    (_tensorflow, {"logits_time_major": 1}, TypeError, r"logits_time_major must be True or False"),
    (_tensorflow, {"labels": LABELS[0]}, ValueError, r"labels must have shape \(12, S\)"),
    (_tensorflow, {"label_length": None}, TypeError, r"label_length must be an int or an array, got NoneType"),
    (_tensorflow, {"logit_length": FRAMES + T}, ValueError, r"logit_length\[0\] is 12, but logits has T = 9 frames"),
    (_tensorflow, {"labels": SPARSE}, ValueError, r"blank_index is None: with sparse labels"),
    (_tensorflow, {"labels": SPARSE, "blank_index": 0}, ValueError, r"label_length must be None with sparse"),
    (
        _tensorflow,
        {"labels": SPARSE._replace(dense_shape=np.array([N + 1, S])), "label_length": None, "blank_index": 0},
        ValueError,
        r"dense_shape of \(12, S\).* \(13, 4\)",
    ),
    (
        _tensorflow,
        {"labels": SPARSE._replace(indices=SPARSE.indices + S), "label_length": None, "blank_index": 0},
        ValueError,
        r"labels.indices must lie within dense_shape, \(12, 4\)",
    ),
    # As in torchaudio, a label raises ValueError and all else RuntimeError.
    (_torchaudio, {"targets": LABELS[2:] * 0}, ValueError, r"targets\[2, 0\] is 0, which is the blank"),
    (_torchaudio, {"targets": LABELS[2:] + C}, ValueError, r"targets\[2, 0\] is 8, .* \[0, 5\)"),
    (_torchaudio, {"targets": LABELS[2]}, RuntimeError, r"targets must have shape \(10, S\).* got \(4,\)"),
    (_torchaudio, {"targets": LABELS[2:] * 1.0}, RuntimeError, r"targets must be labels, .* got float64"),
    (_torchaudio, {"log_probs": HALF}, RuntimeError, r"log_probs must have three axes"),
    (_torchaudio, {"log_probs": np.zeros((N - 2, T, C), int)}, RuntimeError, r"log_probs must be of a floating-point"),
    (_torchaudio, {"input_lengths": 1}, RuntimeError, r"targets\[2\] cannot be aligned"),
    (_torchaudio, {"input_lengths": COUNTS[2:, None]}, RuntimeError, r"input_lengths has shape \(10, 1\)"),
    (_torchaudio, {"input_lengths": T + 1}, RuntimeError, r"input_lengths\[0\] is 10, .* \[0, 9\]"),
    (_torchaudio, {"target_lengths": S + 1}, RuntimeError, r"target_lengths\[0\] is 5, .* \[0, 4\]"),
    (_torchaudio, {"target_lengths": COUNTS[2:, None]}, RuntimeError, r"target_lengths has shape \(10, 1\)"),
    (_torchaudio, {"blank": -1}, RuntimeError, r"blank is -1, .* \[0, 5\)"),
    (_torchaudio, {"blank": 0.5}, RuntimeError, r"blank must be .* a Python int; got 0.5"),
]


@pytest.mark.parametrize(
    ("function", "change", "exception", "message"), ILLEGAL, ids=[f"{f.__name__} {m[:24]}" for f, _, _, m in ILLEGAL]
)
def test_illegal_argument(function, change, exception, message):
    with pytest.raises(exception, match=message) as caught:
        function(**change)
    if function is not _torchaudio:
        for ours in ("targets", "input_lengths", "target_lengths", "batch_first", "log_probs"):
            assert ours not in str(caught.value)


def test_illegal_argument_of_the_forward_probabilities():
    with pytest.raises(ValueError, match="blank_id is 5"):
        _optax(compat.optax_ctc_loss_with_forward_probs, blank_id=C)
