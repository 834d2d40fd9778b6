"""The README's own snippets."""

import re
from pathlib import Path

import jax
import pytest

pytest.importorskip("optax")

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(5))
def test_snippets_run(number):
    """Each of them on its own, as a reader would paste it."""
    snippet = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as JAX comes
        exec(snippet, {})
