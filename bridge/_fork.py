"""Raise an error in a process that was forked after JAX had started, and hide JAX's warning of such processes.

A child that does not call JAX is safe. JAX warns at every fork nevertheless, for a child might call it. Where it was
the bridge that started JAX, that warning is hidden, because the bridge and jaxctc raise an error in such a child.
"""

import warnings

from jaxctc._inputs import fork


def check() -> None:
    """Raise an error in a process that was forked after JAX had started in its parent."""
    if not fork.jax_has_started():  # the call that follows starts JAX
        message = r"os\.fork\(\) was called\. .* JAX is multithreaded"
        warnings.filterwarnings("ignore", message, RuntimeWarning)
    fork.check()
