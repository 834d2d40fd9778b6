"""Define the result of `diagnose`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxctc.diagnose import _report
from jaxctc.diagnose._findings import Finding, Row


@dataclass(frozen=True)
class Diagnosis:
    """Hold what is wrong with a batch, and what is known about its sequences. `str` gives the report."""

    findings: tuple[Finding, ...]
    """The gravest first."""
    rows: tuple[Row, ...]
    """One a sequence; empty where the arguments do not make a batch."""
    shape: tuple[int, ...]
    """T, N and C as the report reads the scores; empty where it could not."""
    blank: int

    @property
    def ok(self) -> bool:
        """True unless there is an error or a warning. Notes are no faults."""
        return all(f.severity == "note" for f in self.findings)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings."""
        return tuple(f.code for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain dictionaries, lists, numbers and strings, for JSON; inf and NaN are strings."""
        return {
            "ok": self.ok,
            "shape": list(self.shape),
            "blank": self.blank,
            "findings": [_jsonable(f._asdict()) for f in self.findings],
            "rows": [_jsonable(row._asdict()) for row in self.rows],
        }

    def __str__(self) -> str:
        return _report.text(self.findings, self.rows, self.shape, self.blank)

    def __rich__(self) -> Any:
        return _report.rich(str(self))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _jsonable(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
