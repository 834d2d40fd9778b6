"""Find out what is wrong with a batch: why its loss is infinite, NaN, negative or constant.

`jaxctc.diagnose` is the function of this package, and ``python -m jaxctc.diagnose batch.npz`` its command.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxctc._inputs import fork
from jaxctc.diagnose import _labels, _lengths, _normalization, _numbers, _rows, _training
from jaxctc.diagnose._batch import Batch
from jaxctc.diagnose._diagnosis import Diagnosis as Diagnosis
from jaxctc.diagnose._findings import Finding as Finding
from jaxctc.diagnose._findings import Row as Row
from jaxctc.diagnose._reading import read

_GRAVEST_FIRST = ("error", "warning", "note")
_MISREAD = {
    *("probabilities", "logits", "wrong-axis", "double-softmax", "wrong-blank", "label-is-blank", "label-range"),
    *("targets-zero-based", "targets-one-based", "padding-counted", "padded-frames-counted", "lengths-too-short"),
}
"""With one of these, the losses are not those that were meant, and say nothing about the training."""


def diagnose(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    *,
    batch_first: bool = False,
    labels: Sequence[str] | None = None,
    from_logits: bool = False,
) -> Diagnosis:
    """Return what is wrong with a batch, what to do about it, and a table of its sequences.

    It takes whatever `ctc_loss` takes, legal or not, and does not raise on a bad batch: it says what is bad. Print the
    result. The documentation lists all codes that it knows ("Why is my loss inf?").

    Args:
        log_probs: The scores, (T, N, C), or (T, C) for one sequence.
        targets: Labels, (N, S) or end to end.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).
        labels: The names of the classes, the blank included, in which best paths and targets are shown.
        from_logits: The scores are those of `ctc_loss_with_logits`.

    Returns:
        `Diagnosis`: its `findings`, each with a severity, a code, what it means, the rows that have it, the evidence in
        numbers, a remedy and a source; its `rows`, one a sequence; `ok`, which is False where there are errors or
        warnings; `codes`; and `as_dict()`, for JSON.

    Raises:
        TypeError: An argument is traced: its values are not known, so that there is nothing to look at.
        RuntimeError: The process was forked after JAX had started, and JAX would wait for ever.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (4, 2, 3)))
        >>> found = jaxctc.diagnose(log_probs, [[1, 2], [1, 1]], [4, 2], [2, 2])
        >>> found.codes, found.findings[0].rows, found.ok
        (('infeasible',), (1,), False)
        >>> found.findings[0].evidence["frames_needed"], found.rows[1].loss
        ([3], inf)
    """
    arguments = (log_probs, targets, input_lengths, target_lengths, blank)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        raise TypeError(
            "diagnose looks at values, and an argument is traced. Call it outside of jax.jit, jax.grad and jax.vmap, "
            "with the arrays that the traced function receives; inside, jaxctc.check_batch reports illegal rows."
        )
    fork.check()
    with np.errstate(all="ignore"):
        batch, found = read(*arguments, batch_first=bool(batch_first), names=labels, from_logits=from_logits)
        if batch is None:
            return Diagnosis(_sorted(found), (), (), -1)
        rows = _rows.table(batch)
        return Diagnosis(_sorted([*found, *_all(batch, rows)]), rows, batch.scores.shape, batch.blank)


def _all(batch: Batch, rows: Sequence[Row]) -> list[Finding]:
    found = [
        *_lengths.check(batch),
        *_labels.check(batch),
        *_numbers.check(batch, rows),
        *_normalization.check(batch),
    ]
    if not _MISREAD & {f.code for f in found}:
        wrong = {n for f in found if f.severity == "error" for n in f.rows}
        found += _training.check(batch, rows, wrong)
    return found


def _sorted(found: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda f: _GRAVEST_FIRST.index(f.severity)))
