"""Run rows of the check in a process of their own, so that a crash or a kernel that hangs is a row and not the end."""

import importlib
import platform
import shutil
import subprocess
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from jaxctc._kernels import dispatch
from jaxctc._tools import processes
from jaxctc._tools.check import correctness, timing
from jaxctc._tools.check.cases import Case
from jaxctc._tools.check.correctness import Row
from jaxctc._tools.check.timing import Shape

INTERPRETED = "pallas, interpreted"
"""The kernels for TPUs, run by Pallas's interpreter, where there is no device for kernels."""


def register_interpreted() -> None:
    """Make the kernels for TPUs an implementation for any platform, under the name `INTERPRETED`."""
    from jaxctc._kernels import tpu

    class Interpreted:
        PRECISION = jax.lax.Precision.HIGHEST

        @staticmethod
        def likelihood(emissions: Any, start: Any) -> Any:
            return tpu.likelihood(emissions, start, interpret=True)

        @staticmethod
        def posterior(emissions: Any, size: int, start: Any, *, every_blank: bool) -> Any:
            return tpu.posterior(emissions, size, start, every_blank=every_blank, interpret=True)

    dispatch.register(INTERPRETED, Interpreted)


def machine() -> dict[str, Any]:
    """Return the devices that JAX has, their driver, and the versions of all that takes part."""
    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for name in ("jaxctc", "jax", "jaxlib", "numpy", "torch", "optax"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "compute_capability": getattr(devices[0], "compute_capability", None),
        "driver": _driver() or getattr(devices[0].client, "platform_version", "").strip() or None,
        "system": platform.platform(),
        "versions": versions,
    }


def _driver() -> str | None:
    if jax.default_backend() != "gpu" or not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else None


def _row(task: dict[str, Any]) -> dict[str, Any]:
    if "shape" in task:
        return {"milliseconds": timing.milliseconds(Shape(*task["shape"]), task["implementations"])}
    try:
        return correctness.row(Case(**task["case"]), task["implementation"])._asdict()
    except Exception as error:  # noqa: BLE001, whatever goes wrong is what the row says
        traceback.print_exc()
        return Row(
            "failed", note=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )._asdict()


def _start(task: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    for module in task["modules"]:
        importlib.import_module(module)
    register_interpreted()
    jax.block_until_ready(jnp.zeros(()) + 1)
    return machine(), _row


if __name__ == "__main__":
    processes.serve(_start)
