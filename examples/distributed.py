"""Trains the reader of handwritten lines in several processes on one machine, and goes on after the loss of one.

This program starts the processes and watches them; what each of them runs is _data_parallel.py. When one is lost, the
others end within 30 seconds (`PATIENCE`), and `--resume` goes on from the last checkpoint, to the result that would
have come without the loss. To see it: `--kill 750 1` has process 1 kill itself after step 750.
"""

import argparse
import json
import multiprocessing
import shutil
import signal
import socket
import sys
import time
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

PATIENCE = 30
"""Seconds that the others have to end by themselves when a process is lost."""


def work(*arguments) -> None:
    from _data_parallel import work

    work(*arguments)


def run(count: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Trains in so many processes; the losses, the held-out errors and the weights that come of it."""
    folder = options.output.resolve() / f"distributed-{count}"
    prepare(folder, {"steps": options.steps, "seed": options.seed}, options.resume)
    arguments = count, f"127.0.0.1:{free_port()}", options, folder
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=work, name=f"process {i}", args=(i, *arguments), daemon=True) for i in range(count)
    ]
    for worker in workers:
        worker.start()
    try:
        if not all_succeed(workers):
            took = wait(workers)
            saved = max((int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal()), default=0)
            for worker in workers:
                print(f"{worker.name}: {fate(worker.exitcode)}", file=sys.stderr)
            print(f"All have ended, {took:.1f} s after the first.", file=sys.stderr)
            sys.exit(f"The last checkpoint is of step {saved}. The same command with --resume goes on from there.")
    finally:
        for worker in workers:
            worker.kill()
    return dict(np.load(folder / "result.npz"))


def prepare(folder: Path, settings: dict[str, int], resume: bool) -> None:
    """Empties the folder, or makes sure that what it holds is of this training."""
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if file.exists() and (theirs := json.loads(file.read_text())) != settings:
        sys.exit(f"The checkpoints in {folder} are of another training: {theirs}, and not {settings}.")
    file.write_text(json.dumps(settings))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def all_succeed(workers: list[BaseProcess]) -> bool:
    """Waits until one has failed, or all have ended."""
    while None in (statuses := [worker.exitcode for worker in workers]) and not any(statuses):
        connection.wait([worker.sentinel for worker, status in zip(workers, statuses, strict=True) if status is None])
    return not any(statuses)


def wait(workers: list[BaseProcess]) -> float:
    """Gives the others time to end by themselves; the seconds that they took."""
    began = time.monotonic()
    for worker in workers:
        worker.join(max(0, began + PATIENCE - time.monotonic()))
    return time.monotonic() - began


def fate(status: int | None) -> str:
    """Describes an exit status; None is that of a process that still runs."""
    if status is None:
        return f"still there after {PATIENCE} s, and now killed"
    if status >= 0:
        return f"ended by itself, with the error above (exit status {status})" if status else "done"
    if status == -signal.SIGABRT:
        return "ended by JAX's runtime, with the error above"
    return f"killed by {signal.Signals(-status).name}"


def compare(one: dict[str, np.ndarray], several: dict[str, np.ndarray]) -> None:
    """Prints both runs side by side; ends with an error if they differ."""
    difference = np.abs(several["losses"] - one["losses"])
    print(f"\n{'step':>8}{'one process':>16}{'several':>16}{'difference':>14}")
    for i in np.unique(np.geomspace(1, len(difference), 12).astype(int)) - 1:
        print(f"{i + 1:>8}{one['losses'][i]:>16.6f}{several['losses'][i]:>16.6f}{difference[i]:>14.1e}")
    print(f"\nlargest difference of the first 20 steps: {difference[:20].max():.1e}")
    rates = [run["errors"][0] / run["errors"][1] for run in (one, several)]
    print(f"held-out label error rates: {rates[0]:.1%} in one process, {rates[1]:.1%} in several")
    if difference[:20].max() > 1e-4:
        sys.exit("The first losses differ by more than rounding.")
    if abs(rates[1] - rates[0]) > 0.01:
        sys.exit("The final error rates differ by more than a percentage point.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2, 4, 8), help="so many on this machine")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps from checkpoint to checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    parser.add_argument(
        "--kill", type=int, nargs=2, metavar=("STEP", "PROCESS"), help="the process that kills itself after the step"
    )
    parser.add_argument("--compare", action="store_true", help="train in one process as well, and compare")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--fast", action="store_true", help="40 steps, saved every 10: runs everything, learns little")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the processes too
    if options.fast:
        options.steps, options.save_every = 40, 10
    several = run(options.processes, options)
    if options.compare:
        compare(run(1, options), several)


if __name__ == "__main__":
    main()
