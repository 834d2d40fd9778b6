"""How far what was read is from the truth, for every example that reads labels."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Errors(NamedTuple):
    """Edit operations, out of so many labels."""

    count: int
    labels: int

    @property
    def rate(self) -> float:
        return self.count / self.labels

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({self.count:,} of {self.labels:,} labels)"


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Insertions, deletions and substitutions from one to the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def count_errors(found: Iterable[Sequence[int]], truths: Sequence[Sequence[int]]) -> Errors:
    """The label errors of many readings, each beside its truth."""
    pairs = zip(found, truths, strict=True)
    return Errors(sum(edit_distance(a, b) for a, b in pairs), sum(map(len, truths)))


def spell(labels: Iterable[int]) -> str:
    return "".join(map(str, labels))
