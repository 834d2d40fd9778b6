"""Diagnose a batch that was saved with `numpy.savez`.

The file holds `log_probs` (or `logits`), `targets`, `input_lengths` and `target_lengths`, and where they are not
as usual `blank`, `batch_first` and `labels`, the names of the classes.
"""

import argparse
import json
import sys
import zipfile
from typing import Any

import numpy as np

from jaxctc.diagnose import diagnose

_NEEDED = ("targets", "input_lengths", "target_lengths")


def main(arguments: list[str] | None = None) -> int:
    """Print the report. Return 0 if nothing is wrong, 1 if something is, 2 if there is no batch to look at."""
    parser = argparse.ArgumentParser("python -m jaxctc.diagnose", description=__doc__)
    parser.add_argument("batch", help="an .npz file")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    parser.add_argument("--blank", type=int, help="the index of the blank class, in place of the file's")
    parser.add_argument("--batch-first", action="store_true", help="the scores are (N, T, C)")
    options = parser.parse_args(arguments)
    try:
        data = _load(options.batch)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"{options.batch}: {error}", file=sys.stderr)
        return 2
    from_logits = "log_probs" not in data
    names = data.get("labels")
    found = diagnose(
        data["logits" if from_logits else "log_probs"],
        data["targets"],
        data["input_lengths"],
        data["target_lengths"],
        data.get("blank", 0) if options.blank is None else options.blank,
        batch_first=options.batch_first or bool(data.get("batch_first", False)),
        labels=None if names is None else [str(name) for name in names],
        from_logits=from_logits,
    )
    if options.json:
        print(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        _print(found)
    return 0 if found.ok else 1


def _load(path: str) -> dict[str, Any]:
    with np.load(path) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("this is one array. Save all arguments with numpy.savez.")
        data = {name: file[name] for name in file.files}
    missing = [name for name in _NEEDED if name not in data]
    if not {"log_probs", "logits"} & set(data):
        missing.insert(0, "log_probs or logits")
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}; it holds {', '.join(data) or 'nothing'}.")
    return data


def _print(found: Any) -> None:
    """In colour on a terminal where rich is installed."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console  # noqa: PLC0415 # optional
        except ImportError:
            pass
        else:
            Console(soft_wrap=True, highlight=False).print(found)
            return
    print(found)


if __name__ == "__main__":
    sys.exit(main())
