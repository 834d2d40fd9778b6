"""What every tutorial begins with: its options, and a library that may not be installed."""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType


def arguments(title: str, steps: int, *, data: bool = False, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    """Read the command line; with `--fast`, `steps` is 10."""
    script = Path(sys.argv[0])
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--fast", action="store_true", help="10 steps: runs everything, learns little")
    if data:
        parser.add_argument("--data", type=Path, help="recordings, in place of what the tutorial makes up")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    picture = script.parent / "output" / f"{script.stem}.png"
    parser.add_argument("--picture", type=Path, default=picture, help=f"where to draw ({picture})")
    options = parser.parse_args()
    options.steps = 10 if options.fast else options.steps
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    return options


def need(name: str) -> ModuleType:
    """Import a library, or leave the tutorial out, and say so."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(f"Left out: {sys.argv[0]} needs {error.name}: pip install --group tutorials")
        sys.exit(0)
