"""Rounding errors of float32, against PyTorch in float64 on the same numbers."""

from typing import NamedTuple

import numpy as np

from benchmarks._peers import Job, Peer, Result, installed
from benchmarks._shapes import Batch


class Errors(NamedTuple):
    """The largest of a batch, absolute; of the loss in units in the last place as well."""

    loss: float
    loss_ulps: float
    gradient: float


def reference(batch: Batch) -> Result:
    """Losses and their gradient with respect to the logits, in float64."""
    torch = next(peer for peer in installed(Job.GRADIENT) if peer.name == "torch")
    return torch.numpy(torch.prepare(Job.GRADIENT, batch._replace(logits=batch.logits.astype(np.float64)))())


def errors(peer: Peer, result: Result, exact: Result) -> Errors:
    losses, gradient = peer.numpy(result)
    loss = np.abs(losses - exact.losses)
    return Errors(
        float(loss.max()),
        float((loss / np.spacing(exact.losses.astype(np.float32))).max()),
        float(np.abs(gradient - exact.gradient).max()),
    )
