"""Measure the peak of the memory that a job takes beyond its inputs and the gradient that it returns.

Each implementation is measured in a process of its own. Imports, compilation and what an implementation keeps for good
are not the job's: the job runs once before it is measured. On the CPU the figure is the high-water mark of resident
memory, the largest of a few calls; the allocator is told to give freed memory back at once, or a job would be
served from what its first run left. On a GPU it is what the allocators of JAX, PyTorch and TensorFlow report.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from benchmarks._peers import PEERS, Call, Job, Peer, on_gpu
from benchmarks._shapes import Batch, Shape, draw

RESOLUTION = 256 << 10
"""Bytes: the kernel counts resident pages for each processor apart, and adds them up now and then."""
_REPEATS = 10
# XLA frees a call's buffers a little after the call.
_REST = 0.05


def peaks(peer: Peer, work: Sequence[tuple[Job, Shape]], ragged: bool = False) -> Iterator[int]:
    """Bytes, for each job on each shape, as they come."""
    # JAX's allocator on a GPU never resets its highest mark.
    for part in [[item] for item in work] if on_gpu() else [work]:
        command = [sys.executable, "-m", __name__, json.dumps([peer.name, part, ragged])]
        environment = os.environ | {
            "MALLOC_MMAP_THRESHOLD_": "16384",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        }
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                yield int(line)
        if process.returncode:
            raise RuntimeError(f"measuring the memory of {peer.name} ended with status {process.returncode}")


def _measure(peer: Peer, job: Job, batch: Batch) -> int:
    call = peer.prepare(job, batch)
    call()
    peak = max(_device_peak(call) if on_gpu() else _resident_peak(call) for _ in range(_REPEATS))
    return max(peak - (0 if job is Job.LOSS else batch.logits.nbytes), 0)


def _resident_peak(call: Call) -> int:
    time.sleep(_REST)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _device_peak(call: Call) -> int:
    before, _ = _allocated()
    call()
    _, peak = _allocated()
    return peak - before


def _allocated() -> tuple[int, int]:
    """Bytes on the GPU now, and at most so far, over all allocators that this process has loaded."""
    stats = jax.devices()[0].memory_stats()
    now, most = stats["bytes_in_use"], stats["peak_bytes_in_use"]
    if torch := sys.modules.get("torch"):
        now, most = now + torch.cuda.memory_allocated(), most + torch.cuda.max_memory_allocated()
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow and tensorflow.config.list_physical_devices("GPU"):
        info = tensorflow.config.experimental.get_memory_info("GPU:0")
        now, most = now + info["current"], most + info["peak"]
    return now, most


def _main(request: str) -> None:
    name, work, ragged = json.loads(request)
    peer = next(peer for peer in PEERS if peer.name == name)
    for job, shape in work:
        print(_measure(peer, Job(job), draw(Shape(*shape), ragged)), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
