"""Judge cases in a process of their own, so that an implementation that crashes or hangs fails one case alone."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxctc._tools import processes
from jaxctc._tools.conformance.cases import cases
from jaxctc._tools.conformance.judge import judge


def load(name: str) -> Callable[..., Any]:
    """Return the function of this name: "package.module:function", or "path/to/file.py:function"."""
    module, _, attribute = name.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        if spec is None or spec.loader is None:
            raise ImportError(f"{module} is no Python file")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    found: Any = loaded
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _start(task: dict[str, Any]) -> tuple[dict[str, Any], Callable[[str], dict[str, Any]]]:
    function = load(task["function"])
    by_name = {case.name: case for case in cases()}

    def row(name: str) -> dict[str, Any]:
        result = judge(function, by_name[name], task["signature"], task["gradient"], task["device"])
        return result._asdict()

    package = task["function"].split(":")[0].split(".")[0]
    return {"package": package, "version": getattr(sys.modules.get(package), "__version__", "")}, row


if __name__ == "__main__":
    processes.serve(_start)
