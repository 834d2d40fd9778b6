"""Make the table of a batch's sequences, with the library's own losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxctc._api.losses import ctc_loss
from jaxctc.diagnose._batch import Batch
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
    """Return losses and path entropies; NaN for a sequence that the loss would refuse."""
    frames, counts = (np.where(batch.legal, x, 0).astype(np.int32) for x in (batch.frames, batch.counts))
    # What the loss would refuse is replaced, and no more than padding where the sequence has no labels.
    targets = np.clip(batch.targets, 0, batch.classes - 1).astype(np.int32)
    losses, entropies = _on_device(batch.blank, batch.from_logits, batch.scores, targets, frames, counts)
    return (np.where(batch.legal, x, np.nan) for x in (np.asarray(losses), np.asarray(entropies)))  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _on_device(
    blank: int, from_logits: bool, scores: jax.Array, targets: jax.Array, frames: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return losses and entropies. The entropy is minus the mean of log p(path | target) over the paths.

    That is -loss minus the mean score under the posterior, and the gradient is minus the posterior.
    """
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    log_probs = scores.astype(wide)
    log_probs = jax.nn.log_softmax(log_probs) if from_logits else log_probs

    def losses(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = ctc_loss(log_probs, targets, frames, counts, blank, reduction="none")
        return made.sum(), made

    gradient, made = jax.grad(losses, has_aux=True)(log_probs)
    weighted = jnp.where(gradient == 0, 0, gradient * log_probs).sum(axis=(0, 2))
    entropy = jnp.where(jnp.isfinite(made), jnp.maximum(weighted - made, 0), jnp.nan)
    return made, entropy
