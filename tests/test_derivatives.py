"""Every derivative against central differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracles import enumerate_paths

import jaxctc

pytestmark = pytest.mark.usefixtures("x64")

TARGETS = np.array([[1, 1], [3, 2], [2, 2]])
INPUT_LENGTHS = np.array([5, 3, 2])  # the last has too few frames for its repeat
TARGET_LENGTHS = np.array([2, 1, 2])
FUNCTIONS = [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits]
KINDS = ["ties", "masked"]


def per_sequence(function, scores):
    return function(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none", zero_infinity=True)


def total(function, scores):
    losses = per_sequence(function, scores)
    return (losses * jnp.array([1.0, -0.5, 2.0], losses.dtype)).sum()


def scores(kind):
    x = np.random.default_rng(0).normal(size=(5, 3, 4))
    if kind == "ties":  # where the maximum and the absolute value have kinks
        x = np.zeros_like(x)
    if kind == "masked":
        x[1, :, 0] = -np.inf  # no blank in frame 1
        x[0, :, 2] = -np.inf
    return jnp.asarray(x)


def direction(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(5, 3, 4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_orders_in_every_mix_of_modes(function, kind):
    x = scores(kind)
    masked = jnp.isneginf(x)
    free = jnp.where(masked, 0, x)

    def loss(free):
        return total(function, jnp.where(masked, -jnp.inf, free))

    check_grads(loss, (free,), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_hessian_in_every_mix_of_modes(function):
    x, loss = scores("ordinary"), functools.partial(total, function)
    gradient, step = jax.jit(jax.grad(loss)), 1e-5
    basis = jnp.eye(x.size).reshape(-1, *x.shape)
    rows = [(gradient(x + step * e) - gradient(x - step * e)) / (2 * step) for e in basis]
    expected = np.stack(rows).reshape(x.shape * 2)
    for outer in (jax.jacfwd, jax.jacrev):
        for inner in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(outer(inner(loss))(x), expected, atol=1e-8)
    np.testing.assert_allclose(jax.hessian(loss)(x), expected, atol=1e-8)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_uses_value_and_gradient_can_be_differentiated(function):
    x, loss = scores("ordinary"), functools.partial(total, function)

    def of_both(x):
        value, gradient = jax.value_and_grad(loss)(x)
        return value * (gradient**2).sum()

    check_grads(of_both, (x,), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_value_is_the_same_with_a_derivative_and_without(function):
    x = scores("ordinary")
    values = per_sequence(function, x)
    np.testing.assert_allclose(jax.jvp(lambda x: per_sequence(function, x), (x,), (x,))[0], values, rtol=1e-14)
    np.testing.assert_allclose(jax.vjp(lambda x: per_sequence(function, x), x)[0], values, rtol=1e-14)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_checkpoint_and_linearize(function):
    loss, x = functools.partial(total, function), scores("ordinary")
    gradient = jax.grad(loss)(x)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(loss))(x), gradient, atol=1e-12)
    value, linear = jax.linearize(loss, x)
    np.testing.assert_allclose(value, loss(x))
    np.testing.assert_allclose(linear(direction(1)), (gradient * direction(1)).sum(), atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_zero_exactly_where_nothing_can_change(function):
    x = scores("masked")
    for loss in (functools.partial(total, function), lambda x: jax.grad(functools.partial(total, function))(x).sum()):
        gradient = jax.grad(loss)(x)
        assert jnp.isfinite(gradient).all()
        assert (gradient[jnp.isneginf(x)] == 0).all()
        assert (gradient[3:, 1] == 0).all(), "frames beyond the input length"
        assert (gradient[:, 2] == 0).all(), "an infeasible target"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_infeasible_row_has_no_gradient_without_zero_infinity_either(function):
    losses, pullback = jax.vjp(
        lambda x: function(x, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none"), scores("ordinary")
    )
    assert losses[2] == jnp.inf
    (gradient,) = pullback(jnp.ones_like(losses))
    assert jnp.isfinite(gradient).all()
    assert (gradient[:, 2] == 0).all()


def test_the_true_gradient_of_scores_that_are_not_normalised():
    """pytorch/pytorch#52241, #127608, #181534: minus the posterior, here by counting every path."""
    x = np.asarray(scores("ordinary")) * 3 + 1
    gradient = jax.grad(lambda x: per_sequence(jaxctc.ctc_loss, x).sum())(jnp.asarray(x))
    for n in range(2):
        target = tuple(TARGETS[n, : TARGET_LENGTHS[n]])
        _, posterior = enumerate_paths(x[: INPUT_LENGTHS[n], n], target, blank=0)
        np.testing.assert_allclose(gradient[: INPUT_LENGTHS[n], n], -posterior, atol=1e-12)


@pytest.mark.parametrize("axes", [(0, None, None, None), (None, 0, None, None), (None, None, 0, None), (0, 0, 0, 0)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap_over_any_argument(function, axes):
    x = scores("ordinary")
    targets = jnp.asarray(TARGETS)
    stacked = (
        jnp.stack([x, x[::-1]]),
        jnp.stack([targets, targets[::-1]]),
        jnp.asarray([INPUT_LENGTHS, [3, 5, 4]]),
        jnp.asarray([TARGET_LENGTHS, [1, 2, 0]]),
    )

    def both(*arguments):
        return jax.value_and_grad(lambda x, *rest: function(x, *rest, reduction="sum", zero_infinity=True))(*arguments)

    # The two last lengths differ in what targets they allow, so that every argument changes the result.
    arguments = [s if axis == 0 else s[0] for s, axis in zip(stacked, axes, strict=True)]
    mapped = jax.vmap(both, in_axes=axes)(*arguments)
    for i in range(2):
        single = both(*(s[i] if axis == 0 else s[0] for s, axis in zip(stacked, axes, strict=True)))
        for a, b in zip(mapped, single, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-12)


def test_vmap_over_target_lengths_and_over_a_padded_batch_of_single_sequences():
    x, targets = scores("ordinary"), jnp.asarray(TARGETS)
    lengths = jnp.asarray([TARGET_LENGTHS, [1, 0, 1]])
    mapped = jax.vmap(lambda n: jaxctc.ctc_loss(x, targets, INPUT_LENGTHS, n, reduction="none"))(lengths)
    for i in range(2):
        expected = jaxctc.ctc_loss(x, targets, INPUT_LENGTHS, lengths[i], reduction="none")
        np.testing.assert_allclose(mapped[i], expected)

    one = jax.vmap(jax.grad(jaxctc.ctc_loss), in_axes=(1, 0, 0, 0), out_axes=1)
    gradient = one(x, targets, jnp.asarray(INPUT_LENGTHS), jnp.asarray(TARGET_LENGTHS))
    whole = jax.grad(lambda x: per_sequence(jaxctc.ctc_loss, x) @ (1 / TARGET_LENGTHS))(x)
    np.testing.assert_allclose(gradient, whole, atol=1e-12)


def equations(jaxpr):
    """Every equation of a jaxpr, those of the jaxprs within it included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def scans(function, x):
    return [e for e in equations(jax.make_jaxpr(function)(x).jaxpr) if e.primitive.name == "scan"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_loss_without_a_derivative_does_no_backward_work(function):
    x = scores("ordinary")
    (forward,) = scans(functools.partial(total, function), x)
    assert forward.params["length"] == 3, "both ends at once: half of five frames, rounded up"
    # Nothing is stored a frame: all that the scan gives is its carry.
    assert len(forward.outvars) == forward.params["num_carry"]

    inward, outward = scans(jax.grad(functools.partial(total, function)), x)
    assert inward.params["length"] == outward.params["length"] == 3
    body = {e.primitive.name for e in equations(outward.params["jaxpr"].jaxpr)}
    assert not body & {"exp", "log", "log1p", "logistic"}, "outward by multiplying and adding alone"
