"""The table at the head of `scaled`, against Python's own integers and fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc._forward_backward import scaled
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._types import LOG_ZERO


@pytest.fixture(params=[jnp.float32, jnp.float64])
def dtype(request):
    with jax.enable_x64(request.param == jnp.float64):
        yield jnp.dtype(request.param)


def number(mantissa, exponent, dtype) -> Scaled:
    return Scaled(jnp.asarray(mantissa, dtype), jnp.asarray(exponent, dtype))


def together(*rows: Scaled) -> Scaled:
    return Scaled(*(jnp.stack(x) for x in zip(*rows, strict=True)))


def exact(a: Scaled) -> Fraction:
    return (1 + Fraction(float(a.mantissa))) * Fraction(2) ** int(a.exponent)


ZERO = (0.0, LOG_ZERO)
PAIRS = [((0.5, 0), (0.25, -3)), ((0.0, -7000), (0.75, -7001)), ((0.9, 40), (0.1, -2000)), ((0.0, 12), (0.0, 12))]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_finite_operands(a, b, dtype):
    tolerance = float(jnp.finfo(dtype).eps)
    x, y = number(*a, dtype), number(*b, dtype)
    for got, want in ((x + y, exact(x) + exact(y)), (y + x, exact(x) + exact(y)), (x * y, exact(x) * exact(y))):
        for form in (got, scaled.renormalized(got)):
            assert float(form.mantissa) >= 0
            assert abs(exact(form) / want - 1) <= 2 * tolerance
        assert float(scaled.renormalized(got).mantissa) < 1
    share = float(exact(x) / (exact(x) + exact(y)))
    parts = scaled.split(jnp.ones((), dtype), scaled.smaller_fraction(x, y))
    for found in (scaled.fraction(x, x + y), parts[0]):
        np.testing.assert_allclose(found, share, rtol=4 * tolerance, atol=scaled.negligible(dtype))
    # The smaller part keeps all its digits, and together they are what was divided.
    smaller = min(exact(x), exact(y)) / (exact(x) + exact(y))
    np.testing.assert_allclose(min(parts), float(smaller), rtol=4 * tolerance, atol=scaled.negligible(dtype) ** 1.4)
    assert float(parts[0] + parts[1]) == 1


def share(a, b):
    """What a has of a + b."""
    return scaled.split(jnp.ones_like(a.mantissa), scaled.smaller_fraction(a, b))[0]


@pytest.mark.parametrize("exponent", [3.0, -9000.0])
def test_zero(exponent, dtype):
    a, zero = number(0.5, exponent, dtype), number(*ZERO, dtype)
    for total in (a + zero, zero + a):
        assert (float(total.mantissa), float(total.exponent)) == (0.5, exponent)
    assert float(scaled.fraction(a, a + zero)) == 1 == float(share(a, zero))
    assert float(scaled.fraction(zero, a + zero)) < scaled.negligible(dtype)
    assert float(share(zero, a)) < scaled.negligible(dtype)
    for nothing in (a * zero, zero * zero, scaled.renormalized(zero + zero), zero * zero + zero):
        assert float(nothing.exponent) < LOG_ZERO / 2
    for found in (scaled.fraction(zero, zero + zero), share(zero, zero)):
        assert 0 <= float(found) <= 1


def test_a_million_products_with_zero_do_not_overflow():
    assert jnp.isfinite(jnp.float32(LOG_ZERO) * 1_000_000)


def test_exp2(dtype):
    x = np.concatenate([np.linspace(-3, 3, 997), [-1e6, -0.0, 5e4, 17.0]])
    got = scaled.exp2(jnp.asarray(x, dtype))
    x = np.asarray(jnp.asarray(x, dtype), np.float64)
    assert (np.asarray(got.exponent) == np.floor(x)).all()
    want = np.exp2(x - np.floor(x))
    np.testing.assert_allclose(
        1 + np.asarray(got.mantissa, np.float64), want, rtol=2e-7 if dtype == jnp.float32 else 1e-15
    )
    assert tuple(map(float, scaled.exp2(jnp.asarray(LOG_ZERO, dtype)))) == (0, np.asarray(LOG_ZERO, dtype))


def test_total(dtype):
    mantissas, exponents = [[0.5, 0.0, 0.0, 0.0], [0.0] * 4], [[-5000.0, LOG_ZERO, LOG_ZERO, -5001.0], [LOG_ZERO] * 4]
    got = scaled.total(number(mantissas, exponents, dtype))
    assert got.mantissa.shape == (2, 1)
    assert (float(got.mantissa[0, 0]), float(got.exponent[0, 0])) == (0.0, -4999.0)
    assert float(got.exponent[1, 0]) < LOG_ZERO / 2


def test_what_is_next_to_one_keeps_its_digits(dtype):
    """However little it has beyond one: in sums, in products with something like it, and in a total."""
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    beyond = number([3e-9, 2e-20], [0, 0], dtype)
    small = number([0.5, 0.75], [-31, -67], dtype)
    one, zero = (number([x, x], [y, y], dtype) for x, y in ((0, 0), ZERO))
    size = 2.0**-31 * 1.5, 2.0**-67 * 1.75
    for found, want in (
        (beyond + small, np.add([3e-9, 2e-20], size)),
        (small + beyond, np.add([3e-9, 2e-20], size)),
        (beyond * beyond, [6e-9 + 9e-18, 4e-20]),
        (beyond * one, [3e-9, 2e-20]),
        (one * beyond, [3e-9, 2e-20]),
    ):
        for form in (found, scaled.renormalized(found)):
            np.testing.assert_allclose(form.mantissa, want, rtol=tolerance)
            np.testing.assert_array_equal(form.exponent, 0)
    total = scaled.total(together(one, zero))
    np.testing.assert_array_equal(total.mantissa, [[0], [0]])
    total = scaled.total(Scaled(*(x.T for x in together(beyond, small, zero, small))))
    np.testing.assert_allclose(total.mantissa[:, 0], np.add([3e-9, 2e-20], 2 * np.asarray(size)), rtol=tolerance)


def test_a_number_that_rounds_up_to_two_is_still_the_same(dtype):
    a = number(1 - float(jnp.finfo(dtype).epsneg), 5, dtype)
    for _ in range(3):
        a = scaled.renormalized(a)
        assert abs(float(exact(a) / 2**6) - 1) <= 2 * float(jnp.finfo(dtype).eps)


def test_two_visible_probabilities_have_a_normal_product(dtype):
    """Whatever is not counted as zero, times the least of portions."""
    for fraction in (scaled.fraction, share):
        floor = float(fraction(number(*ZERO, dtype), number(0.0, 0, dtype)))
        assert scaled.negligible(dtype) * floor > float(jnp.finfo(dtype).tiny)
        assert floor * 2**20 < scaled.negligible(dtype)
