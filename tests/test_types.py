"""Test that a type checker sees what a user writes as it is; `make lint` runs mypy over the same file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

USER_CODE = Path(__file__).with_name("user_code.py")
pytestmark = pytest.mark.full


def test_pyright(tmp_path):
    """Of the checks of pyright itself, and not of those that basedpyright adds."""
    checker = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if checker is None:
        pytest.skip("basedpyright, which brings pyright without a download, is not installed")
    pytest.importorskip("torch")
    settings = {
        "include": [str(USER_CODE)],
        "typeCheckingMode": "standard",
        "enableTypeIgnoreComments": True,
        "reportUnnecessaryTypeIgnoreComment": "error",
        "extraPaths": [str(USER_CODE.parents[1])],
        "pythonPath": sys.executable,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [checker, "--project", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    errors = [x for x in found["generalDiagnostics"] if x["severity"] == "error"]
    assert [f"{x['range']['start']['line'] + 1}: {x['message']}" for x in errors] == []
    assert found["summary"]["filesAnalyzed"] == 1
