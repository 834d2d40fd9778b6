"""Programs are traced in place, but for the loops and the functions that are to be calls."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import _tracing
from jaxctc._platforms import ONE_KERNEL


def halved(x):
    return jnp.where(x > 0, x / 2, x)


def in_place(function):
    def run(*operands):
        with _tracing.in_place():
            return function(*operands)

    return run


@pytest.mark.parametrize("stop", [0, 5, np.int32(5), jnp.int32(5)])
def test_loops_give_the_same_within(stop):
    def looped(x):
        return _tracing.fori_loop(2, stop, lambda i, x: halved(x) + i.astype(x.dtype), x)

    def scanned(x):
        return _tracing.scan(lambda x, y: (halved(x) + y, jnp.sum(x)), x, jnp.arange(3.0))

    x = jnp.array([1.0, -2.0, 3.0])
    for function in (looped, scanned):
        want, got = jax.jit(function)(x), jax.jit(in_place(function))(x)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_what_jax_numpy_compiles_is_no_program_of_its_own_within():
    x = jnp.ones(3)
    text = jax.jit(halved).lower(x).as_text(), jax.jit(in_place(halved)).lower(x).as_text()
    assert ["func private" in each for each in text] == [True, False]


def test_a_loop_is_a_loop_within_and_has_one_counter():
    def looped(x):
        return _tracing.fori_loop(0, 5, lambda i, x: halved(x) + i.astype(x.dtype), x)

    text = jax.jit(in_place(looped)).lower(jnp.ones(3)).as_text()
    (loop,) = (line for line in text.splitlines() if "stablehlo.while" in line)
    assert loop.count("tensor<i32>") == 1
    assert "func private" not in text


def test_what_is_to_be_a_call_is_one_within_and_traced_once():
    traced = []

    @_tracing.jit
    def doubled(x):
        traced.append(x)
        return halved(x) * 4

    def twice(x):
        return doubled(doubled(x))

    assert jax.jit(in_place(twice)).lower(jnp.ones(3)).as_text().count("call @") == 2
    assert len(traced) == 1, "and what it calls is no call"
    np.testing.assert_array_equal(jax.jit(in_place(twice))(jnp.ones(3)), twice(jnp.ones(3)))


def test_outside_everything_is_as_jax_has_it():
    x = jnp.ones(3)
    gradient = jax.grad(lambda x: _tracing.fori_loop(0, 3, lambda _, x: x * x, x).sum())(x)
    np.testing.assert_array_equal(gradient, 8 * x)
    with pytest.raises(RuntimeError), _tracing.in_place():
        raise RuntimeError
    assert not jax.config.jax_disable_jit


def test_losses_are_traced_so():
    batch = jnp.zeros((40, 2, 5)), jnp.array([[1, 2], [3, 4]]), jnp.array([40, 30]), jnp.array([2, 1])
    text = jax.jit(functools.partial(jaxctc.ctc_loss_with_logits, reduction="none")).lower(*batch).as_text()
    functions = set(re.findall(r"func private @(\w+?)(?:_\d+)?\(", text))
    assert functions == {"_reduced", "run", "_two_steps", *["loops"] * ONE_KERNEL}, "call, gather, steps, recursion"
