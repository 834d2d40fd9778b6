"""Test any implementation of CTC, in any framework, against right answers.

From a test suite::

    import pytest
    from jaxctc import conformance

    @pytest.mark.parametrize("case", conformance.cases(), ids=str)
    def test_my_ctc(case):
        conformance.check(my_ctc_loss, case, signature="torch")

From a terminal::

    python -m jaxctc.conformance torch.nn.functional:ctc_loss
    python -m jaxctc.conformance optax:ctc_loss --signature optax
    python -m jaxctc.conformance path/to/mine.py:ctc_loss --signature jaxctc --json mine.json
    python -m jaxctc.conformance table torch.json mine.json
    python -m jaxctc.conformance export cases.npz

The answers are computed in float64, by enumeration of all paths where there are few, and else by a recursion in numpy
that shares nothing with the library.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxctc._tools import processes
from jaxctc._tools.conformance import export as exporting
from jaxctc._tools.conformance import table
from jaxctc._tools.conformance.case import Case
from jaxctc._tools.conformance.cases import cases
from jaxctc._tools.conformance.judge import Result, judge
from jaxctc._tools.conformance.signatures import CONVENTIONS, SIGNATURES

__all__ = ["Case", "Result", "cases", "check", "main"]

_WORKER = "jaxctc._tools.conformance.worker"


def check(
    function: Callable[..., Any],
    case: Case,
    *,
    signature: str = "jaxctc",
    gradient: str | None = None,
    device: str | None = None,
) -> Result:
    """Assert that an implementation gives the right answer to a case.

    Args:
        function: The implementation, a function that returns losses.
        case: One of `cases`.
        signature: How it is called: ``"torch"``, ``"jaxctc"``, ``"optax"``, ``"keras"`` or ``"tensorflow"``.
        gradient: What its gradient is: ``"log_probs"``, minus the posterior; ``"torch"``, exp(log_probs) minus it; or
            ``"logits"``. None: what functions of this signature return.
        device: Where the framework computes; None: where it does by default.

    Returns:
        The result, whose `held` is None where the signature has no argument for what the case is about.

    Raises:
        AssertionError: The answer is wrong; the message gives the largest error, or what was raised.
        ValueError: `signature` or `gradient` is none of these.

    Example:
        >>> import jaxctc
        >>> from jaxctc import conformance
        >>> conformance.check(jaxctc.ctc_loss, conformance.cases()[0]).held
        True
    """
    result = judge(function, case, signature, gradient, device)
    if result.held is False:
        raise AssertionError(f"{case.aspect}, {case.name}: {result.note or f'off by {result.error:.3g}'}")
    return result


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxctc.conformance", description="Test an implementation of CTC against right answers."
    )
    parser.add_argument("function", help="package.module:function or file.py:function; or `table`, or `export`")
    parser.add_argument("files", nargs="*", type=Path, help="of `table`: reports of --json; of `export`: the archive")
    parser.add_argument("--signature", choices=SIGNATURES, default="torch", help="how it is called (torch)")
    parser.add_argument("--gradient", choices=CONVENTIONS, help="what its gradient is; else that of the signature")
    parser.add_argument("--device", help="where the framework computes, in its own words")
    parser.add_argument("--dtype", help="leave out the cases of other types")
    parser.add_argument("--aspect", action="append", help="leave out the cases of other aspects; may be given again")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="the longest for one case (120)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(arguments)
    if options.function == "export" and len(options.files) != 1:
        parser.error("export takes one file, such as cases.npz")
    if options.function == "table" and not options.files:
        parser.error("table takes the reports that --json has written")
    known = dict.fromkeys(case.aspect for case in cases())
    for aspect in options.aspect or ():
        if aspect not in known:
            parser.error(f"{aspect!r} is no aspect: it must be one of {', '.join(map(repr, known))}")
    if options.function not in ("export", "table") and (options.files or ":" not in options.function):
        parser.error(f"{options.function!r} names no function: write package.module:function or file.py:function")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the program with these arguments, by default those of the command line, and return the exit status."""
    options = _arguments(arguments)
    if options.function == "export":
        exporting.export(cases(), options.files[0])
        return 0
    if options.function == "table":
        print(table.markdown([json.loads(path.read_text()) for path in options.files]), end="")
        return 0
    chosen = [case for case in cases() if options.dtype in (None, case.dtype)]
    chosen = [case for case in chosen if options.aspect is None or case.aspect in options.aspect]
    task = {name: getattr(options, name) for name in ("function", "signature", "gradient", "device")}
    names = [case.name for case in chosen]

    about = processes.machine(_WORKER, task)
    results = processes.run(_WORKER, names, names, task, options.limit)
    rows = table.aspects(chosen, results)
    report = {
        "function": options.function,
        "version": f"{about['package']} {about['version']}".strip(),
        "aspects": rows,
        "cases": [{"name": name, **result} for name, result in zip(names, results, strict=True)],
    }
    print(table.text(options.function, rows))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(table.markdown([report]))
    return 0 if all(row["held"] == row["asked"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
