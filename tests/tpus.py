"""Compiling for a TPU where there is none: libtpu does, and needs to be told that there is no machine to ask about."""

import os

import jax
import pytest

_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # by several processes of tests
}


def devices(kind: str) -> list[jax.Device]:
    """Of one host with four of them."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (pip install --group tpu)")
    from jax.experimental import topologies

    os.environ |= _NO_MACHINE
    jax.jit(lambda: 0)()
    # XLA for CPUs has read them. Libtpu does when it compiles, and ends the process at one that it does not know.
    os.environ.pop("XLA_FLAGS", None)
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:2x2").devices
