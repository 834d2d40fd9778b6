"""Hold the implementation that serves the calls which do not name one."""

import os
from types import TracebackType

from jaxctc._inputs import checks
from jaxctc._types import Implementation

VARIABLE = "JAXCTC_IMPLEMENTATION"
"""The environment variable that gives the implementation to begin with."""

_default: str | None = None


class set_implementation:  # noqa: N801, a call reads like a function
    """Choose the implementation that serves every call which does not name one, the bridge's included.

    It is chosen for good, or within a ``with`` block until the end of the block; either way for all threads. With
    ``"pallas"``, kernels run wherever they can serve the batch on the platform at hand, and the loops of ``"xla"``
    elsewhere; only a call that says ``implementation="pallas"`` itself raises where no kernel can. The environment
    variable ``JAXCTC_IMPLEMENTATION`` makes the same choice when the package is imported.

    The choice is read when a call is traced. A function that `jax.jit` has compiled keeps what it was compiled with.

    ``python -m jaxctc.check`` compares the implementations on the devices at hand and says whether to choose another.

    Args:
        implementation: ``"reference"``, ``"xla"`` or ``"pallas"``, as for `jaxctc.ctc_loss`; None lets the package
            choose again.

    Raises:
        ValueError: It is none of these.

    Example:
        >>> import jaxctc
        >>> with jaxctc.set_implementation("reference"):
        ...     loss = jaxctc.ctc_loss([[-0.1, -2.3], [-0.1, -2.3]], [1], 2, 1)
    """

    def __init__(self, implementation: Implementation | None) -> None:
        checks.implementation(implementation)
        self._before = _default
        _set(implementation)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _set(self._before)


def _set(implementation: str | None) -> None:
    global _default  # noqa: PLW0603, the choice is for all of the process
    _default = implementation


def served_by(implementation: str | None) -> tuple[str | None, bool]:
    """Return the implementation that a call asks for, and whether kernels are to run wherever they can."""
    if implementation is None and _default == "pallas":
        return None, True
    return implementation or _default, False


def _from_environment() -> None:
    value = os.environ.get(VARIABLE) or None
    try:
        checks.implementation(value)
    except ValueError as error:
        raise ValueError(f"The environment variable {VARIABLE}: {error}") from None
    _set(value)


_from_environment()
