"""Compute the parts of a call side by side, on one thread for each core at hand.

JAX runs in turn what one thread enqueues, and side by side what several threads do. Each thread here has one thread
of PyTorch's: an operation that PyTorch or XLA divides among threads waits for all of them, and on a busy machine one
may not be scheduled for milliseconds. Of the parts here, a thread that is not scheduled takes fewer.

What the parts are does not depend on the number of threads, so that results have the same bits whatever it is.
"""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Generic, TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

SMALL = 1 << 15
"""The number of elements below which PyTorch does not divide an operation among threads."""

_lock = threading.Lock()
_pool: futures.ThreadPoolExecutor | None = None
_size = 0


def cores() -> int:
    """Return the number of threads to use: as many as PyTorch may use and the calling thread may run on."""
    at_hand = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), at_hand)


def side_by_side(function: Callable[[Part], Result], parts: Iterable[Part], worthwhile: bool) -> list[Result]:
    """Return the function's result for each part; if it fails, raise what a loop over the parts would raise.

    Not `worthwhile`, it is that loop. Autograd is off in the threads. The function must not call `side_by_side`: it
    might wait for itself.
    """
    threads = cores() if worthwhile else 1
    if threads < 2:
        return list(map(function, parts))
    job = _Job(function, parts)
    working: list[futures.Future[None]] = []
    try:
        with contextlib.suppress(RuntimeError):  # a process that ends, or is out of memory, starts no threads
            for _ in range(min(threads, job.count)):
                working.append(_workers(threads).submit(job.work))
        for worker in working:
            worker.result()
        job.work()
    finally:
        # After Ctrl-C, for instance: nobody goes on working on tensors that the caller thinks are free.
        job.cancel()
        futures.wait(working)
    return job.results()


class _Job(Generic[Part, Result]):
    """Hold the parts that are not computed yet, and the results of the others."""

    def __init__(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> None:
        self._function = function
        self._left = collections.deque(enumerate(parts))
        self.count = len(self._left)
        self._results: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}
        self._inference = torch.is_inference_mode_enabled()

    def work(self) -> None:
        """Compute one part after another, until none is left or one has failed."""
        # A thread outside of inference mode must not write to tensors that were made within it.
        with torch.inference_mode() if self._inference else contextlib.nullcontext():
            while self._left:
                try:
                    index, part = self._left.popleft()
                except IndexError:  # another thread took it
                    return
                try:
                    self._results[index] = self._function(part)
                except BaseException as error:  # noqa: BLE001, raised again by `results`
                    self._errors[index] = error
                    self.cancel()

    def cancel(self) -> None:
        self._left.clear()

    def results(self) -> list[Result]:
        """Return the results in order, or raise the error of the first part that failed."""
        if self._errors:
            # Parts are taken in order: whatever comes before it has been computed.
            error = self._errors[min(self._errors)]
            self._errors.clear()
            try:
                raise error
            finally:
                del error  # its traceback leads here: the cycle would keep the tensors of the call alive
        return [self._results[index] for index in range(self.count)]


def _workers(count: int) -> futures.ThreadPoolExecutor:
    """Return the pool, of at least so many threads."""
    global _pool, _size
    with _lock:
        if _pool is None or _size < count:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _size = _started(count), count
        return _pool


def _started(count: int) -> futures.ThreadPoolExecutor:
    """Return a pool whose threads have begun."""
    pool = futures.ThreadPoolExecutor(count, "jaxctc", _set_up)
    together = threading.Barrier(count)
    try:
        futures.wait([pool.submit(together.wait) for _ in range(count)])
    except RuntimeError:
        together.abort()
        raise
    # The threads have also set what threads that come later begin with.
    torch.set_num_threads(torch.get_num_threads())
    return pool


def _set_up() -> None:
    torch.get_num_threads()  # PyTorch's first call of a thread gives it the number of the process: it comes before ours
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def _in_child() -> None:
    """Forget the parent's threads, which a forked process does not have."""
    global _lock, _pool, _size
    _lock, _pool, _size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
