"""Trace programs in less time: functions of `jax.numpy` where they are called, and loops with one counter.

`jax.numpy` compiles nearly each of its functions with `jax.jit`, whose calls for new shapes are traced apart: 0.3 ms
each, for 300 calls in one loss and its gradient. Within `in_place` these functions are traced as any other function is.
JAX calls that `jax.disable_jit`, which has loops run in Python as well: the loops and `jit` of this module do not.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax

from jaxctc._sizes import Index, as_int32

_T = TypeVar("_T")

_is_in_place: contextvars.ContextVar[bool] = contextvars.ContextVar("is_in_place", default=False)


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Trace what is called within as it is, also where a function has been compiled by `jax.jit`."""
    token = _is_in_place.set(True)
    try:
        with jax.disable_jit():
            yield
    finally:
        _is_in_place.reset(token)


def jit(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return the function as `jax.jit` compiles it, also within `in_place`: traced and lowered once for its shapes."""
    compiled = jax.jit(_inside(function))

    @functools.wraps(function)
    def call(*operands: Any) -> _T:
        with _outside():
            return compiled(*operands)

    return call


def scan(step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what `jax.lax.scan` returns, also within `in_place`."""
    with _outside():
        return lax.scan(_inside(step), *arguments, **options)


def fori_loop(start: Index, stop: Index, turn: Callable[[Any, _T], _T], initial: _T) -> _T:
    """Return what `jax.lax.fori_loop` returns; JAX cannot transpose the loop within `in_place`.

    Where both ends are known, JAX makes a `lax.scan` of it: it traces that twice, and counts in two numbers, of which
    XLA removes one by simplifying the program another time. Within `in_place` there is one counter.
    """
    if not _is_in_place.get():
        return lax.fori_loop(start, stop, turn, initial)
    first, end = as_int32(start), as_int32(stop)

    def next_turn(carry: tuple[Any, _T]) -> tuple[Any, _T]:
        i, state = carry
        return lax.add(i, np.int32(1)), _inside(turn)(i, state)

    with _outside():
        return lax.while_loop(lambda carry: lax.lt(carry[0], end), next_turn, (first, initial))[1]


def _outside() -> contextlib.AbstractContextManager[None]:
    """Return a context in which `jax.jit` is as it is outside of `in_place`."""
    return jax.disable_jit(False) if _is_in_place.get() else contextlib.nullcontext()


def _inside(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return the function, which is traced in place if `in_place` is in force."""

    @functools.wraps(function)
    def run(*operands: Any) -> _T:
        with jax.disable_jit() if _is_in_place.get() else contextlib.nullcontext():
            return function(*operands)

    return run
