"""Threads, forked processes, memory, exceptions, and the same bits every time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import bridge

ROOT = Path(__file__).parents[2]


def problem(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(20, 3, 6, generator=generator, dtype=dtype).log_softmax(2)
    targets = torch.randint(1, 6, (3, 5), generator=generator)
    return scores, targets, [20, 20 - seed % 7, 12], [5, 3, seed % 5]


def value_and_gradient(function, scores, *rest):
    leaf = scores.clone().requires_grad_()
    loss = function(leaf, *rest)
    loss.backward()
    return loss.detach(), leaf.grad


def test_eight_threads_at_once():
    """Two types: JAX's switch to float64 belongs to a thread."""
    problems = [problem(seed, (torch.float32, torch.float64)[seed % 2]) for seed in range(64)]
    with ThreadPoolExecutor(8) as threads:
        ours = list(threads.map(lambda args: value_and_gradient(bridge.ctc_loss, *args), problems))
    for result, args in zip(ours, problems, strict=True):
        torch.testing.assert_close(result, value_and_gradient(functional.ctc_loss, *args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 3), (64, 21)])
def test_the_same_bits_every_time(size):
    scores = torch.randn(*size, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(size[1] * 5).reshape(-1, 5) % 5 + 1
    first, *others = (value_and_gradient(bridge.ctc_loss_with_logits, scores, targets, size[0], 5) for _ in range(10))
    for again in others:
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_an_exception_in_the_backward_pass_reaches_the_caller_whole(monkeypatch):
    from bridge import _programs

    leaf = problem(0)[0].requires_grad_()
    loss = bridge.ctc_loss(leaf, *problem(0)[1:])

    def fail(*_):
        raise MemoryError("no memory for the second derivative")

    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    monkeypatch.setitem(_programs._hessian_product, "cpu", fail)
    with pytest.raises(MemoryError, match="no memory for the second derivative"):
        first.sum().backward()


FORKED_LOADERS = """
import torch, bridge
def loss():
    return bridge.ctc_loss(torch.zeros(9, 2, 4), torch.ones(2, 2, dtype=torch.long), 9, 2).item()
class Data(torch.utils.data.Dataset):
    def __init__(self, loss_inside):
        self.loss_inside = loss_inside
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return loss() if self.loss_inside else torch.full((3,), index)
def forked(data):
    return torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
before = loss()
for batch in forked(Data(loss_inside=False)):
    assert loss() == before
print("the loader ran through")
for batch in forked(Data(loss_inside=True)):
    pass
"""


def run(script):
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)


def test_a_forked_data_loader_does_not_hang_and_a_loss_inside_says_what_to_do():
    finished = run(FORKED_LOADERS)
    assert finished.stdout == "the loader ran through\n", finished.stderr
    assert finished.returncode != 0
    assert 'multiprocessing_context="spawn"' in finished.stderr
    assert "JAX is multithreaded" not in finished.stderr, "JAX's warning of what the bridge reports where it happens"


FORKED = """
import multiprocessing, sys
import numpy as np, torch
import bridge, jaxctc
batch = torch.zeros(9, 2, 4), torch.ones(2, 2, dtype=torch.long), [9, 9], [2, 2]
arrays = [np.asarray(x) for x in batch]
decoded = bridge.greedy_decode(batch[0], 9)  # PyTorch's own functions wait for ever in a child, on some machines
calls = {
    "bridge.diagnose": lambda: bridge.diagnose(*batch),
    "jaxctc.diagnose": lambda: jaxctc.diagnose(*arrays),
    "jaxctc.ctc_loss": lambda: jaxctc.ctc_loss(*arrays),
    "jaxctc.forced_align": lambda: jaxctc.forced_align(*arrays),
    "jaxctc.greedy_decode": lambda: jaxctc.greedy_decode(arrays[0], arrays[2]),
    "bridge.decoded_spans": lambda: bridge.decoded_spans(batch[0], decoded, 9),
}
for name, call in calls.items():
    call()
def child(name):
    try:
        calls[name]()
    except RuntimeError as error:
        sys.exit(0 if "was forked after JAX had started" in str(error) else 2)
    sys.exit(1)
for name in calls:
    process = multiprocessing.get_context("fork").Process(target=child, args=(name,))
    process.start()
    process.join(20)
    print(name, process.exitcode)
    process.kill()
"""


def test_what_jax_computes_raises_in_a_forked_process():
    finished = run(FORKED)
    codes = [line.split()[1] for line in finished.stdout.splitlines()]
    assert codes == ["0"] * 6, finished.stdout + finished.stderr


WARNED = """
import jax, torch, bridge, warnings
jax.devices()  # started by somebody else, who may call it in the children
bridge.ctc_loss(torch.zeros(9, 2, 4), torch.ones(2, 2, dtype=torch.long), 9, 2)
for _ in torch.utils.data.DataLoader(range(2), num_workers=1, multiprocessing_context="fork"):
    pass
"""


def test_jax_warns_of_a_fork_where_the_bridge_did_not_start_it():
    finished = run(WARNED)
    assert finished.returncode == 0, finished.stderr
    assert "JAX is multithreaded" in finished.stderr


WITHOUT_FORK = """
import os
import torch
if hasattr(os, "register_at_fork"):
    del os.register_at_fork
import bridge
print(round(bridge.ctc_loss_with_logits(torch.zeros(4, 1, 3), [[1, 2]], 4, 2).item(), 4))
"""


def test_a_system_without_fork():
    finished = run(WITHOUT_FORK)
    assert finished.stdout == "0.8432\n", finished.stderr


def test_without_pytorch_the_package_says_what_to_install():
    finished = run("import sys; sys.modules['torch'] = None; import bridge")
    assert "ImportError: bridge needs PyTorch. Install it" in finished.stderr
    finished = run("import bridge; print({x for x in dir(bridge) if x[0] != '_'} == set(bridge.__all__))")
    assert finished.stdout == "True\n", finished.stderr


SOAK = """
import random, sys
sys.path.insert(0, "benchmarks")
import soak
def calls():
    generator = random.Random(0)
    for _ in range(450):  # of 60 kB each in the mean, 27 MB in all; the allocator alone scatters by 4 to 13 MB
        soak.call(generator, 30, 128)
calls()  # every program, of 15 to 40 MB each, is compiled here
before, handles = soak.resident(), soak.state().split(", ")[1:]
calls()
assert soak.resident() - before < 16, (before, soak.resident())
assert soak.state().split(", ")[1:] == handles, (handles, soak.state())
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="memory and file handles are read from Linux's /proc")
def test_memory_and_file_handles_stay_what_they_are():
    """benchmarks/soak.py in short."""
    finished = run(SOAK)
    assert finished.returncode == 0, finished.stderr
