"""Check arguments, and raise errors that say what is wrong, what is legal and what to do.

Everything that can be known without tracing is checked here: types, ranks and shapes always, values
where looking at them costs no device synchronisation (numpy arrays, Python numbers, JAX arrays on
the CPU). Every message names the argument, the value, what is legal and what to do.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxctc._inputs import advice, fork
from jaxctc._sizes import Size, is_at_most, is_known
from jaxctc._types import IMPLEMENTATIONS, REDUCTIONS, REGISTERED


class Form(Enum):
    """How the caller wrote the targets."""

    PADDED = "(N, S)"
    END_TO_END = "one-dimensional"
    ONE = "(S,), one sequence"


class Names(NamedTuple):
    """What error messages call the arguments: what the caller calls them."""

    targets: str = "targets"
    input_lengths: str = "input_lengths"
    target_lengths: str = "target_lengths"
    blank: str = "blank"
    scores: str = "log_probs"


LOG_PROBS = Names()
LOGITS = Names(scores="logits")

LABELS = "labels, an array"
"""What messages say that targets must be."""

_FLOATS = ("float64", "float32", "bfloat16", "float16")


def plural(count: Size, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def host_values(x: Any) -> np.ndarray | None:
    """The values, where they are at hand: None for tracers and for arrays on an accelerator."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return None
    if x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices()):
        return np.asarray(x)
    return None


def numbers(x: Any) -> np.ndarray:
    """Return the caller's numbers as a numpy array in the machine's byte order; tensors of PyTorch are taken too."""
    if hasattr(x, "detach") and hasattr(x, "resolve_neg"):  # the core does not import torch
        x = x.detach().cpu().resolve_neg()
        if str(x.dtype) == "torch.bfloat16":  # numpy gets this dtype from JAX; PyTorch cannot export it to numpy
            return np.asarray(x.float()).astype(jnp.bfloat16)
    made = np.asarray(x)
    return made if made.dtype.isnative else made.astype(made.dtype.newbyteorder("="))


def device_numbers(x: Any) -> jax.Array:
    """Return the caller's numbers, whatever holds them, as a JAX array."""
    return x if isinstance(x, jax.Array) else jnp.asarray(numbers(x))


def as_array(name: str, x: Any, what: str) -> jax.Array | np.ndarray:
    """Leaves JAX arrays alone; makes numpy arrays of arrays, tensors, numbers and sequences of numbers."""
    if isinstance(x, jax.Array):
        return x
    if hasattr(x, "__jax_array__"):  # a symbolic size, for instance
        return jnp.asarray(x)
    try:
        if isinstance(x, Sequence) and any(isinstance(item, jax.Array) for item in x):
            return jnp.stack([jnp.asarray(item) for item in x])
        made = numbers(x)
    except ValueError:
        remedy = f"Pad them to one length, or join them end to end with np.concatenate({name})"
        raise ValueError(
            f"{name} is ragged: its rows differ in length. {remedy if what == LABELS else f'Pass {what}'}."
        ) from None
    if made.dtype == object or made.dtype.kind not in "biufcV":  # V: the dtypes that numpy gets from JAX
        raise TypeError(f"{name} must be {what}, got {_kind(x, made)}.")
    # An empty list has no type of its own.
    return made.astype(np.int32) if made.size == 0 and not isinstance(x, np.ndarray | np.generic) else made


def _kind(x: Any, made: np.ndarray) -> str:
    """Return the type of an argument, and for a sequence or an array that of an item, in words."""
    if made.ndim == 0 or made.size == 0:
        return type(x).__name__
    return f"{type(x).__name__} of {type(made.flat[0]).__name__.removesuffix('_')}"


def scores(name: str, x: Any) -> jax.Array:
    fork.check()
    if getattr(x, "requires_grad", False):
        warnings.warn(
            f"{name} is a PyTorch tensor that requires a gradient, which JAX does not compute: the result is detached. "
            f"For tensors there is the package bridge, with functions of the same names; or pass {name}.detach().",
            stacklevel=5,
        )
    made = x if isinstance(x, jax.Array) else numbers(x)
    if made.dtype.name not in _FLOATS:
        raise TypeError(
            f"{name} must be of a floating-point type ({', '.join(_FLOATS)}), got {made.dtype.name}. "
            f"Convert it, for instance with {name}.astype(jnp.float32)."
        )
    if made.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have shape (T, N, C), or (T, C) for one sequence (frames, sequences, classes); "
            f"got {_shape(made)}."
        )
    if made.shape[-1] == 0:
        raise ValueError(
            f"{name} has no classes: its shape is {_shape(made)}. The last axis holds one score a class, "
            "the blank included, so C must be at least 1."
        )
    return jnp.asarray(made)


def integers(name: str, x: Any, what: str) -> jax.Array | np.ndarray:
    made = as_array(name, x, what)
    if not jnp.issubdtype(made.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be {what} of an integer type, got {made.dtype.name}. "
            + advice.convert_labels(name, host_values(made))
        )
    return made


def blank(value: Any, classes: Size, name: str = "blank") -> int:
    made = integer(name, value, "the index of the blank class")
    if made >= 0 and not is_known(classes) and not is_at_most(made + 1, classes):
        raise ValueError(
            f"{name} is {made}, but C = {classes} is symbolic, and may be too small: say that it is not, with "
            f"jax.export.symbolic_shape(..., constraints=['{classes} >= {made + 1}'])."
        )
    if not 0 <= made < classes:
        raise ValueError(
            f"{name} is {made}, but there {'is' if classes == 1 else 'are'} C = {plural(classes, 'class')}: "
            f"it must lie in [0, {classes})." + (" For the last class pass C - 1." if made < 0 else "")
        )
    return made


def integer(name: str, value: Any, what: str) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be {what}, a Python int; got the bool {value}.")
    try:
        return operator.index(value)
    except jax.errors.TracerIntegerConversionError:
        raise TypeError(
            f"{name} must be {what}, a Python int known when tracing; got a traced value. "
            f"Mark it static, for instance with jax.jit(..., static_argnames=({name!r},))."
        ) from None
    except TypeError:
        raise TypeError(f"{name} must be {what}, a Python int; got {value!r} of type {type(value).__name__}.") from None


def at_least_one(name: str, value: Any, what: str) -> int | None:
    """Or None."""
    if value is None:
        return None
    made = integer(name, value, what)
    if made < 1:
        raise ValueError(f"{name} is {made}: it must be at least 1, or None.")
    return made


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{name} must be True or False, known when tracing; got {value!r} of type {type(value).__name__}."
        )
    return bool(value)


def reduction(value: Any) -> None:
    if not (isinstance(value, str) and value in REDUCTIONS):
        names = ", ".join(map(repr, REDUCTIONS))
        raise ValueError(f"reduction must be one of {names}; got {value!r}.")


def implementation(value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value in (*IMPLEMENTATIONS, *REGISTERED)):
        names = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation must be one of {names}, or None; got {value!r}.")


def lengths(
    name: str, x: Any, sequences: Size, axis: str, hint: Callable[[Size], str] = lambda _: ""
) -> jax.Array | np.ndarray:
    """Integer, of shape (N,); one number serves all sequences. `axis` is what they count, T or S.

    `hint` returns a further sentence, given a number of lengths that is not that of the sequences.
    """
    made = as_array(name, x, "an int or an array")
    if not jnp.issubdtype(made.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be an int or an array of an integer type, got {made.dtype.name}. "
            + advice.convert_lengths(name, host_values(made), axis)
        )
    if made.ndim == 0:
        return (
            np.broadcast_to(made, (sequences,))
            if isinstance(made, np.ndarray) and is_known(sequences)
            else jnp.broadcast_to(made, (sequences,))
        )
    if made.shape != (sequences,):
        raise ValueError(
            f"{name} has shape {_shape(made)}, but there {'is' if sequences == 1 else 'are'} "
            f"N = {plural(sequences, 'sequence')}: it must have shape ({sequences},), or be one number that serves all."
            + advice.reduce_lengths(name, host_values(made))
            + (hint(made.shape[0]) if made.ndim == 1 else "")
        )
    return made


def length_values(
    name: str, values: np.ndarray | None, stop: Size, explain: Callable[[], tuple[str, str]], batched: bool
) -> None:
    """Every length must lie in [0, stop]; where that is symbolic, the lattice finds those that do not.

    `explain` returns what the limit is and what to do. It is called only for the message, which takes longer to write
    than the lengths of a small batch take to check.
    """
    if values is None or not is_known(stop):
        return
    row = _first((values < 0) | (values > stop))
    if row is not None:
        limit, remedy = explain()
        raise ValueError(
            f"{name}{f'[{row}]' if batched else ''} is {values[row]}, but {limit}: it must lie in [0, {stop}]. {remedy}"
        )


def label_values(
    targets: np.ndarray, target_lengths: np.ndarray, blank: int, classes: Size, form: Form, names: Names = LOG_PROBS
) -> None:
    """Every label within its target's length must be a class other than the blank."""
    inside = np.arange(targets.shape[1]) < target_lengths[:, None]
    for bad, why in (
        (
            (targets < 0) | (is_known(classes) and targets >= classes),
            f"but there {'is' if classes == 1 else 'are'} C = {plural(classes, 'class')}: a label must lie in "
            f"[0, {classes}).",
        ),
        (
            targets == blank,
            "which is the blank: a target holds labels only, and the loss puts blanks between them "
            f"itself. If the blank is not class {blank}, pass its index as {names.blank}.",
        ),
    ):
        where = _first(inside & bad)
        if where is None:
            continue
        row, position = where
        length = f"{names.target_lengths}[{row}]"
        index, note = f"{row}, {position}", ""
        if form is Form.ONE:
            index, length = f"{position}", names.target_lengths
        elif form is Form.END_TO_END:
            index = f"{target_lengths[:row].sum() + position}"
            note = f" (label {position} of sequence {row})"
        raise ValueError(
            f"{names.targets}[{index}]{note} is {targets[where]}, {why} If it is padding, {length} = "
            f"{target_lengths[row]} is too long."
        )


def _first(bad: np.ndarray) -> Any:
    """The index of the first True, or None."""
    if not bad.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
    return index[0] if len(index) == 1 else index


def _shape(x: Any) -> str:
    return str(tuple(x.shape))
