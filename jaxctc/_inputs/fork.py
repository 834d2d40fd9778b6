"""Detect a process that was forked after JAX had started.

JAX's threads do not survive a fork: a call of JAX in the child would wait for them for ever.
"""

import os

from jax._src import xla_bridge

_inherited = False


def _in_child() -> None:
    global _inherited  # noqa: PLW0603, a fact about the process
    _inherited = jax_has_started()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)


def jax_has_started() -> bool:
    return bool(xla_bridge.backends_are_initialized())


def check() -> None:
    """Raise an error in a process that was forked after JAX had started in its parent."""
    if _inherited:
        raise RuntimeError(
            "A function that JAX computes was called in a process that was forked after JAX had started in its parent: "
            "JAX would wait for ever. Start the process with the spawn or forkserver method, for a DataLoader with "
            'multiprocessing_context="spawn"; or call such functions in the parent only.'
        )
