"""Every derivative against central differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc

pytestmark = pytest.mark.usefixtures("x64")

TARGETS = np.array([[1, 1], [3, 2], [2, 2]])
INPUT_LENGTHS = np.array([5, 3, 2])  # the last has too few frames for its repeat
TARGET_LENGTHS = np.array([2, 1, 2])
WEIGHTS = np.array([1.0, -0.5, 2.0])
FUNCTIONS = [
    # What one test compiles serves the others of its function, where they run in one process.
    pytest.param(f, id=f.__name__, marks=pytest.mark.xdist_group(f"derivatives-{f.__name__}"))
    for f in (jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits)
]
# Where each function compiles programs of its own, one of them is enough for `make test`.
ONE_FUNCTION = [
    FUNCTIONS[0],
    pytest.param(*FUNCTIONS[1].values, id=FUNCTIONS[1].id, marks=[*FUNCTIONS[1].marks, pytest.mark.full]),
]
KINDS = ["ordinary", "ties", "masked"]


def per_sequence(function, scores):
    return function(scores, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS, reduction="none", zero_infinity=True)


def total(function, scores):
    return (per_sequence(function, scores) * WEIGHTS).sum()


def scores(kind):
    x = np.random.default_rng(0).normal(size=(5, 3, 4))
    if kind == "ties":  # where the maximum and the absolute value have kinks
        x = np.zeros_like(x)
    if kind == "masked":
        x[1, :, 0] = -np.inf  # no blank in frame 1
        x[0, :, 2] = -np.inf
    return x


def direction(seed):
    return np.random.default_rng(seed).normal(size=(5, 3, 4))


# What follows is compiled once for all tests. Nearly all their time is compilation: eagerly, every little
# operation around the loss would be compiled by itself.
losses_of = jax.jit(per_sequence, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def forward(function, x, tangent):
    """The losses, and their derivatives along a tangent."""
    return jax.jvp(functools.partial(per_sequence, function), (x,), (tangent,))


@functools.partial(jax.jit, static_argnums=0)
def reverse(function, x, weights=WEIGHTS):
    """The losses, and the gradient of their weighted sum."""
    losses, pull_back = jax.vjp(functools.partial(per_sequence, function), x)
    return losses, pull_back(weights)[0]


@functools.partial(jax.jit, static_argnums=0)
def hessians(function, x):
    loss, modes = functools.partial(total, function), (jax.jacfwd, jax.jacrev)
    return {f"{outer.__name__} of {inner.__name__}": outer(inner(loss))(x) for outer in modes for inner in modes}


def differences(function, x, step):
    """The derivative with respect to every element, by central differences; the axes of `function` come first."""
    pairs = [(function(x + h), function(x - h)) for h in step * np.eye(x.size).reshape(-1, *x.shape)]
    quotients = [(np.asarray(ahead) - np.asarray(behind)) / (2 * step) for ahead, behind in pairs]
    return np.stack(quotients, axis=-1).reshape(*quotients[0].shape, *x.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_orders_in_every_mix_of_modes(function, kind):
    x = scores(kind)
    masked = np.isneginf(x)

    def losses(free):
        return losses_of(function, np.where(masked, -np.inf, free))

    def gradient(free):
        return reverse(function, np.where(masked, -np.inf, free))[1]

    free = np.where(masked, 0, x)
    jacobian = differences(losses, free, 1e-5)
    np.testing.assert_allclose(gradient(free), np.tensordot(WEIGHTS, jacobian, 1), rtol=0, atol=1e-8)
    tangent = direction(1)
    np.testing.assert_allclose(forward(function, x, tangent)[1], np.tensordot(jacobian, tangent, 3), rtol=0, atol=1e-8)
    expected = differences(gradient, free, 1e-5)
    for mix, hessian in hessians(function, x).items():
        np.testing.assert_allclose(hessian, expected, rtol=0, atol=1e-8, err_msg=mix)


@pytest.mark.parametrize("function", ONE_FUNCTION)
def test_what_uses_value_and_gradient_can_be_differentiated(function):
    def of_both(x):
        value, gradient = jax.value_and_grad(functools.partial(total, function))(x)
        return value * (gradient**2).sum()

    def by_hand(x):
        return losses_of(function, x) @ WEIGHTS * (reverse(function, x)[1] ** 2).sum()

    x, tangent = scores("ordinary"), direction(1)
    expected = differences(by_hand, x, 1e-4)
    value, along = jax.jit(lambda x: jax.jvp(of_both, (x,), (tangent,)))(x)
    np.testing.assert_allclose(value, by_hand(x), rtol=1e-12)
    np.testing.assert_allclose(along, (expected * tangent).sum(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(of_both))(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_value_is_the_same_with_a_derivative_and_without(function):
    x = scores("ordinary")
    values = per_sequence(function, x)
    np.testing.assert_allclose(losses_of(function, x), values, rtol=1e-14)
    np.testing.assert_allclose(forward(function, x, x)[0], values, rtol=1e-14)
    np.testing.assert_allclose(reverse(function, x)[0], values, rtol=1e-14)


@pytest.mark.parametrize("function", ONE_FUNCTION)
def test_checkpoint_and_linearize(function):
    loss, x = functools.partial(total, function), scores("ordinary")
    _, gradient = reverse(function, x)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(x), gradient, atol=1e-12)
    value, linear = jax.linearize(loss, x)
    np.testing.assert_allclose(value, losses_of(function, x) @ WEIGHTS)
    np.testing.assert_allclose(linear(direction(1)), (gradient * direction(1)).sum(), atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_zero_exactly_where_nothing_can_change(function):
    x = scores("masked")
    for derivative in (reverse(function, x)[1], *hessians(function, x).values()):
        gradients = np.asarray(derivative).reshape(-1, *x.shape)  # of the loss, of every element of its gradient
        assert np.isfinite(gradients).all()
        assert (gradients[:, np.isneginf(x)] == 0).all()
        assert (gradients[:, 3:, 1] == 0).all(), "frames beyond the input length"
        assert (gradients[:, :, 2] == 0).all(), "an infeasible target"


def both(function, *arguments):
    return jax.value_and_grad(lambda x, *rest: function(x, *rest, reduction="sum", zero_infinity=True))(*arguments)


both_of_one = jax.jit(both, static_argnums=0)


# Each of one function, and all at once of both.
@pytest.mark.parametrize(
    ("function", "axes"),
    [
        pytest.param(*f.values, axes, marks=[*f.marks] if quick else [*f.marks, pytest.mark.full], id=f"{f.id}-{axes}")
        for f in FUNCTIONS
        for axes in ((0, None, None, None), (None, 0, None, None), (None, None, 0, None), (0, 0, 0, 0))
        for quick in [axes == (0, 0, 0, 0) or f is FUNCTIONS[0]]
    ],
)
def test_vmap_over_any_argument(function, axes):
    x = scores("ordinary")
    # The two last lengths differ in what targets they allow, so that every argument changes the result.
    stacked = (
        np.stack([x, x[::-1]]),
        np.stack([TARGETS, TARGETS[::-1]]),
        np.array([INPUT_LENGTHS, [3, 5, 4]]),
        np.array([TARGET_LENGTHS, [1, 2, 0]]),
    )
    arguments = [s if axis == 0 else s[0] for s, axis in zip(stacked, axes, strict=True)]
    mapped = jax.jit(jax.vmap(functools.partial(both, function), in_axes=axes))(*arguments)
    for i in range(2):
        single = both_of_one(function, *(s[i] if axis == 0 else s[0] for s, axis in zip(stacked, axes, strict=True)))
        for a, b in zip(mapped, single, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-12)


def test_vmap_over_target_lengths_and_over_a_padded_batch_of_single_sequences():
    x = scores("ordinary")
    lengths = np.array([TARGET_LENGTHS, [1, 0, 1]])
    mapped = jax.vmap(lambda n: jaxctc.ctc_loss(x, TARGETS, INPUT_LENGTHS, n, reduction="none"))(lengths)
    for i in range(2):
        expected = jaxctc.ctc_loss(x, TARGETS, INPUT_LENGTHS, lengths[i], reduction="none")
        np.testing.assert_allclose(mapped[i], expected)

    one = jax.jit(jax.vmap(jax.grad(jaxctc.ctc_loss), in_axes=(1, 0, 0, 0), out_axes=1))
    gradient = one(x, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    _, whole = reverse(jaxctc.ctc_loss, x, 1 / TARGET_LENGTHS)
    np.testing.assert_allclose(gradient, whole, atol=1e-12)


def in_a_loop(function, xs):
    return sum((i + 1) * function(xs[i]) for i in range(len(xs)))


def in_a_scan(function, xs):
    def turn(carry, each):
        weight, x = each
        return carry + weight * function(x), None

    return jax.lax.scan(turn, 0.0, (np.arange(1.0, len(xs) + 1), xs))[0]


def in_scans_within_a_scan(function, xs):
    def turn(carry, x):
        return carry + in_a_scan(jax.checkpoint(function), x[None] * (1 + 0 * carry)), None

    return in_a_scan(lambda xs: jax.lax.scan(turn, 0.0, xs)[0], xs[:, None])


def in_scans_side_by_side(function, xs):
    return jax.vmap(functools.partial(in_a_scan, function))(jnp.stack([xs, xs])).mean()


def squared_posteriors(x):
    found = jaxctc.ctc_posteriors(x, TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    return (found.states**2).sum() + (found.classes**3).sum()


@pytest.mark.parametrize(
    "around",
    [
        in_a_scan,
        pytest.param(in_scans_within_a_scan, marks=pytest.mark.full),
        pytest.param(in_scans_side_by_side, marks=pytest.mark.full),
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize(
    "function",
    [functools.partial(total, jaxctc.ctc_loss_with_logits), pytest.param(squared_posteriors, marks=pytest.mark.full)],
    ids=["loss", "posteriors"],
)
def test_second_derivatives_of_a_scan(function, around):
    """As where gradients are accumulated over parts of a batch: JAX splits the scan, and drops a `custom_jvp` there."""
    xs, along = (np.stack([f(0), f(1)]) for f in (lambda i: scores("ordinary") * (1 - 2 * i), direction))

    def products_with_hessian(loop):
        gradient = jax.grad(functools.partial(loop, function))
        return jax.jvp(gradient, (xs,), (along,))[1], jax.grad(lambda xs: (gradient(xs) * along).sum())(xs)

    want, _ = jax.jit(products_with_hessian, static_argnums=0)(in_a_loop)
    assert (np.abs(want) > 1e-3).any()
    for got in jax.jit(products_with_hessian, static_argnums=0)(around):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", ONE_FUNCTION)
def test_a_scan_whose_loss_is_differentiated_last(function):
    """The first derivative does not concern the loss, which is then among the values that JAX computes apart."""

    def weighted(weight, xs):
        def turn(carry, each):
            i, x = each
            return carry + weight**i * total(function, x), None

        return jax.lax.scan(turn, 0.0, (np.array([1.0, 2.0]), xs))[0]

    x = scores("ordinary")
    gradient = jax.jit(jax.grad(lambda xs: jax.grad(weighted)(2.0, xs)))(np.stack([x, -x]))
    np.testing.assert_allclose(gradient[0], reverse(function, x)[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient[1], 4 * reverse(function, -x)[1], rtol=0, atol=1e-12)


def equations(jaxpr):
    """Every equation of a jaxpr, those of the jaxprs within it included."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "by_platform":  # which is traced where it is lowered
            operands = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
            yield from equations(jax.make_jaxpr(dict(equation.params["forms"])["default"])(*operands).jaxpr)
        parameters = equation.params
        if platforms := parameters.get("branches_platforms"):  # of the forms for several platforms, the default
            parameters = {"branch": parameters["branches"][platforms.index(None)]}
        for parameter in jax.tree.leaves(parameters, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def scans(function, x):
    return [e for e in equations(jax.make_jaxpr(function)(x).jaxpr) if e.primitive.name == "scan"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_loss_without_a_derivative_does_no_backward_work(function):
    x = scores("ordinary")
    (forward,) = scans(functools.partial(total, function), x)
    assert forward.params["length"] == 2, "both ends at once: half of five frames, two steps a turn"
    # Nothing is stored a frame: what the scan gives is what a turn gives, not a stack; the states of one step each.
    turn = forward.params["jaxpr"].jaxpr.outvars
    assert [v.aval.shape for v in forward.outvars] == [v.aval.shape for v in turn]
    assert {v.aval.shape[0] for v in forward.outvars if v.aval.ndim == 3} == {1}

    inward, outward = scans(jax.grad(functools.partial(total, function)), x)
    for scan in (forward, inward, outward):
        assert scan.params["length"] == 2
        body = {e.primitive.name for e in equations(scan.params["jaxpr"].jaxpr)}
        assert ("expm1" in body) == (scan is not outward), "each score's own power of two, on the way in"
        assert not body & {"exp", "exp2", "log", "log1p", "logistic", "pow"}, "and nothing else but sums and products"
