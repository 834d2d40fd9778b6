"""Blocks side by side: the same bits for any number of threads, errors in order, nothing left over."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
import torch
from torch.nn import functional

import bridge
from bridge import _programs, _threads

ROOT = Path(__file__).parents[2]
# Name, (T, N, C, S): several blocks whose last one is padded, a vocabulary, one block, and targets of 256 labels.
SHAPES = {
    "blocks": (140, 20, 12, 9),
    "vocabulary": (140, 20, 140, 9),
    "small": (20, 3, 12, 9),
    "long": (300, 5, 12, 257),
}


@pytest.fixture
def threads(monkeypatch):
    """Set the number of threads, whatever the machine has, and start without a pool."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    _threads._in_child()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(shape, dtype=torch.float32):
    frames, sequences, classes, labels = shape
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(frames, sequences, classes, generator=generator, dtype=torch.float64).log_softmax(2).to(dtype)
    targets = torch.arange(sequences * labels).reshape(sequences, labels) % (classes - 1) + 1
    return scores, targets, [frames - n % 3 for n in range(sequences)], [labels - n % 2 for n in range(sequences)]


def value_and_gradient(scores, *rest, scale=1.0):
    leaf = scores.clone().requires_grad_()
    loss = bridge.ctc_loss(leaf, *rest, reduction="none")
    loss.backward(torch.full_like(loss, scale))
    return loss.detach(), leaf.grad


def names():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jaxctc")]


@pytest.mark.parametrize(
    ("shape", "dtype", "scale"),
    [
        ("blocks", torch.float32, 1.0),
        ("blocks", torch.bfloat16, 512.0),
        ("vocabulary", torch.float32, 1.0),
        ("vocabulary", torch.float16, 512.0),
        pytest.param("long", torch.float32, 1.0, marks=pytest.mark.full),
    ],
)
def test_the_same_bits_for_any_number_of_threads(threads, shape, dtype, scale):
    args = problem(SHAPES[shape], dtype)
    results = []
    for count in (1, 2, 4):
        threads(count)
        results.append(value_and_gradient(*args, scale=scale))
    assert len(names()) >= 4
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
    leaf = args[0].double().requires_grad_()
    loss = functional.ctc_loss(leaf, *args[1:], reduction="none")
    loss.backward(torch.full_like(loss, scale))
    torch.testing.assert_close(results[0][0].double(), loss.detach(), rtol=1e-5, atol=1e-4)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(results[0][1].double(), leaf.grad, rtol=max(1e-4, eps), atol=scale * 2e-5)


def test_everything_that_has_blocks_has_the_same_bits(threads):
    scores, *rest = problem(SHAPES["blocks"])

    def everything():
        leaf = scores.clone().requires_grad_()
        (first,) = torch.autograd.grad(bridge.ctc_loss(leaf, *rest), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        posteriors = bridge.ctc_posteriors(leaf, *rest)
        (pulled_back,) = torch.autograd.grad(posteriors.classes.square().sum(), leaf)
        with torch.no_grad():
            found = [bridge.ctc_loss(scores, *rest), *bridge.forced_align(scores, *rest)]
            found += bridge.beam_search_decode(scores[:20], 20, beam_width=2)
        return [first.detach(), second, *(x.detach() for x in posteriors), pulled_back, *found]

    threads(1)
    expected = everything()
    assert not names()
    threads(3)
    for ours, theirs in zip(everything(), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert names()


def test_each_thread_has_one_of_pytorch_s_and_no_autograd_and_the_caller_keeps_its_own(threads):
    threads(3)
    found = _threads.side_by_side(lambda _: (torch.get_num_threads(), torch.is_grad_enabled()), range(6), True)
    assert found == [(1, False)] * 6
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3


def test_parts_are_computed_at_the_same_time(threads):
    threads(3)
    together = threading.Barrier(3, timeout=60)
    assert sorted(_threads.side_by_side(lambda _: together.wait(), range(3), True)) == [0, 1, 2]


def test_no_more_threads_than_cores_at_hand(threads, monkeypatch):
    threads(4)
    assert _threads.cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    assert _threads.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # not on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert _threads.cores() == 3


@pytest.mark.parametrize("small", ["small", "one thread"])
def test_a_small_batch_and_one_thread_need_no_pool(threads, small):
    threads(4 if small == "small" else 1)
    value_and_gradient(*problem(SHAPES["small" if small == "small" else "blocks"]))
    assert not names()


def test_the_first_error_in_order_surfaces_and_nothing_runs_after_it(threads):
    threads(2)
    begun, failed = [], threading.Event()

    def part(index):
        begun.append(index)
        if index == 0:
            assert failed.wait(60)  # the second part fails first
            raise MemoryError("no memory for part 0")
        failed.set()
        raise KeyError("part 1")

    with pytest.raises(MemoryError, match="no memory for part 0"):
        _threads.side_by_side(part, range(50), True)
    assert begun[:2] == [0, 1]
    assert len(begun) == 2


def test_an_error_of_a_program_reaches_the_caller_whole(threads, monkeypatch):
    threads(2)

    def fail(*_):
        raise MemoryError("no memory for the block")

    monkeypatch.setitem(_programs._losses_and_gradient, "cpu", fail)
    with pytest.raises(MemoryError, match="no memory for the block") as caught:
        value_and_gradient(*problem(SHAPES["blocks"]))
    assert "fail" in [entry.name for entry in caught.traceback]


def test_an_interrupted_caller_waits_for_the_threads(threads, monkeypatch):
    """After Ctrl-C nobody writes to tensors that the caller has given up."""
    threads(2)
    ended, begun = [], threading.Event()

    def part(index):
        begun.set()
        time.sleep(0.2)
        ended.append(index)

    def interrupted(_):
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _threads.side_by_side(part, range(50), True)
    count = len(ended)
    assert 1 <= count <= 2
    time.sleep(0.3)
    assert len(ended) == count


def test_many_threads_of_the_user_s_at_once(threads):
    """More of them than there are cores; in two types, for JAX's switch to float64 belongs to a thread."""
    threads(3)
    problems = [problem(SHAPES["blocks"], dtype) for dtype in (torch.float32, torch.float64)]
    expected = [value_and_gradient(*args) for args in problems]
    with ThreadPoolExecutor(8) as users:
        found = list(users.map(lambda n: value_and_gradient(*problems[n % 2]), range(32)))
    for n, ours in enumerate(found):
        assert torch.equal(ours[0], expected[n % 2][0])
        assert torch.equal(ours[1], expected[n % 2][1])
    assert len(names()) == 3


def test_inference_mode_holds_in_the_threads(threads):
    threads(2)
    args = problem(SHAPES["blocks"])
    with torch.no_grad():
        expected = bridge.ctc_loss(*args), *bridge.ctc_posteriors(*args)
    with torch.inference_mode():
        scores, *rest = problem(SHAPES["blocks"])
        found = bridge.ctc_loss(scores, *rest), *bridge.ctc_posteriors(scores, *rest)
    assert names()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    value_and_gradient(*args)  # the threads are out of it again: what they make can be saved for a backward pass


def test_a_program_is_compiled_once_however_many_threads_ask_for_it(threads):
    threads(4)
    compiled = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        scores, *rest = problem((140, 40, 26, 9))
        value_and_gradient(scores, *rest)
        first = len(compiled)
        for sequences in (33, 9):  # another number of blocks, the same program
            value_and_gradient(*problem((140, sequences, 26, 9)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert (first, len(compiled)) == (1, 1)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="XLA divides nothing for one core"
)
def test_xla_divides_no_operation_among_its_own_threads():
    """What it would divide is there: the same function without the option has such operations."""
    scores, targets, *lengths = problem((512, 16, 32, 100))
    arguments = (
        bridge._batch.Spec(0, False, False, True).request,
        True,
        torch.ones(2, 16).numpy(),
        scores.numpy(),
        targets.int().numpy(),
        torch.tensor(lengths).T.int().numpy(),
    )
    divided = {
        device: _programs._losses_and_gradient[device].lower(*arguments).compile().as_text().count('_partitions":["')
        for device in ("cpu", "cuda")
    }
    assert divided["cpu"] == 0 < divided["cuda"], divided


FORKED = """
import os, signal, torch, bridge
from bridge import _threads
torch.set_num_threads(2)
os.sched_getaffinity = lambda _: range(2)
scores, targets = torch.zeros(140, 20, 140), torch.ones(20, 3, dtype=torch.long)
leaf = scores.clone().requires_grad_()
loss = bridge.ctc_loss(leaf, targets, 140, 3)
assert _threads.side_by_side(lambda x: x, range(9), True) == list(range(9))
child = os.fork()
if not child:
    signal.alarm(60)  # a child that waits for the parent's threads ends
    assert _threads.side_by_side(lambda x: x, range(9), True) == list(range(9))
    loss.backward()  # of a vocabulary, whose gradient is written without JAX
    try:
        bridge.ctc_loss(scores, targets, 140, 3)
    except RuntimeError as error:
        os._exit("forked" not in str(error))
    os._exit(2)
assert os.waitpid(child, 0)[1] == 0
loss.backward()
print("both went on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_does_not_wait_for_the_parent_s_threads():
    finished = run(FORKED)
    assert finished.stdout == "both went on\n", finished.stderr


AT_EXIT = """
import atexit, os, torch, bridge
torch.set_num_threads(2)
os.sched_getaffinity = lambda _: range(2)
def loss():
    return bridge.ctc_loss(torch.zeros(140, 20, 6), torch.ones(20, 3, dtype=torch.long), 140, 3).item()
before = loss() if {earlier} else None
atexit.register(lambda: print("a loss at exit", before in (None, loss())))
"""


@pytest.mark.parametrize("earlier", [True, False])
def test_a_process_ends_and_computes_a_loss_while_it_ends(earlier):
    finished = run(AT_EXIT.format(earlier=earlier))
    assert finished.stdout == "a loss at exit True\n", finished.stderr
    assert finished.returncode == 0, finished.stderr


def run(script):
    command = [sys.executable, "-W", "ignore", "-c", script]
    return subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True, check=False)
