"""Meshes of virtual devices, and what a compiled program says over them."""

import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


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


def shapes_of_problems(mesh: jax.sharding.Mesh) -> tuple[list[jax.ShapeDtypeStruct], list[jax.ShapeDtypeStruct]]:
    """Of a loss's arguments, whose sequences lie along axis n of the mesh; and of three such, to be mapped over."""

    def of(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    lengths = [of((16,), jnp.int32, "n")] * 2
    problem = [of((40, 16, 12), jnp.float32, None, "n"), of((16, 5), jnp.int32, "n"), *lengths]
    return problem, [of((3, *x.shape), x.dtype, None, *x.sharding.spec) for x in problem]
