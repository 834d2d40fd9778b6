"""The training of handwritten_lines.py over the devices of all processes: what each process of distributed.py runs.

Every process draws the same batch and places its own rows of it on the global mesh; every device has all weights. The
program has no explicit communication: the loss is a mean over the global batch, and XLA sums its gradient.
"""

import argparse
import functools
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from _lines import compose, label_errors, load_scans
from _reader import BATCH, descend, init, optimizer_for, read
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

HEARTBEAT = 10
"""Seconds without a heartbeat after which a process counts as lost. Closed connections are noticed at once."""


def work(process: int, processes: int, address: str, options: argparse.Namespace, folder: Path) -> None:
    """Trains as one of so many; process 0 has the coordinator, at `address`."""
    jax.config.update("jax_num_cpu_devices", 1)
    if processes == 1:
        train(options, folder, [])
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        processes,
        process,
        coordinator_bind_address=address,  # it would listen on every address of the machine
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    losses: list[float] = []
    try:
        train(options, folder, losses)
        jax.distributed.shutdown()
    except Exception as error:  # noqa: BLE001, nothing is known of what the loss of another raises
        error.add_note(f"process {process} ends after {len(losses)} steps: most likely another process is lost.")
        traceback.print_exception(error, limit=2)
        os._exit(1)  # the end of Python would wait for the others


def train(options: argparse.Namespace, folder: Path, losses: list[float]) -> None:
    """From the last checkpoint in `folder` on. Appends the loss of every step, of those before it too."""
    steps, seed, leads = options.steps, options.seed, jax.process_index() == 0
    training, held_out = load_scans(seed)
    optimizer = optimizer_for(steps)
    mesh = Mesh(jax.devices(), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def begin():
        weights = init(jax.random.key(seed))
        return weights, optimizer.init(weights)

    step = jax.jit(functools.partial(descend, optimizer), donate_argnums=(0, 1), out_shardings=everywhere)
    weights, state = begin()
    checkpoints = open_checkpoints(folder, options.save_every)
    if begun := checkpoints.latest_step():
        like = {"weights": weights, "state": state, "losses": np.zeros(begun)}
        saved = checkpoints.restore(begun, args=ocp.args.StandardRestore(like))
        weights, state = saved["weights"], saved["state"]
        losses += saved["losses"].tolist()

    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a lost process would leave behind
    with tqdm(
        total=steps, initial=len(losses), unit="step", file=sys.stdout, mininterval=0.5, disable=not leads
    ) as bar:
        while len(losses) < steps:
            # Seeded by the step alone, so that a restart draws the same batch.
            batch = compose(training, BATCH, np.random.default_rng((seed, len(losses))))
            batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x, x.shape), batch)
            weights, state, value = step(weights, state, batch)
            losses.append(float(value))
            if options.kill == [len(losses), jax.process_index()]:
                os.kill(os.getpid(), signal.SIGKILL)
            now = {"weights": weights, "state": state, "losses": np.array(losses)}
            checkpoints.save(len(losses), args=ocp.args.StandardSave(now), force=len(losses) == steps)
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
            bar.update()

    if leads:
        weights = jax.device_get(weights)
        test = compose(held_out, 300, np.random.default_rng(seed))
        errors = label_errors(np.asarray(jax.jit(read)(weights, test.images)), test)
        np.savez(folder / "result.npz", losses=losses, errors=errors, **weights)
        print(f"held-out label error rate: {errors}")


def open_checkpoints(folder: Path, every: int) -> ocp.CheckpointManager:
    """One that is there is whole: it is written beside its place and then renamed."""
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=every,
        preservation_policy=ocp.checkpoint_managers.LatestN(2),
        cleanup_tmp_directories=True,  # what was being written when a process was lost
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(folder / "checkpoints", options=options)
