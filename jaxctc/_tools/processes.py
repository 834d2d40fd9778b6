"""Give rows to worker processes, one after the other, and wait no longer than a time limit for each.

A worker is given its task as JSON in its first argument, and prints one line of JSON when it has started, one when it
begins a row and one when it ends it. Whatever else is printed there goes to the standard error.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_START = 180.0
"""Seconds within which a worker must have imported JAX and found its devices."""


class Worker:
    """One process that runs rows until it ends, crashes or is stopped."""

    def __init__(self, program: str, rows: list[tuple[int, Any]], options: dict[str, Any]) -> None:
        task = json.dumps({"rows": rows, **options})
        environment = {**os.environ}
        platforms = environment.get("JAX_PLATFORMS")
        if platforms and "cpu" not in platforms.split(","):
            environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # the reference runs there
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is read when the process has ended
        self._process = subprocess.Popen(
            [sys.executable, "-m", program, task],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def next(self, limit: float) -> dict[str, Any] | None:
        """Return the next message; None if the process has ended. Raises TimeoutError if there is none in time."""
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise TimeoutError from None
        return None if line is None else json.loads(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def death(self) -> str:
        """Return what a process that has ended died of."""
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or [""]
        if code < 0:
            return f"the process died of {signal.Signals(-code).name}"
        return f"the process ended with status {code}: {last[0]}"


def machine(program: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what a worker says of the machine that it runs on."""
    worker = Worker(program, [], options)
    try:
        return _started(worker)
    finally:
        worker.stop()


def run(
    program: str,
    rows: list[Any],
    titles: list[str],
    options: dict[str, Any],
    limit: float,
    deadline: float = float("inf"),
) -> list[dict[str, Any]]:
    """Return the result of each row. A row that crashed or took longer than `limit` says so.

    A terminal is shown the title of the row that is being run.
    `program` is the module of the worker (see `serve`), and `options` what it needs for all rows.
    No row is begun after `deadline`, in the seconds of `time.monotonic`: those left have the status "not reached".
    """

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    left = list(enumerate(rows))
    results: list[dict[str, Any]] = [{"status": "not reached"} for _ in rows]
    while left and time.monotonic() <= deadline:
        worker = Worker(program, left, options)
        try:
            _started(worker)
            for number, result in _rows_of(
                worker, left, limit, deadline, lambda n: show(f"{n + 1} of {len(rows)}: {titles[n]}")
            ):
                results[number] = result
        finally:
            worker.stop()
    show("")
    return results


def _started(worker: Worker) -> dict[str, Any]:
    try:
        message = worker.next(_START)
    except TimeoutError:
        raise RuntimeError(
            f"JAX has not found its devices within {_START:.0f} s: JAX_PLATFORMS=cpu leaves them out."
        ) from None
    if message is None:
        raise RuntimeError(f"The worker did not start: {worker.death()}.")
    return message["machine"]


def _rows_of(
    worker: Worker,
    left: list[tuple[int, Any]],
    limit: float,
    deadline: float,
    on_begin: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the results of one worker until it has no rows left or can give no more, and remove them from `left`."""
    while left and time.monotonic() <= deadline:
        number, _ = left[0]
        on_begin(number)
        try:
            begun = worker.next(limit)
            message = begun and worker.next(limit)
        except TimeoutError:
            left.pop(0)
            yield number, {"status": "no answer", "note": f"stopped after {limit:.0f} s"}
            return
        left.pop(0)
        if message is None:
            yield number, {"status": "crashed", "note": worker.death()}
            return
        yield number, message["row"]


def serve(start: Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[[Any], dict[str, Any]]]]) -> None:
    """Be a worker: `start` takes the task, and returns what to say of the machine and the function that runs a row."""
    task = json.loads(sys.argv[1])
    # What a library prints must not come between the lines that the caller reads.
    lines, sys.stdout = sys.stdout, sys.stderr

    def say(**what: Any) -> None:
        print(json.dumps(what), file=lines, flush=True)

    details, run_row = start(task)
    say(machine=details)
    for number, row in task["rows"]:
        say(begin=number)
        say(end=number, row=run_row(row))
