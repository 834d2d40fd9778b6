"""What is in the box."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import jaxctc

ROOT = Path(jaxctc.__file__).parents[1]
"""Where the package is imported from: the checkout, or a wheel."""
CHECKOUT = Path(__file__).parents[1]
FILES = sorted(path for package in ("jaxctc", "bridge") for path in (ROOT / package).rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    if module.startswith("bridge"):
        pytest.importorskip("torch")
    if module == "jaxctc._api.plot":
        pytest.importorskip("matplotlib")
    if module.startswith("jaxctc._kernels."):
        pytest.importorskip("absl", reason="Pallas's Mosaic GPU needs absl-py")
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert not results.failed


def members(module):
    """What can be called, in public modules as well; what only holds values says so field by field."""
    for name in module.__all__:
        member = getattr(module, name)
        if inspect.ismodule(member):
            yield from members(member)
        elif not (inspect.isclass(member) and (issubclass(member, tuple | dict) or is_dataclass(member))):
            yield f"{module.__name__}.{name}", member


@pytest.mark.parametrize("package", ["jaxctc", "bridge"])
def test_every_public_name_is_documented_with_an_example(package):
    if package == "bridge":
        pytest.importorskip("torch")
    module = importlib.import_module(package)
    # A program, such as `jaxctc.check`, is an attribute too once something has imported it.
    found = (
        n for n, x in vars(module).items() if n in module.__all__ or not (inspect.ismodule(x) or n == "annotations")
    )
    assert sorted(module.__all__) == sorted(n for n in found if not n.startswith("_"))
    for name, member in members(module):
        for part in ("Args:", "Raises:", "Example:", ">>> "):
            assert part in member.__doc__, f"{name} lacks {part!r}"
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("forbidden", ["torch", "bridge", "optax", "beartype", "matplotlib", "rich"])
def test_the_core_imports_nothing_that_it_can_do_without(forbidden):
    code = f"import sys, jaxctc; sys.exit({forbidden!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_starts_no_backend():
    """So that `jax.distributed.initialize` and the platform's configuration can still follow."""
    code = "import jaxctc; from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_readme_shows_the_reference_whole():
    """All of the file but its docstring, whose formula the README has in its own mathematics."""
    source = (ROOT / "jaxctc/_reference/ctc.py").read_text(encoding="utf-8")
    code = "\n".join(source.splitlines()[ast.parse(source).body[0].end_lineno :]).strip()
    assert f"```python\n{code}\n```" in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_the_page_on_the_architecture_names_what_exists():
    """`name` in `path`, and every path alone."""
    page = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:jaxctc|bridge|tests)/[\w/]*(?:\.py|/))`", page)
    assert len(paths) > 50
    assert [path for path in paths if not (CHECKOUT / path).exists()] == []
    for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", page):
        defined = rf"^\s*(?:(?:def|class) {name}\b|{name}\s*[:=])"
        assert re.search(defined, (CHECKOUT / path).read_text(encoding="utf-8"), re.MULTILINE), f"{name} in {path}"


def test_the_version_is_in_one_place():
    metadata = pytest.importorskip("importlib.metadata")
    try:
        installed = metadata.version("jaxctc")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed, only on the path")
    assert installed == jaxctc.__version__
    assert jaxctc.__version__ in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
