"""Count what the loops for GPUs launch and keep in memory, on a machine that has no GPU.

Run it with `python -m benchmarks.gpu_loops`, where the dependency group `cuda-aot` is installed.

The default program, loss or loss and gradient from logits, is compiled ahead of time as users call it. Launches are
counted in XLA's final text: each fusion, copy and call outside of a loop once, and each within one as often as the loop
turns, which XLA must know. The launches of the loops that every other platform runs, and that GPUs ran before, are
those that `benchmarks.gpu_model` has counted.
"""

import argparse
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._shapes import ACCELERATED, SHAPES, Shape
from benchmarks.gpu_model import RESULTS, TARGET, _computations

JOBS = ("loss", "gradient")
_NOT_LAUNCHED = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "copy-done")

ABOUT = """Counted in what XLA compiles ahead of time, for loss, or loss and gradient, from logits. Launches a frame are
those within loops; the table also has all others, and the loops of whose length XLA knows nothing. Memory is that of
temporary arrays, in units of two float32 tables (T, N, 2 S + 1), which are what PyTorch's kernel keeps. Before are the
launches a frame of the loops that every other platform runs (`gpu_model.md`).
"""


class Counted(NamedTuple):
    """What a program launches."""

    in_loops: int
    """In all turns of all loops together."""
    beside: int
    unknown: int
    """Loops of whose length XLA knows nothing; their launches are counted once."""
    kinds: frozenset[str]
    """The kinds of operation that it launches."""


def count(text: str) -> Counted:
    """Returns the counts of XLA's text of a compiled program."""
    computations = _computations(text)
    kinds: set[str] = set()
    unknown = 0

    def launched(name: str) -> tuple[int, int]:
        nonlocal unknown
        in_loops = beside = 0
        for operation in computations[name].values():
            if operation.kind == "while":
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', operation.rest)
                unknown += trips is None
                body = re.search(r"body=%([\w.-]+)", operation.rest)[1]
                in_loops += sum(launched(body)) * (int(trips[1]) if trips else 1)
            elif operation.kind not in _NOT_LAUNCHED and "AllocateBuffer" not in operation.rest:
                kinds.add(operation.kind)
                beside += 1
        return in_loops, beside

    return Counted(*launched("ENTRY"), unknown, frozenset(kinds))


def tables(shape: Shape) -> int:
    """Returns the bytes of two float32 tables (T, N, 2 S + 1)."""
    return 2 * 4 * shape.T * shape.N * (2 * shape.S + 1)


class Compiler:
    """Compiles for a GPU of some compute capability. JAX must not have been imported before the first is made."""

    def __init__(self, target: str, capability: str = "9.0") -> None:
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        import jax
        from jax.experimental.topologies import get_topology_desc

        major, minor = capability.split(".")
        described = re.sub(
            r"cuda_compute_capability \{.*?\}", f"cuda_compute_capability {{ major: {major} minor: {minor} }}", target
        )
        topology = get_topology_desc(platform="cuda", topology_name="H100", target_config=described, topology="1x1x1")
        self.sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def __call__(self, job: str, shape: Shape, dtype: str = "float32") -> tuple[Counted, int]:
        """Returns the counts of one program, and the bytes of its temporary arrays."""
        import jax
        import jax.numpy as jnp

        import jaxctc

        def of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=self.sharding)

        def total(*problem):
            return jaxctc.ctc_loss_with_logits(*problem, reduction="sum")

        _, T, N, C, S = shape
        run = jax.value_and_grad(total) if job == "gradient" else total
        compiled = jax.jit(run).lower(of(T, N, C, dtype=jnp.dtype(dtype)), of(N, S), of(N), of(N)).compile()
        return count(compiled.as_text()), compiled.memory_analysis().temp_size_in_bytes


def before(shape: Shape, job: str) -> float | None:
    """Returns the launches a frame that `benchmarks.gpu_model` has counted of the loops for every platform."""
    rows = json.loads(RESULTS.joinpath("gpu_model.json").read_text())["recursion"]
    found = [x for x in rows if (x["sizes"], x["job"]) == (shape.sizes, "loss" if job == "loss" else "posterior")]
    return found[0]["launches"]["xla"] / shape.T if found else None


def row(compiler: Compiler, job: str, shape: Shape, dtype: str) -> dict[str, Any]:
    """Returns the figures of one program."""
    counted, temporary = compiler(job, shape, dtype)
    return {
        "shape": shape.name,
        "sizes": shape.sizes,
        "job": job,
        "dtype": dtype,
        "before": before(shape, job),
        "a_frame": counted.in_loops / shape.T,
        "beside": counted.beside,
        "unknown_loops": counted.unknown,
        "temporary_bytes": temporary,
        "of_two_tables": temporary / tables(shape),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    heads = ["shape", "T, N, C, S", "job", "dtype", "before, a frame", "now, a frame", "beside", "unknown loops"]
    heads += ["temporary MB", "of two tables"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for x in rows:
        figures = [
            "-" if x["before"] is None else f"{x['before']:.2f}",
            f"{x['a_frame']:.2f}",
            str(x["beside"]),
            str(x["unknown_loops"]),
            f"{x['temporary_bytes'] / 1e6:.2f}",
            f"{x['of_two_tables']:.2f}",
        ]
        lines.append(f"| {' | '.join([x['shape'], x['sizes'], x['job'], x['dtype'], *figures])} |")
    return "\n".join(lines)


def main() -> None:
    """Counts, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", action="append", type=Shape.parse, help="T,N,C,S; may be repeated")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--capability", default="9.0", help="compute capability of the GPU")
    parser.add_argument("--target", type=Path, default=TARGET, help="what XLA must know of the GPU")
    arguments = parser.parse_args()
    compiler = Compiler(arguments.target.read_text(), arguments.capability)
    rows = []
    for shape in arguments.shape or [*SHAPES, *ACCELERATED]:
        for job in arguments.jobs.split(","):
            rows.append(row(compiler, job, shape, arguments.dtype))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    versions = {name: version(name) for name in ("jax", "jaxlib", "jax-cuda13-plugin")}
    made = {"versions": versions, "capability": arguments.capability, "rows": rows}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    used = f"Compute capability {arguments.capability}; {named}."
    text = f"# The loops on GPUs, counted\n\n{table(rows)}\n\n{ABOUT}\n{used}\n"
    print(text)
    if arguments.shape is None:
        RESULTS.joinpath("gpu_loops.json").write_text(json.dumps(made, indent=1) + "\n")
        RESULTS.joinpath("gpu_loops.md").write_text(text)


if __name__ == "__main__":
    main()
