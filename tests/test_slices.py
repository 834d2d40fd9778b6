"""A batch that is worked on in slices has the results of one that is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc

T, N, C, S = 12, 7, 5, 3


def drawn():
    rng = np.random.default_rng(0)
    targets = rng.integers(1, C, (N, S)).astype(np.int32)
    frames, labels = rng.integers(1, T + 1, N).astype(np.int32), rng.integers(0, S + 1, N).astype(np.int32)
    return rng.normal(size=(T, N, C)).astype(np.float32), targets, frames, labels


@pytest.mark.parametrize(
    ("function", "batch_first"),
    [pytest.param(jaxctc.ctc_loss, False, marks=pytest.mark.full), (jaxctc.ctc_loss_with_logits, True)],
)
def test_slices_change_no_bit(function, batch_first):
    scores, *rest = drawn()
    scores = scores.swapaxes(0, 1) if batch_first else scores

    @functools.partial(jax.jit, static_argnums=0)
    def of(count, scores):
        each = functools.partial(function, reduction="none", batch_first=batch_first, sequences_at_once=count)
        value, back = jax.vjp(lambda x: each(x, *rest), scores)
        return value, *back(jnp.arange(1, N + 1, dtype=jnp.float32)), each(scores, *rest)

    want = of(None, scores)
    for count in (3, N):  # 3 does not divide 7
        for x, y in zip(of(count, scores), want, strict=True):
            np.testing.assert_array_equal(x, y)


def test_no_more_than_a_slice_is_worked_on():
    """Of the temporaries, the whole batch's states are not among them."""
    scores = jax.ShapeDtypeStruct((200, 256, 8), jnp.float32)
    rest = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((256, 40), (256,), (256,))]

    def temporaries(count):
        function = jax.grad(functools.partial(jaxctc.ctc_loss, sequences_at_once=count))
        return jax.jit(function).lower(scores, *rest).compile().memory_analysis().temp_size_in_bytes

    gradient = 200 * 256 * 8 * 4
    assert temporaries(16) < temporaries(None) / 6
    assert temporaries(16) < 1.5 * gradient + temporaries(None) / 10


def hessian_product(mode, count, *batch):
    """Return the second derivative of the losses' sum along a direction, by a pair of modes of differentiation."""

    def gradient(scores):
        loss = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum", sequences_at_once=count)
        return jax.grad(loss)(scores, *batch[1:])

    direction = jnp.cos(jnp.arange(batch[0].size, dtype=jnp.float32)).reshape(batch[0].shape).astype(batch[0].dtype)
    if mode == "forward over reverse":
        return jax.jvp(gradient, batch[:1], (direction,))[1]
    return jax.grad(lambda scores: (gradient(scores) * direction).sum())(batch[0])


MODES = ["forward over reverse", "reverse over reverse"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_of_slices(mode, dtype):
    scores, *rest = drawn()
    batch = jnp.asarray(scores, dtype), *rest
    wanted = jax.jit(functools.partial(hessian_product, mode, None))(*batch).astype(jnp.float32)
    found = jax.jit(functools.partial(hessian_product, mode, 3))(*batch).astype(jnp.float32)
    assert (wanted != 0).any()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 if dtype == jnp.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_gradient_of_slices_of_the_reference(dtype):
    scores, *rest = drawn()

    def gradient(count):
        loss = functools.partial(jaxctc.ctc_loss_with_logits, implementation="reference", sequences_at_once=count)
        return jax.jit(jax.grad(lambda scores: loss(scores, *rest, reduction="sum", zero_infinity=True)))

    found, wanted = (gradient(count)(jnp.asarray(scores, dtype)).astype(jnp.float32) for count in (3, None))
    assert (wanted != 0).any()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_work_on_a_slice_too(mode):
    scores = jax.ShapeDtypeStruct((200, 256, 8), jnp.float32)
    rest = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((256, 40), (256,), (256,))]

    def temporaries(count):
        function = jax.jit(functools.partial(hessian_product, mode, count))
        return function.lower(scores, *rest).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16) < temporaries(None) / 6


def test_an_illegal_number_is_named():
    with pytest.raises(ValueError, match="sequences_at_once is 0: it must be at least 1, or None"):
        jaxctc.ctc_loss(*drawn(), sequences_at_once=0)
    with pytest.raises(TypeError, match="sequences_at_once must be a number of sequences"):
        jaxctc.ctc_loss(*drawn(), sequences_at_once=2.5)
