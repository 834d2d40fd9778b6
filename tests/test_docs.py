"""The documentation: its code runs as a reader pastes it, and its reference leaves no public name out."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxctc.conformance
from jaxctc._tools.conformance.judge import judge

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NEEDS = {"torch": "import torch", "matplotlib": "plot_alignment", "optax": "import optax"}

# Every page begins in an empty namespace; one process serves many pages, because importing and compiling is what costs.
RUN = """
import os, sys
for page in sys.argv[1:]:
    namespace, text = {"__name__": "__main__"}, open(page, encoding="utf-8").read()
    lines, number = text.splitlines(), 0
    while number < len(lines):
        if lines[number] == "```python":
            end = lines.index("```", number)
            source = "\\n" * (number + 1) + "\\n".join(lines[number + 1 : end])
            exec(compile(source, page, "exec"), namespace)
            number = end
        number += 1
    print("ran", page, flush=True)
"""


def pages():
    return sorted(path for path in DOCS.rglob("*.md") if "```python" in path.read_text(encoding="utf-8"))


def missing(path):
    text = path.read_text(encoding="utf-8")
    return [name for name, mark in NEEDS.items() if mark in text and importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("with_torch", [False, True])
def test_the_code_of_every_page_runs(with_torch, tmp_path):
    chosen = [path for path in pages() if (NEEDS["torch"] in path.read_text(encoding="utf-8")) == with_torch]
    ready = [str(path) for path in chosen if not missing(path)]
    if not ready:
        pytest.skip(f"the pages need {missing(chosen[0])}")
    program = tmp_path / "run.py"
    program.write_text(RUN, encoding="utf-8")
    command = [sys.executable, str(program), *ready]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ran ") == len(ready) >= 3


def public_names():
    """What `__all__` holds, read without importing: a page must name it whatever is installed."""
    for package in ("jaxctc", "jaxctc.variants", "jaxctc.compat", "jaxctc.conformance", "bridge"):
        path = ROOT / package.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                yield from (f"{package}.{name}" for name in ast.literal_eval(node.value))


def test_the_reference_has_every_public_name():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    text = text.replace("::: jaxctc.diagnose.diagnose", "::: jaxctc.diagnose")  # a function, and the package it is in
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    names = set(public_names())
    assert len(names) > 40
    assert names - shown == set()
    assert {name for name in shown - names if name not in ("jaxctc.check", "jaxctc.conformance")} == set()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert there - listed == set()
    scripts = {f"tutorials/{path.stem.removeprefix('tutorial_')}.md" for path in ROOT.glob("examples/tutorial_*.py")}
    assert listed - there == scripts | {"benchmarks.md", "contributing.md", "changelog.md"}


def test_every_tutorial_ends_in_a_picture_that_is_there():
    scripts = list(ROOT.glob("examples/tutorial_*.py"))
    assert len(scripts) > 1
    for script in scripts:
        pictures = re.findall(r"^# !\[.*\]\(([\w.]+)\)$", script.read_text(encoding="utf-8"), re.MULTILINE)
        assert pictures, script
        assert [name for name in pictures if not (DOCS / "tutorials" / name).exists()] == []


def test_who_holds_to_what_is_said_as_it_was_measured():
    """By the page and the README's table; with reports of all cases, in which our own programs held to every one."""
    pytest.importorskip("benchmarks", reason="the benchmarks are in the checkout alone")
    from benchmarks import conformance as maker

    assert maker.PAGE.read_text(encoding="utf-8") == maker.page()
    readme = maker.README.read_text(encoding="utf-8")
    assert readme == maker.readme(readme)
    assert "| a loss is never negative | right | right | a loss is" in readme
    reports = {name: json.loads((maker.REPORTS / f"{name}.json").read_text()) for name in maker.PEERS}
    names = [case.name for case in jaxctc.conformance.cases()]
    for name, report in reports.items():
        assert [row["name"] for row in report["cases"]] == names, name
    for name in ("xla", "pallas"):
        assert [row for row in reports[name]["cases"] if row["held"] is False] == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["torch", "optax"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_others_still_do_what_the_readme_says(name):
    """One case of each row that they got wrong, but those that take long or may take the process with them."""
    package = pytest.importorskip(name)
    pytest.importorskip("benchmarks", reason="the benchmarks are in the checkout alone")
    from benchmarks import conformance as maker

    report = json.loads((maker.REPORTS / f"{name}.json").read_text())
    if report["version"] != f"{name} {package.__version__}":
        pytest.skip(f"{report['version']} was measured")
    function = package.nn.functional.ctc_loss if name == "torch" else package.ctc_loss
    held = {row["name"]: row.get("held") for row in report["cases"]}
    wrong = {case.aspect: case for case in reversed(jaxctc.conformance.cases()) if held[case.name] is False}
    for case in wrong.values():
        if len(case.log_probs) <= 200 and "refusal" not in case.asks:
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as JAX comes
                result = judge(function, case, name)
            assert result.held is False, case.name
