"""Call the bridge on many random shapes: resident memory, file handles and threads must stay as after warm-up.

JAX_PLATFORMS=cpu python benchmarks/soak.py [calls]
"""

import ctypes
import gc
import os
import random
import sys
import threading
import time
from pathlib import Path

import torch

import bridge


def resident() -> float:
    """Megabytes of this process in memory, without what the allocator could give back at once."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim:
        trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def state() -> str:
    """Return memory, file handles and threads in one line."""
    handles = len(list(Path("/proc/self/fd").iterdir()))
    return f"{resident():7.1f} MB resident, {handles} file handles, {threading.active_count()} Python threads"


def call(generator: random.Random, longest: int = 200, classes: int = 8) -> None:
    """One training step's worth: either function, any reduction, now and then a second derivative or an error."""
    frames, sequences, labels = generator.randint(1, longest), generator.randint(1, 16), generator.randint(0, 30)
    leaf = torch.zeros(frames, sequences, classes, requires_grad=True)
    targets = torch.randint(1, classes, (sequences, labels))
    function = generator.choice([bridge.ctc_loss, bridge.ctc_loss_with_logits])
    if generator.random() < 0.05:
        try:
            function(leaf, targets + classes, frames, labels)
        except RuntimeError:
            return
    reduction = generator.choice(["none", "mean", "sum"])
    loss = function(leaf, targets, frames, labels, reduction=reduction, zero_infinity=True).sum()
    if generator.random() < 0.05:
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        loss = gradient.square().sum()
    loss.backward()


def main(calls: int = 20_000) -> None:
    """Call the bridge so many times, and print the state of the process at every twentieth part."""
    generator = random.Random(0)
    started = time.perf_counter()
    for number in range(calls + 1):
        if number % (calls // 20) == 0:
            print(f"{number:6} calls  {time.perf_counter() - started:6.0f} s  {state()}", flush=True)
        call(generator)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
