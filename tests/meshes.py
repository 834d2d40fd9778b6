"""Meshes of virtual devices, and what a compiled program says over them."""

import math
import re

import jax
from jax.sharding import AxisType


def mesh_of(axis_type: AxisType, **axes: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(axis_type,) * len(axes), devices=devices)


def collectives(compiled) -> list[tuple[str, int]]:
    """(kind, bytes) of each in the program of one device."""
    operation = r"= (\(?[^()=]+\)?) (all-\w+|collective-\w+|reduce-scatter|ragged-\S+)(?:-start)?\("
    found = re.findall(operation, compiled.as_text())
    sizes = (re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", shapes) for shapes, _ in found)
    total = [
        sum(int(bits) // 8 * math.prod(map(int, filter(None, dims.split(",")))) for bits, dims in x) for x in sizes
    ]
    return [(kind, size) for (_, kind), size in zip(found, total, strict=True)]
