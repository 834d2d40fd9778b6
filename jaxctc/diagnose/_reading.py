"""Read the arguments of a loss, whatever they are, as a batch, and say what the loss would refuse."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxctc._inputs import checks
from jaxctc.diagnose._batch import Batch, frames_needed
from jaxctc.diagnose._findings import Finding, finding


class _UnreadableError(Exception):
    """The findings say why."""


class Read(NamedTuple):
    batch: Batch | None
    """None if the arguments do not make a batch."""
    findings: list[Finding]


def read(
    scores: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: Any,
    *,
    batch_first: bool,
    names: Sequence[str] | None,
    from_logits: bool,
) -> Read:
    """Return the batch, and what is wrong with the arguments' types and shapes."""
    found: list[Finding] = []
    try:
        return Read(
            _Reader(found).batch(
                scores, targets, input_lengths, target_lengths, blank, batch_first, names, from_logits
            ),
            found,
        )
    except _UnreadableError:
        return Read(None, found)


class _Reader:
    """Read one argument after another, and collect what is wrong."""

    def __init__(self, found: list[Finding]) -> None:
        self.found = found

    def say(self, code: str, hint: str = "", **evidence: Any) -> None:
        self.found.append(finding(code, hint=hint, **evidence))

    def refuse(self, code: str, hint: str = "", **evidence: Any) -> _UnreadableError:
        self.say(code, hint, **evidence)
        return _UnreadableError()

    def batch(
        self,
        scores: Any,
        targets: Any,
        input_lengths: Any,
        target_lengths: Any,
        blank: Any,
        batch_first: bool,
        names: Sequence[str] | None,
        from_logits: bool,
    ) -> Batch:
        x = self._scores(scores)
        batched = x.ndim == 3
        if not batched:
            x, batch_first = x[:, None], False
        labels = self._targets(targets)
        known = [self._array(*y).shape for y in (("input_lengths", input_lengths), ("target_lengths", target_lengths))]
        counts = {shape[0] for shape in known if len(shape) >= 1} if batched else {1}
        if batched and labels.ndim == 2:
            counts.add(labels.shape[0])
        x = self._frames_first(x, batch_first, counts, input_lengths)
        frames, sequences, classes = x.shape
        lengths = self._lengths("input_lengths", input_lengths, sequences, frames)
        many = labels.shape[-1]
        sizes = self._lengths("target_lengths", target_lengths, sequences, many)
        if _swapped(lengths, sizes, labels, frames, end_to_end=batched and labels.ndim == 1):
            self.say(
                "lengths-swapped",
                "This report reads them the other way round.",
                input_lengths=lengths,
                target_lengths=sizes,
                frames=frames,
            )
            lengths, sizes = sizes, lengths
        labels = self._padded(labels, sizes, sequences, batched)
        if names is not None and len(names) != classes:
            self.say("class-names", names=len(names), classes=classes)
        return Batch(
            x, labels, lengths, sizes, self._blank(blank, classes), from_logits, None if names is None else list(names)
        )

    def _array(self, name: str, x: Any) -> np.ndarray:
        try:
            made = checks.numbers(x)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise self.refuse("unreadable", argument=name, type=type(x).__name__, reason=str(error)[:120]) from None
        if made.dtype.kind == "V" and made.dtype.names is None and made.dtype.itemsize == 2:
            made = made.view(jax.numpy.bfloat16.dtype)  # an .npz file forgets this type's name
        if made.size == 0 and made.dtype.kind == "f" and isinstance(x, list | tuple):
            return made.astype(np.int64)  # an empty list has no type of its own
        if made.dtype.kind not in "biufV" or made.dtype.names is not None:
            raise self.refuse("unreadable", argument=name, type=made.dtype.name, shape=made.shape)
        return made

    def _scores(self, x: Any) -> np.ndarray:
        made = self._array("log_probs", x)
        if made.ndim not in (2, 3) or made.dtype.kind == "b":
            raise self.refuse("unreadable", argument="log_probs", type=made.dtype.name, shape=made.shape)
        if made.size == 0:
            raise self.refuse("empty-batch", shape=made.shape)
        if made.dtype.kind in "iu":
            self.say("wrong-dtype", argument="log_probs", type=made.dtype.name)
            return made.astype(np.float32)
        usual = made.dtype.name in ("float64", "float32", "float16", "bfloat16")
        return made if usual else made.astype(np.float32)

    def _targets(self, x: Any) -> np.ndarray:
        if isinstance(x, list | tuple) and len({len(row) for row in x if hasattr(row, "__len__")}) > 1:
            rows = [self._integers("targets", row).reshape(-1) for row in x]
            self.say("ragged-targets", lengths=[len(row) for row in rows])
            made = np.zeros((len(rows), max(map(len, rows))), np.int64)
            for n, row in enumerate(rows):
                made[n, : len(row)] = row
            return made
        made = self._integers("targets", x)
        if made.ndim not in (1, 2):
            raise self.refuse("unreadable", argument="targets", type=made.dtype.name, shape=made.shape)
        return made

    def _integers(self, name: str, x: Any) -> np.ndarray:
        made = self._array(name, x)
        if made.dtype.kind in "iu":
            return np.clip(made, -(2**62), 2**62).astype(np.int64)
        values = made.astype(np.float64)
        if not (np.isfinite(values).all() and (values == np.round(values)).all() and (np.abs(values) < 2**53).all()):
            raise self.refuse("unreadable", argument=name, type=made.dtype.name, shape=made.shape)
        self.say("wrong-dtype", argument=name, type=made.dtype.name)
        return values.astype(np.int64)

    def _frames_first(self, x: np.ndarray, batch_first: bool, counts: set[int], input_lengths: Any) -> np.ndarray:
        """Return scores (T, N, C), in the other layout than was said if only that one fits."""
        said, other = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
        if not counts:
            longest = float(self._array("input_lengths", input_lengths))
            # Here `other` is T and `said` is N: one length for all says which is which if it fits only one of them.
            swapped = other < longest <= said
        else:
            swapped = counts == {other} and said != other
        if swapped:
            sizes = {
                "shape_of_the_scores": x.shape,
                "batch_first": bool(batch_first),
                "sequences": sorted(counts) or other,
            }
            self.say("swapped-axes", f"This report reads them with batch_first={not batch_first}.", **sizes)
            batch_first = not batch_first
        elif counts and counts != {said}:
            raise self.refuse(
                "shape-mismatch",
                shape_of_the_scores=x.shape,
                batch_first=bool(batch_first),
                sequences_of_the_scores=said,
                sequences_of_the_others=sorted(counts),
            )
        return x.swapaxes(0, 1) if batch_first else x

    def _lengths(self, name: str, x: Any, sequences: int, most: int) -> np.ndarray:
        """Return one length a sequence; `most` is the length of the axis that they count."""
        made = self._array(name, x)
        whole = made.astype(np.float64)
        if (made.ndim == 2 and made.shape[1] > 1) or (made.ndim == 1 and sequences == 1 and len(made) > 1):
            return self._mask(name, whole.reshape(sequences, -1) if whole.size % sequences == 0 else whole)
        if made.ndim >= 2:
            self.say("shape-mismatch", f"{name} was read as one length a sequence.", argument=name, shape=made.shape)
            whole, made = whole.reshape(-1), made.reshape(-1)
        if made.size not in (1, sequences):
            raise self.refuse("shape-mismatch", argument=name, shape=made.shape, sequences_of_the_scores=sequences)
        if made.dtype.kind not in "iu" and (whole > 0).all() and (whole <= 1).all() and most > 1:
            self.say("lengths-are-fractions", argument=name, fractions=whole)
            made = np.round(whole * most).astype(np.int64)
        elif made.dtype.kind not in "iu":
            made = self._integers(name, made)
        made = np.clip(made, -(2**62), 2**62).astype(np.int64)
        return np.broadcast_to(made, (sequences,))

    def _mask(self, name: str, mask: np.ndarray) -> np.ndarray:
        if not np.isin(mask, (0, 1)).all():
            raise self.refuse("unreadable", argument=name, shape=mask.shape)
        steps = np.diff(mask, axis=1)
        padding = bool((steps >= 0).all() and (mask[:, 0] == 0).any())
        lengths = ((1 - mask) if padding else mask).sum(axis=1).astype(np.int64)
        marks = "padding" if padding else "what counts"
        self.say("lengths-are-masks", argument=name, shape=mask.shape, ones_mark=marks, sums=lengths)
        return lengths

    def _padded(self, labels: np.ndarray, sizes: np.ndarray, sequences: int, batched: bool) -> np.ndarray:
        if labels.ndim == 2:
            if not batched and len(labels) != 1:
                raise self.refuse("shape-mismatch", targets=labels.shape, sequences_of_the_scores=1)
            return labels
        if not batched:
            return labels[None]
        total, counts = len(labels), np.maximum(sizes, 0)
        if counts.sum() != total:
            width, rest = divmod(total, sequences)
            padded = rest == 0 and width >= counts.max()
            hint = f"This report reads them as ({sequences}, {width}), padded." if padded else ""
            self.say("targets-total", hint, labels=total, sum_of_target_lengths=int(counts.sum()))
            if not padded:
                raise _UnreadableError
            return labels.reshape(sequences, width)
        made = np.zeros((sequences, int(counts.max())), np.int64)
        made[np.arange(made.shape[1]) < counts[:, None]] = labels
        return made

    def _blank(self, blank: Any, classes: int) -> int:
        made = self._array("blank", blank)
        if made.ndim or made.dtype.kind not in "iu":
            raise self.refuse("unreadable", argument="blank", type=type(blank).__name__, value=str(blank)[:40])
        if not 0 <= made < classes:
            self.say("blank-range", blank=int(made), classes=classes)
        return int(made) % classes


def _swapped(lengths: np.ndarray, sizes: np.ndarray, labels: np.ndarray, frames: int, *, end_to_end: bool) -> bool:
    """Return whether every sequence has more labels than frames, and with both exchanged everything fits."""
    if not len(lengths) or (sizes <= lengths).any() or lengths.min() < 0 or sizes.max() > frames:
        return False
    width = labels.shape[-1]
    if end_to_end:
        return bool(lengths.sum() == width)
    if lengths.max() > width:
        return False
    if sizes.max() <= width and len(sizes) == 1:
        return False  # one target that is too long for its frames
    return bool((frames_needed(np.atleast_2d(labels), lengths) <= sizes).all())
