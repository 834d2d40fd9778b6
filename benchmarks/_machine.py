"""What the figures were measured on."""

import datetime
import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path

import jax

QUIET = 0.05
"""The largest part of the processors that others may take if the figures are to be kept."""


PACKAGES = (
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("torch", "optax", "numpy", "keras", "tensorflow", "tensorflow-cpu"),
)


def bound(threads: int) -> None:
    """Keeps this process, and those it starts, to so many processors; call it before anything has computed."""
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(available):
        raise ValueError(f"this machine has 1 to {len(available)} processors to give, not {threads}")
    os.sched_setaffinity(0, available[:threads])


def threads() -> int:
    """How many threads each implementation gets: XLA counts the same processors."""
    return len(os.sched_getaffinity(0))


def device_kind() -> str:
    return jax.devices()[0].device_kind


def describe() -> dict[str, str | int | float]:
    versions: dict[str, str | int] = _cuda() if device_kind() != "cpu" else {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device_kind(),
        "cpu": _cpu_model(),
        "threads": threads(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cuda() -> dict[str, str | int]:
    """Returns the name that PyTorch gives the device."""
    import torch

    return {"cuda": torch.version.cuda or "none", "cudnn": torch.backends.cudnn.version() or "none"}


class Watch:
    """Watches how much of the processors other processes use."""

    def __init__(self):
        self._start = self._others(), time.monotonic()

    def others_share(self) -> float:
        """Returns the part that others used of all processors, since the watch began."""
        others, start = self._start
        return max((self._others() - others) / (time.monotonic() - start) / os.cpu_count(), 0.0)

    @staticmethod
    def _others() -> float:
        """Returns the seconds of processor time that were neither idle nor taken by this process and its children."""
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])


def _cpu_model() -> str:
    name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return name[1] if name else platform.machine()
