"""Run the tests against the built wheel, on every Python and JAX that are supported: ``nox`` prints what passed."""

from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False

OLDEST_JAX = "jax==0.10.0"
TORCH = {"3.11": ["torch==2.13.0"]}
"""One CPU build; where there is none for a version of Python, the tests of the bridge are skipped."""
VERSIONS = [("3.11", "oldest"), ("3.11", "newest"), ("3.12", "newest"), ("3.13", "newest"), ("3.14", "newest")]


@nox.session
@nox.parametrize(("python", "jax"), VERSIONS)
def installed(session: nox.Session, jax: str) -> None:
    """Install the wheel into an empty environment, and run the quick tier of the tests over it."""
    dist = Path(session.create_tmp(), "dist")
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(dist), silent=True)
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "build")
    (wheel,) = dist.glob("*.whl")
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test")
    session.install(OLDEST_JAX if jax == "oldest" else "jax", str(wheel), *groups, *TORCH.get(str(session.python), []))
    session.run("python", "-P", "-c", "import jax, jaxctc; print(jax.__version__, jaxctc.__file__)")
    # With -P, and without the checkout on the path, `import jaxctc` finds the wheel.
    session.run("python", "-P", "-m", "pytest", "-m", "not full", "-o", "pythonpath=tests", *session.posargs)
