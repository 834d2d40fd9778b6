"""What every entry point keeps to, in every floating-point type and layout."""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import enumerate_paths, log_softmax

import jaxctc
from jaxctc._kernels import dispatch

T, N, C, S = 6, 4, 4, 3
BLANK = 2
TARGETS = np.array([[1, 1, 3], [0, 3, 0], [3, 0, 0], [0, 0, 0]], np.int32)
INPUT_LENGTHS = np.array([6, 4, 3, 5], np.int32)
TARGET_LENGTHS = np.array([3, 2, 1, 0], np.int32)
"""Repeats, padding of both kinds, an empty target: all feasible."""


class Results(NamedTuple):
    losses: np.ndarray
    gradient: np.ndarray
    """Frames first, whatever the layout; of each sequence's own loss."""


class Entry(NamedTuple):
    """One way into the library."""

    function: Callable[..., jax.Array]
    dtype: Any
    batch_first: bool
    implementation: str | None = None
    """"interpreted-tpu" and "interpreted-gpu" are the kernels for them, interpreted; "gpu-loops" those for GPUs."""

    @property
    def from_logits(self) -> bool:
        return self.function is jaxctc.ctc_loss_with_logits

    @property
    def accumulation_dtype(self) -> Any:
        return jnp.float64 if self.dtype == jnp.float64 else jnp.float32

    def draw(self, seed: int = 0, frames: int = T) -> np.ndarray:
        """Scores in float64 that the type can hold exactly."""
        drawn = np.random.default_rng(seed).normal(size=(frames, N, C)) * 2
        return drawn.astype(self.dtype).astype(np.float64)

    def scores(self, x: np.ndarray) -> jax.Array:
        made = np.asarray(x).astype(self.dtype)  # all of it in numpy: JAX would compile every step
        return jnp.asarray(np.swapaxes(made, 0, 1) if self.batch_first and made.ndim == 3 else made)

    def loss(self, x: np.ndarray, *problem: Any, blank: int = BLANK, reduction: str = "none", **options: Any):
        """As a user calls it, values at hand."""
        return self.function(
            self.scores(x),
            *problem,
            blank=blank,
            reduction=reduction,
            batch_first=self.batch_first,
            implementation=self.implementation,
            **options,
        )

    def with_gradient(self, x: np.ndarray, *problem: Any, blank: int = BLANK, **options: Any) -> Results:
        """Loss and gradient under `jax.jit`, all arrays traced."""
        static = self.static(blank=blank, **options)
        losses, gradient = _with_gradient(self.function, static, self.scores(x), *(jnp.asarray(p) for p in problem))
        assert losses.dtype == self.accumulation_dtype
        assert gradient.dtype == self.dtype
        gradient = np.asarray(gradient, np.float64)
        swapped = self.batch_first and gradient.ndim == 3
        return Results(np.asarray(losses, np.float64), np.swapaxes(gradient, 0, 1) if swapped else gradient)

    def alone(self, x: np.ndarray, *problem: Any) -> jax.Array:
        """The loss without a gradient under `jax.jit`, all arrays traced."""
        return _alone(self.function, self.static(blank=BLANK), self.scores(x), *(jnp.asarray(p) for p in problem))

    def traced(self, x: np.ndarray, *problem: Any) -> Results:
        """The same; and the loss without a gradient, which takes another road, is the same too."""
        results = self.with_gradient(x, *problem)
        alone = self.alone(x, *problem)
        assert alone.dtype == self.accumulation_dtype
        np.testing.assert_allclose(alone, results.losses, rtol=1e-6, atol=1e-6)
        return results

    def static(self, **options: Any) -> tuple[tuple[str, Any], ...]:
        return (("batch_first", self.batch_first), ("implementation", self.implementation), *options.items())


# One compilation for each shape and set of options: nearly all the time that these tests take.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _alone(function, static, scores, *problem):
    return function(scores, *problem, reduction="none", **dict(static))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _with_gradient(function, static, scores, *problem):
    losses, pull_back = jax.vjp(lambda x: function(x, *problem, reduction="none", **dict(static)), scores)
    return losses, pull_back(jnp.ones_like(losses))[0]


FUNCTIONS = [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits]
PLAIN = [Entry(f, jnp.float32, False) for f in FUNCTIONS]
ENTRIES = PLAIN + [
    Entry(f, dtype, batch_first)
    for f in FUNCTIONS
    for dtype, batch_first in ((jnp.float64, True), (jnp.bfloat16, True), (jnp.float16, False))
]
INTERPRETED = [
    Entry(jaxctc.ctc_loss, jnp.float32, False, "interpreted-tpu"),
    Entry(jaxctc.ctc_loss_with_logits, jnp.bfloat16, True, "interpreted-tpu"),
    Entry(jaxctc.ctc_loss, jnp.float32, False, "gpu-loops"),
    Entry(jaxctc.ctc_loss_with_logits, jnp.float64, True, "gpu-loops"),
]
REFERENCE = [
    Entry(jaxctc.ctc_loss, jnp.float32, False, "reference"),
    Entry(jaxctc.ctc_loss_with_logits, jnp.float64, True, "reference"),
    Entry(jaxctc.ctc_loss_with_logits, jnp.bfloat16, False, "reference"),
]
KERNELS = "interpreted-tpu", "interpreted-gpu"
SLOWLY_INTERPRETED = Entry(jaxctc.ctc_loss_with_logits, jnp.float32, False, "interpreted-gpu")


def name(entry: Entry) -> str:
    words = entry.function.__name__, entry.dtype.__name__, "NTC" if entry.batch_first else "TNC", entry.implementation
    return "-".join(filter(None, words))


QUICK = [
    *PLAIN,
    Entry(jaxctc.ctc_loss_with_logits, jnp.float64, True),
    Entry(jaxctc.ctc_loss, jnp.bfloat16, True),
    Entry(jaxctc.ctc_loss_with_logits, jnp.float16, False),
    REFERENCE[0],
]
"""Those in `make test`: each function, dtype, layout and implementation, but not each with each. All compile anew."""


def parameters(entries):
    def marks(entry):
        # What one entry compiles serves all its tests, where they run in one process.
        together = pytest.mark.xdist_group(name(entry))
        return [together] if entry in QUICK else [together, pytest.mark.full]

    return [pytest.param(e, id=name(e), marks=marks(e)) for e in entries]


@pytest.fixture(params=parameters(ENTRIES + REFERENCE + INTERPRETED))
def entry(request, monkeypatch):
    yield from _set_up(request, monkeypatch)


@pytest.fixture(params=parameters([*ENTRIES, *REFERENCE, *INTERPRETED, SLOWLY_INTERPRETED]))
def any_entry(request, monkeypatch):
    yield from _set_up(request, monkeypatch)


def _set_up(request, monkeypatch):
    if request.param.implementation == "gpu-loops":
        dispatch.register_gpu_loops("gpu-loops", turn=2)
    if request.param.implementation in KERNELS:
        _register_interpreted(request.param.implementation, monkeypatch)
    with jax.enable_x64(request.param.dtype == jnp.float64):
        yield request.param


def _register_interpreted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes of the kernels for TPUs and GPUs, interpreted, implementations of their own."""
    if name == "interpreted-gpu":
        pytest.importorskip("absl", reason="Pallas's Mosaic GPU needs absl-py")
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        from jaxctc._kernels import gpu as kernels
        from jaxctc._kernels import warpgroup

        monkeypatch.setattr(warpgroup, "THREADS", 8)
        interpret = InterpretGPUParams()
    else:
        from jaxctc._kernels import tpu as kernels

        interpret = True
    likelihood, posterior = (functools.partial(f, interpret=interpret) for f in (kernels.likelihood, kernels.posterior))
    dispatch.register(
        name, types.SimpleNamespace(likelihood=likelihood, posterior=posterior, PRECISION=jax.lax.Precision.HIGHEST)
    )


UNROUNDED = [QUICK[0], QUICK[2]]


@pytest.fixture(params=parameters(UNROUNDED))
def unrounded(request):
    """For what rounding has no part in, reductions and forms of arguments: each function, layout and accumulator."""
    with jax.enable_x64(request.param.dtype == jnp.float64):
        yield request.param


@pytest.fixture(params=parameters(PLAIN))
def plain(request):
    """For what is settled before the scores are looked at."""
    return request.param


def expected(entry: Entry, x: np.ndarray, blank: int = BLANK) -> Results:
    """By every path there is."""
    log_probs = log_softmax(x) if entry.from_logits else x
    losses, gradient = np.zeros(N), np.zeros_like(x)
    for n in range(N):
        live = log_probs[: INPUT_LENGTHS[n], n]
        losses[n], posterior = enumerate_paths(live, tuple(TARGETS[n, : TARGET_LENGTHS[n]]), blank)
        if np.isfinite(losses[n]):
            gradient[: len(live), n] = (np.exp(live) if entry.from_logits else 0) - posterior
    return Results(losses, gradient)


def assert_close(entry: Entry, got: Results, want: Results) -> None:
    wide = entry.dtype == jnp.float64
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-12 if wide else 2e-6, atol=1e-12 if wide else 2e-6)
    # The gradient is computed in float32 and rounded once.
    tolerance = 1e-12 if wide else 2e-6 + float(jnp.finfo(entry.dtype).eps)
    np.testing.assert_allclose(got.gradient, want.gradient, rtol=0, atol=tolerance)


def assert_same(got: Results, want: Results, rows: Any = slice(None)) -> None:
    """To the last bit."""
    np.testing.assert_array_equal(got.losses[rows], want.losses[rows])
    np.testing.assert_array_equal(got.gradient[:, rows], want.gradient[:, rows])


PROBLEM = (TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)


def test_against_every_path(any_entry):
    x = any_entry.draw()
    want = expected(any_entry, x)
    assert np.isfinite(want.losses).all()
    assert_close(any_entry, any_entry.traced(x, *PROBLEM), want)
    np.testing.assert_allclose(np.asarray(any_entry.loss(x, *PROBLEM), np.float64), want.losses, rtol=2e-6)


def test_any_blank(unrounded):
    x = unrounded.draw()
    blank = C - 1 if unrounded.batch_first else 0
    order = {0: [2, 1, 0, 3], 3: [0, 1, 3, 2]}[blank]  # swaps the blank with that class
    want = unrounded.traced(x, *PROBLEM)
    targets = np.array(order, np.int32)[TARGETS]
    got = unrounded.with_gradient(x[:, :, order], targets, INPUT_LENGTHS, TARGET_LENGTHS, blank=blank)
    np.testing.assert_allclose(got.losses, want.losses, rtol=2e-6)
    np.testing.assert_allclose(got.gradient[:, :, order], want.gradient, atol=1e-6)


@pytest.mark.parametrize("padding", [np.nan, np.inf, -np.inf, 1e4])
def test_padded_frames_change_nothing_and_have_no_gradient(entry, padding):
    x = entry.draw()
    dead = np.arange(T)[:, None] >= INPUT_LENGTHS
    want = entry.traced(x, *PROBLEM)
    assert_same(entry.traced(np.where(dead[:, :, None], padding, x), *PROBLEM), want)
    assert (want.gradient[dead] == 0).all()


@pytest.mark.parametrize("padding", [BLANK, C, -1, 2**31 - 1, -(2**31)])
def test_padded_target_slots_change_nothing(entry, padding):
    x = entry.draw()
    want = entry.traced(x, *PROBLEM)
    targets = np.where(np.arange(S) < TARGET_LENGTHS[:, None], TARGETS, padding).astype(np.int32)
    assert_same(entry.traced(x, targets, INPUT_LENGTHS, TARGET_LENGTHS), want)
    np.testing.assert_allclose(entry.loss(x, targets, INPUT_LENGTHS, TARGET_LENGTHS), want.losses, rtol=2e-6)


@pytest.mark.parametrize("poison", [None, np.nan, np.inf])
def test_infeasible_targets(entry, poison):
    """Too few frames: for a repeat, for the labels, none at all; whatever the scores."""
    x = entry.draw()
    if poison is not None:
        x[1, :3] = poison
    lengths = np.array([3, 1, 0, 5], np.int32)
    got = entry.traced(x, TARGETS, lengths, TARGET_LENGTHS)
    assert (got.losses[:3] == np.inf).all()
    assert np.isfinite(got.losses[3])
    assert (got.gradient[:, :3] == 0).all()


@pytest.mark.parametrize("poison", [None, np.nan, np.inf])
def test_infeasible_targets_counted_as_zero(unrounded, poison):
    x = unrounded.draw()
    if poison is not None:
        x[1, :3] = poison
    problem = TARGETS, np.array([3, 1, 0, 5], np.int32), TARGET_LENGTHS
    got = unrounded.traced(x, *problem)
    zeroed = unrounded.with_gradient(x, *problem, zero_infinity=True)
    assert (zeroed.losses[:3] == 0).all()
    assert_same(zeroed, got, slice(3, None))
    assert (zeroed.gradient[:, :3] == 0).all()


def test_reductions(unrounded):
    x = unrounded.draw()
    losses = np.asarray(unrounded.loss(x, *PROBLEM), np.float64)
    mean, total = (unrounded.loss(x, *PROBLEM, reduction=r) for r in ("mean", "sum"))
    assert mean.shape == total.shape == ()
    assert mean.dtype == total.dtype == unrounded.accumulation_dtype
    np.testing.assert_allclose(mean, (losses / np.maximum(TARGET_LENGTHS, 1)).mean(), rtol=1e-6)
    np.testing.assert_allclose(total, losses.sum(), rtol=1e-6)
    assert unrounded.loss(x, TARGETS, 2, TARGET_LENGTHS, reduction="mean") == np.inf
    feasible = losses / np.maximum(TARGET_LENGTHS, 1) * (np.arange(N) > 0)
    lengths = np.where(np.arange(N) > 0, INPUT_LENGTHS, 3)
    np.testing.assert_allclose(
        unrounded.loss(x, TARGETS, lengths, TARGET_LENGTHS, reduction="mean", zero_infinity=True),
        feasible.mean(),
        rtol=1e-6,
    )


def test_an_empty_batch(unrounded):
    x, targets = np.zeros((T, 0, C)), np.zeros((0, S), np.int32)
    assert unrounded.loss(x, targets, [], []).shape == (0,)
    assert np.isnan(unrounded.loss(x, targets, [], [], reduction="mean"))
    assert unrounded.loss(x, targets, [], [], reduction="sum") == 0
    assert unrounded.with_gradient(x, targets, np.zeros(0, int), np.zeros(0, int)).gradient.shape == (T, 0, C)


def test_no_frames(unrounded):
    got = unrounded.traced(np.zeros((0, 2, C)), TARGETS[:2], np.zeros(2, np.int32), np.array([0, 1], np.int32))
    assert got.losses.tolist() == [0, np.inf]
    assert got.gradient.shape == (0, 2, C)


def test_no_labels(unrounded):
    x = unrounded.draw()
    want = unrounded.traced(x, TARGETS, INPUT_LENGTHS, np.zeros(N, np.int32))
    log_probs = log_softmax(x) if unrounded.from_logits else x
    blanks = [-log_probs[:length, n, BLANK].sum() for n, length in enumerate(INPUT_LENGTHS)]
    np.testing.assert_allclose(want.losses, blanks, rtol=1e-6)
    got = unrounded.with_gradient(x, np.zeros((N, 0), np.int32), INPUT_LENGTHS, np.zeros(N, np.int32))
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-6)
    np.testing.assert_allclose(got.gradient, want.gradient, atol=1e-6)
    # No frames are live: the only path is the empty one.
    none = unrounded.traced(x, TARGETS, np.zeros(N, np.int32), np.zeros(N, np.int32))
    assert (none.losses == 0).all()
    assert (none.gradient == 0).all()


END_TO_END = np.array([1, 1, 3, 0, 3, 3], np.int32)


@pytest.mark.parametrize("options", [{}, {"max_target_length": 5}], ids=str)
def test_targets_end_to_end(unrounded, options):
    x = unrounded.draw()
    want = unrounded.traced(x, *PROBLEM)
    got = unrounded.with_gradient(x, END_TO_END, INPUT_LENGTHS, TARGET_LENGTHS, **options)
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-6)
    np.testing.assert_allclose(got.gradient, want.gradient, atol=1e-6)
    eager = unrounded.loss(x, END_TO_END, INPUT_LENGTHS, TARGET_LENGTHS, **options)
    np.testing.assert_allclose(eager, want.losses, rtol=1e-6)


def test_an_end_to_end_target_longer_than_the_input(unrounded):
    """Under `jax.jit` the width is bounded by T: the target is infeasible all the same, the others right."""
    x = unrounded.draw()
    targets = np.concatenate([np.resize([0, 3], T + 4), [3]]).astype(np.int32)
    got = unrounded.with_gradient(x, targets, np.array([6, 4, 3, 5]), np.array([T + 4, 0, 1, 0]))
    assert got.losses[0] == np.inf
    assert (got.gradient[:, 0] == 0).all()
    want = unrounded.traced(x, *PROBLEM)
    np.testing.assert_allclose(got.losses[2:], want.losses[2:], rtol=1e-6)


@pytest.mark.parametrize("lengths", [[3, 2, 1, 1], [3, 2, 0, 0], [3, 3, -1, 1], [2**31 - 1, 2**31 - 1, 4, 4]])
def test_end_to_end_targets_that_the_lengths_do_not_fit(unrounded, lengths):
    got = unrounded.with_gradient(unrounded.draw(), END_TO_END, INPUT_LENGTHS, np.array(lengths, np.int32))
    assert np.isnan(got.losses).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integer_types(plain, dtype):
    x = plain.draw()
    problem = [p.astype(dtype) for p in PROBLEM]
    np.testing.assert_allclose(plain.loss(x, *problem), plain.traced(x, *PROBLEM).losses, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64])
def test_traced_integer_types(dtype):
    plain = PLAIN[0]
    x = plain.draw()
    want = plain.traced(x, *PROBLEM)
    with jax.enable_x64(dtype == np.int64):
        losses = plain.alone(x, *(p.astype(dtype) for p in PROBLEM))
    np.testing.assert_allclose(losses, want.losses, rtol=1e-6)


@pytest.mark.parametrize("convert", [list, tuple, np.asarray, jnp.asarray, lambda x: [np.int32(k) for k in x]])
def test_forms_of_lengths(plain, convert):
    x = plain.draw()
    want = plain.traced(x, *PROBLEM).losses
    lengths = [convert(p.tolist()) for p in PROBLEM[1:]]
    np.testing.assert_allclose(plain.loss(x, TARGETS, *lengths), want, rtol=1e-6)
    np.testing.assert_allclose(plain.loss(x, TARGETS.tolist(), *lengths), want, rtol=1e-6)


def test_one_length_for_all(plain):
    x = plain.draw()
    want = plain.traced(x, TARGETS, np.full(N, 6, np.int32), np.full(N, 1, np.int32)).losses
    for six, one in ((6, 1), (np.int64(6), np.array(1)), (jnp.array(6), jnp.array(1))):
        np.testing.assert_allclose(plain.loss(x, TARGETS, six, one), want, rtol=1e-6)


def test_one_sequence(unrounded):
    x = unrounded.draw()
    want = unrounded.traced(x, *PROBLEM)
    for n in range(N):
        problem = TARGETS[n], INPUT_LENGTHS[n], TARGET_LENGTHS[n]
        loss = unrounded.loss(x[:, n], *problem)
        assert loss.shape == ()
        np.testing.assert_allclose(loss, want.losses[n], rtol=1e-6)
        mean = unrounded.loss(x[:, n], *problem, reduction="mean")
        np.testing.assert_allclose(mean, want.losses[n] / max(TARGET_LENGTHS[n], 1), rtol=1e-6)
        got = unrounded.with_gradient(x[:, n], *problem)
        assert got.losses.shape == ()
        np.testing.assert_allclose(got.losses, want.losses[n], rtol=1e-6)
        assert got.gradient.shape == (T, C)
        np.testing.assert_allclose(got.gradient, want.gradient[:, n], atol=1e-6)


@pytest.mark.parametrize("mask", [-np.inf, -np.finfo(np.float64).max, -1e9])
def test_masked_classes(entry, mask):
    """Label 3 of row 2 has one frame left to stand in; row 1 loses its label 0 and with it every path."""
    if np.isfinite(mask):
        mask = max(mask, float(jnp.finfo(entry.dtype).min))
    x = entry.draw()
    masked = np.zeros(x.shape, bool)
    masked[:2, 2, 3] = masked[:, 1, 0] = masked[3, 0, BLANK] = True
    want = expected(entry, np.where(masked, -np.inf, x))
    got = entry.traced(np.where(masked, mask, x), *PROBLEM)
    assert np.isfinite(got.gradient).all()
    possible = [0, 2, 3]
    assert_close(entry, *(Results(r.losses[possible], r.gradient[:, possible]) for r in (got, want)))
    assert (got.gradient[:, possible][masked[:, possible]] == 0).all()
    if mask < -1e30:
        assert_same(got, want, [1])
    else:
        assert got.losses[1] > -0.9 * mask


def test_a_live_frame_without_any_class(entry):
    x = entry.draw()
    x[1] = -np.inf
    got = entry.traced(x, *PROBLEM)
    assert (got.losses == np.inf).all()
    assert (got.gradient == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_sequence_touches_no_other(entry, poison):
    x = entry.draw()
    want = entry.traced(x, *PROBLEM)
    x[2, 0, 1] = poison  # a class of the target
    got = entry.traced(x, *PROBLEM)
    assert np.isnan(got.losses[0])
    assert np.isnan(got.gradient[:, 0]).all()
    assert_same(got, want, slice(1, None))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_class_that_the_target_does_not_use(entry, poison):
    x = entry.draw()
    want = entry.traced(x, *PROBLEM)
    x[2, 2, 0] = poison
    got = entry.traced(x, *PROBLEM)
    if entry.from_logits:  # it is part of the normalizer
        assert np.isnan(got.losses[2])
        assert np.isnan(got.gradient[: INPUT_LENGTHS[2], 2]).all()
        assert (got.gradient[INPUT_LENGTHS[2] :, 2] == 0).all()
        assert_same(got, want, [0, 1, 3])
    else:
        assert_same(got, want)


@pytest.mark.parametrize(
    ("argument", "value"),
    [(0, -1), (0, C), (0, BLANK), (1, -1), (1, T + 1), (2, -1), (2, S + 1), (1, 2**31 - 1), (2, -(2**31))],
)
def test_what_is_illegal_under_jit_is_nan_in_its_own_row_alone(entry, argument, value):
    x = entry.draw()
    want = entry.traced(x, *PROBLEM)
    problem = [p.copy() for p in PROBLEM]
    problem[argument][(1, 1) if argument == 0 else 1] = value
    got = entry.traced(x, *problem)
    assert np.isnan(got.losses[1])
    assert np.isnan(got.gradient[:, 1]).any()
    assert_same(got, want, [0, 2, 3])


@pytest.mark.parametrize("scale", [5, 20, 100, 1e4])
def test_never_negative_however_confident(entry, scale):
    """google-deepmind/optax#1771."""
    frames = 60
    targets = np.resize([0, 3, 1], (N, frames // 2)).astype(np.int32)
    path = np.full((frames, N), BLANK)
    path[::2] = targets.T
    x = np.eye(C)[path] * scale + np.random.default_rng(0).normal(size=(frames, N, C)) * 0.1
    if not entry.from_logits:
        x = log_softmax(x.astype(entry.dtype)).astype(entry.dtype).astype(np.float64)
    got = entry.traced(x, targets, np.full(N, frames), np.full(N, frames // 2))
    assert (got.losses >= 0).all()
    if scale >= 100:
        np.testing.assert_allclose(got.losses, 0, atol=frames * float(jnp.finfo(entry.dtype).eps))


def test_a_true_negative_of_unnormalized_scores_stays(entry):
    if not entry.from_logits:
        x = entry.draw() + 4
        got = entry.traced(x, *PROBLEM)
        assert (got.losses < 0).all()
        assert_close(entry, got, expected(entry, x.astype(entry.dtype).astype(np.float64)))
