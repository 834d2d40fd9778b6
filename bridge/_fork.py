"""Detect a process that was forked after JAX had started.

JAX's threads do not survive a fork: a call of JAX in the child would wait for them for ever. A child that does not call
JAX needs none of them. JAX warns at every fork nevertheless, for a child might call it. Where it was the bridge that
started JAX, that warning is hidden, because the bridge raises an error in such a child.
"""

import os
import warnings

from jax._src import xla_bridge

_inherited = False


def _in_child() -> None:
    global _inherited  # noqa: PLW0603, a fact about the process
    _inherited = xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)


def check() -> None:
    """Raise an error in a process that was forked after JAX had started in its parent."""
    if not xla_bridge.backends_are_initialized():  # the call that follows starts JAX
        message = r"os\.fork\(\) was called\. .* JAX is multithreaded"
        warnings.filterwarnings("ignore", message, RuntimeWarning)
    if _inherited:
        raise RuntimeError(
            "The bridge was called in a process that was forked after JAX had started in its parent, where JAX would "
            "wait for ever. Start the process with the spawn or forkserver method, for a DataLoader with "
            'multiprocessing_context="spawn"; or compute losses in the parent only, and no JAX in the workers.'
        )
