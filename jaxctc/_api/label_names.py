"""Look up the names of classes in whatever form the caller has them."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

LabelNames: TypeAlias = Sequence[str | float | None] | Mapping[int, str | float | None] | Mapping[str, int]
"""The name of each class, in a sequence or a mapping, or a tokenizer's vocabulary: the class of each name."""


def names_by_class(label_names: LabelNames | None, classes: int | None = None) -> dict[int, str]:
    """Return the name of each class that has one, or raise; a sequence has one for each of `classes`, if that is known.

    A number stands for its digits, and None for no name.
    """
    if label_names is None:
        return {}
    if isinstance(label_names, Mapping):
        named = _by_class(label_names)
    else:
        if classes is not None and len(label_names) != classes:
            raise ValueError(
                f"label_names holds {len(label_names)} names, but there are C = {classes} classes: give one each, "
                "the blank included, or a mapping from class to name."
            )
        named = dict(enumerate(label_names))
    for label, name in named.items():
        if not isinstance(name, str | Real | None):
            raise TypeError(
                f"label_names holds {name!r} of type {type(name).__name__} as the name of class {label}: it must be a "
                "string, a number, or None for a class without a name."
            )
    return {label: str(name) for label, name in named.items() if name is not None}


def _by_class(label_names: Mapping[Any, Any]) -> dict[int, Any]:
    if all(isinstance(key, Integral) for key in label_names):
        return {int(label): name for label, name in label_names.items()}
    named: dict[int, Any] = {}
    for name, label in label_names.items():
        if not (isinstance(name, str) and isinstance(label, Integral)):
            raise TypeError(
                f"label_names maps {name!r} to {label!r}: a mapping must be from classes, which are ints, to their "
                "names, or from names, which are strings, to their classes."
            )
        if int(label) in named:
            raise ValueError(f"label_names has two names for class {label}: {named[int(label)]!r} and {name!r}.")
        named[int(label)] = name
    return named
