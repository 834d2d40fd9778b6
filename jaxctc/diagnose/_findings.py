"""Define what a diagnosis consists of: findings, and the table of rows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxctc.diagnose._catalogue import CODES, Severity


class Finding(NamedTuple):
    """Say one thing that is wrong with a batch, or worth knowing about it."""

    severity: Severity
    """error, warning or note. The documentation says what each means ("Why is my loss inf?")."""
    code: str
    """Stable, for machines."""
    what: str
    rows: tuple[int, ...]
    """The sequences that have it; empty where it concerns the whole batch."""
    evidence: Mapping[str, Any]
    """Numbers, by name; lists are in the order of `rows`."""
    remedy: str
    source: str
    """The address of a public thread or paper about it; empty where none is known."""


def finding(code: str, rows: Any = (), hint: str = "", **evidence: Any) -> Finding:
    """Return a finding of this code: what and remedy are the catalogue's, followed by the hint."""
    entry = CODES[code]
    remedy = f"{entry.remedy} {hint}" if hint else entry.remedy
    numbers = {name: _plain(value) for name, value in evidence.items()}
    return Finding(entry.severity, code, entry.meaning, tuple(int(n) for n in rows), numbers, remedy, entry.source)


class Row(NamedTuple):
    """Say what is known about one sequence."""

    frames: int
    """Its input length."""
    labels: int
    """Its target length."""
    needed: int
    """The frames that its target needs: one a label, and one between two equal labels."""
    feasible: bool
    loss: float
    """In nats; NaN where a length or label is illegal."""
    loss_per_label: float
    uniform_loss: float
    """The loss of a model that gives every class the same probability."""
    blank_share: float
    """The share of its frames where the blank is the best class; NaN without frames."""
    entropy: float
    """The entropy of the distribution over alignments, in nats; NaN where the loss is infinite or that of masks."""
    reading: str
    """What the best path spells."""
    target: str


def _plain(value: Any) -> Any:
    """Return Python's own numbers and lists for numpy's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value
