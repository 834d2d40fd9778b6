"""Have mkdocstrings read what docstrings are written in: mathematics of Sphinx, and names that are links."""

import re
import textwrap

from griffe import Extension, Object

_BLOCK = re.compile(r"^\.\. math::[ \t]*(.*(?:\n(?:[ \t]+.*)?)*)", re.MULTILINE)
_RETURNS = re.compile(r"^Returns:\n((?:[ \t]+.*\n|\n)+)", re.MULTILINE)
_NAME = re.compile(r"(?<![`\[\w])`((?:jaxctc|bridge)(?:\.\w+)+)`(?!`)")
_MODULES = ("jaxctc.variants", "jaxctc.compat", "jaxctc.check", "jaxctc.conformance", "jaxctc.diagnose")
_PUBLIC = re.compile(r"^(?:jaxctc|bridge)(?:\.(?:variants|compat))?\.[A-Za-z]\w*$")


def _formula(match: re.Match[str]) -> str:
    return f"\n$$\n{textwrap.dedent(match[1]).strip()}\n$$\n\n"


def _returns(match: re.Match[str]) -> str:
    return f"**Returns:**\n\n{textwrap.dedent(match[1])}"


def _link(match: re.Match[str]) -> str:
    name = match[1]
    public = _PUBLIC.match(name) and name not in _MODULES
    return f"[`{name}`][{name}]" if public else match[0]


def as_markdown(text: str) -> str:
    """Return a docstring with formulas between dollars, and links from the public names in it."""
    text = _BLOCK.sub(_formula, text)
    text = _RETURNS.sub(_returns, text)  # griffe would take what stands before a colon for a type
    text = re.sub("^Example:$", "Examples:", text, flags=re.MULTILINE)  # the name of the section that holds code
    return _NAME.sub(_link, re.sub(r":math:`([^`]*)`", r"$\1$", text))


class Docstrings(Extension):
    """Apply `as_markdown` to every docstring."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Change the docstring of one object, as soon as it has been read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
