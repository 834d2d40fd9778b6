"""What XLA makes of the loops on a CPU: which parts of the program are calls, and which are one kernel."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._lattice import reductions
from jaxctc._platforms import ONE_KERNEL

LOSSES = [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits, functools.partial(jaxctc.ctc_loss, sequences_at_once=2)]
PROGRAMS = [*LOSSES, *map(jax.grad, LOSSES), lambda *batch: jaxctc.ctc_posteriors(*batch)[1]]
LOWERED = 'xla_cpu_small_call = "true"'
COMPILED = LOWERED.replace(" ", "")


def problem(frames, sequences=4, labels=3, *axes):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(*axes, frames, sequences, 5)).astype(np.float32)
    targets = rng.integers(1, 5, (*axes, sequences, labels)).astype(np.int32)
    lengths = np.full((*axes, sequences), frames, np.int32), np.full((*axes, sequences), labels, np.int32)
    return scores, targets, *lengths


def kernels(text):
    """Names of the computations that are one kernel, in a compiled program."""
    return set(re.findall(rf" call\(.*to_apply=%([\w.\-]+), frontend_attributes={{[^}}]*{COMPILED}", text))


@pytest.mark.skipif(not ONE_KERNEL, reason="this XLA makes each loop a kernel of its own accord")
# All states are stored, or segments recomputed.
@pytest.mark.parametrize("frames", [30, pytest.param(700, marks=pytest.mark.full)])
@pytest.mark.parametrize("function", PROGRAMS)
def test_the_recursion_is_one_kernel(function, frames):
    text = jax.jit(function).lower(*problem(frames)).compile().as_text()
    assert len(kernels(text)) == 1


@pytest.mark.parametrize(("classes", "loops"), [(32, 5), (2000, 2)])
def test_states_are_stored_where_they_take_little_memory_beside_the_scores(classes, loops):
    """Those of 400 frames, 1.6 MB: scores of 32 classes take 0.4 MB, and of 2,000 classes 26."""
    problem = jax.ShapeDtypeStruct((400, 8, classes), jnp.float32), jax.ShapeDtypeStruct((8, 20), jnp.int32)
    lengths = [jax.ShapeDtypeStruct((8,), jnp.int32)] * 2
    lowered = jax.jit(jax.grad(jaxctc.ctc_loss_with_logits)).lower(*problem, *lengths)
    assert lowered.as_text().count("stablehlo.while") == loops
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 4e6


def test_the_gathered_scores_are_a_call():
    """Else what jax 0.10 reshapes them by is fused with what scales them, which takes three times as long."""
    text = jax.jit(jaxctc.ctc_loss).lower(*problem(30)).as_text()
    attributes = re.findall(r"call @.*mhlo.frontend_attributes = {(.*?)}", text)
    assert sorted(attributes) == ['inlineable = "false"', *[f'inlineable = "false", {LOWERED}'] * ONE_KERNEL]


@pytest.mark.parametrize("axes", [(), (0,), pytest.param((2,), marks=pytest.mark.full)])
@pytest.mark.parametrize(("frames", "sequences", "labels"), [(0, 2, 1), (5, 0, 2), (5, 2, 0), (1, 1, 1)])
def test_of_an_empty_array_there_is_no_such_kernel(axes, frames, sequences, labels):
    """XLA would abort the process if it removed what uses an operand."""
    batch = problem(frames, sequences, labels, *axes)
    function = jax.grad(functools.partial(jaxctc.ctc_loss, reduction="sum"))
    lowered = jax.jit(jax.vmap(function) if axes else function).lower(*batch)
    assert (LOWERED in lowered.as_text()) == (ONE_KERNEL and 0 not in (*axes, frames, sequences, labels))
    gradient = lowered.compile()(*batch)
    assert gradient.shape == batch[0].shape
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("target_lengths", [[9, 9, 9, 9], [3, 0, 9, 1]])
@pytest.mark.parametrize("frames", [5, 30])
def test_constant_lengths_stay_operands(frames, target_lengths):
    """XLA would move a constant into the call, find the operand unused, and abort."""
    scores, targets, input_lengths, _ = problem(frames, labels=9)

    def loss(scores):
        return jaxctc.ctc_loss(scores, targets, input_lengths, np.array(target_lengths), reduction="none")

    assert (LOWERED in jax.jit(loss).lower(scores).as_text()) == ONE_KERNEL
    losses, reference = (
        jax.jit(functools.partial(jaxctc.ctc_loss, reduction="none", implementation=implementation))(
            scores, targets, input_lengths, np.array(target_lengths)
        )
        for implementation in (None, "reference")
    )
    np.testing.assert_allclose(jax.jit(loss)(scores), losses, rtol=1e-6)
    np.testing.assert_allclose(losses, reference, rtol=1e-5)


@pytest.mark.parametrize("platforms", [("tpu",), ("cuda",), ("cpu", "tpu")])
def test_other_platforms_have_no_such_kernel(platforms):
    text = jax.jit(jax.grad(jaxctc.ctc_loss)).trace(*problem(30)).lower(lowering_platforms=platforms).as_text()
    assert "xla_cpu_small_call" not in text


@pytest.mark.parametrize("shape", [(3, 40), (70, 8), (2, 3, 400)])
def test_reductions(shape):
    x, y = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    np.testing.assert_array_equal(reductions.maximum(jnp.asarray(x), jnp.asarray(y)), np.maximum(x, y).max(-1))
    for axis in (0, -1):
        both = reductions.sums(jnp.asarray(x), jnp.asarray(y), axis=axis)
        for found, wanted in zip(both, (x, y), strict=True):
            np.testing.assert_allclose(found, wanted.sum(axis), rtol=1e-5, atol=1e-5)


def test_a_reduction_of_two_arrays_is_not_divided_into_windows():
    """Their code is long, and compiled within the one kernel of the recursion."""
    compiled = jax.jit(reductions.maximum).lower(*[jax.ShapeDtypeStruct((3, 400), jnp.float32)] * 2).compile()
    assert "reduce-window" not in compiled.as_text()
    assert "reduce(" in compiled.as_text()
