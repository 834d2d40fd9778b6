"""Make the table of a batch's sequences, with the library's own losses."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxctc._api.losses import ctc_loss
from jaxctc.diagnose._batch import MASK, Batch
from jaxctc.diagnose._findings import Row


def table(batch: Batch) -> tuple[Row, ...]:
    """Return what is known about each sequence."""
    losses, entropies = _losses(batch)
    return tuple(_row(batch, n, float(losses[n]), float(entropies[n])) for n in range(batch.sequences))


def _row(batch: Batch, n: int, loss: float, entropy: float) -> Row:
    best = batch.facts[n].best
    frames, labels = int(batch.input_lengths[n]), int(batch.target_lengths[n])
    return Row(
        frames=frames,
        labels=labels,
        needed=int(batch.needed[n]),
        feasible=bool(batch.feasible[n]),
        loss=loss,
        loss_per_label=loss / max(labels, 1),
        uniform_loss=uniform_loss(batch, n),
        blank_share=float((best == batch.blank).mean()) if len(best) else math.nan,
        entropy=entropy,
        reading=batch.spell(batch.read(n, batch.blank)),
        target=batch.spell(batch.labels(n)),
    )


def uniform_loss(batch: Batch, n: int) -> float:
    """Return the loss of a model that gives every class the same probability: the paths only need to be counted.

    A path of T frames spells L labels of which r repeat the one before: 2 L of its frames and of L - r additional
    places are where labels begin and end, in order.
    """
    frames, labels, repeats = int(batch.frames[n]), int(batch.counts[n]), int(batch.needed[n] - batch.counts[n])
    if not batch.legal[n]:
        return math.nan
    if not batch.feasible[n]:
        return math.inf
    paths = math.comb(frames + labels - repeats, 2 * labels)
    return max(frames * math.log(batch.classes) - math.log(paths), 0.0)


def _losses(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return losses and path entropies; NaN for a sequence that the loss would refuse.

    Few programs are compiled: sizes are rounded up, and the blank becomes class 0.
    """
    frames, counts = (np.where(batch.legal, x, 0).astype(np.int32) for x in (batch.frames, batch.counts))
    length, sequences, classes = batch.scores.shape
    order = np.arange(classes)
    order[[0, batch.blank]] = batch.blank, 0
    log_probs = np.zeros((_rounded(length, 32), sequences, classes), np.promote_types(batch.scores.dtype, np.float32))
    targets = np.zeros((sequences, _rounded(batch.targets.shape[1], 8)), np.int32)
    for n in np.flatnonzero(batch.legal).tolist():
        log_probs[: frames[n], n] = batch.log_probs(n)[:, order]
        targets[n, : counts[n]] = order[batch.labels(n)]
    losses, entropies = (np.asarray(x) for x in _on_device(log_probs, targets, frames, counts))
    return np.where(batch.legal, losses, np.nan), np.where(batch.legal, entropies, np.nan)


def _rounded(size: int, multiple: int) -> int:
    return max(-(-size // multiple), 1) * multiple


@jax.jit
def _on_device(
    log_probs: jax.Array, targets: jax.Array, frames: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return losses and entropies. The entropy is minus the mean of log p(path | target) over the paths.

    That is -loss minus the mean score under the posterior, and the gradient is minus the posterior.
    """

    def losses(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Whatever the default: these loops serve every batch.
        made = ctc_loss(log_probs, targets, frames, counts, reduction="none", implementation="xla")
        return made.sum(), made

    gradient, made = jax.grad(losses, has_aux=True)(log_probs)
    weighted = jnp.where(gradient == 0, 0, gradient * log_probs).sum(axis=(0, 2))
    return made, jnp.where(made < -MASK, jnp.maximum(weighted - made, 0), jnp.nan)
