"""Count what TPUs' compiler makes of the recursion, as kernels and as XLA's loops, on a machine without a TPU.

Run it with JAX_PLATFORMS=cpu python benchmarks/tpu_model.py; it needs libtpu (pip install --group tpu). It writes
`results/tpu.json` and `results/tpu.md`.

The programs compute the scaled emissions and reduce the posterior; what comes before and after is the same for both
implementations. Nothing runs. Counted are the bytes of HBM that a program allocates beyond its arguments and results,
the bytes of VMEM that a kernel allocates, and the bundles, one a cycle, that a kernel's loops are scheduled in. A
cycle count is a model: for each loop of a kernel the number of bundles, or the longest chain of dependences with the
compiler's own latencies, whichever is larger; for XLA's loops the sum of XLA's own estimates, which it has for fusions
and not for what moves data. Neither models waiting for memory. What XLA can place in VMEM needs no HBM.
"""

import functools
import itertools
import json
import os
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

_DUMP = Path(tempfile.mkdtemp(prefix="jaxctc-tpu-"))
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={_DUMP} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=.*(final_bundles|critical-path)",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks._shapes import ACCELERATED, SHAPES, Shape  # noqa: E402
from jaxctc._forward_backward import bidirectional, segments  # noqa: E402
from jaxctc._forward_backward.scaled import Scaled  # noqa: E402
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions  # noqa: E402
from jaxctc._kernels import tpu, tpu_layout  # noqa: E402
from jaxctc._lattice import lattices  # noqa: E402
from jaxctc._types import Problem, Request  # noqa: E402

RESULTS = Path(__file__).parent / "results"
KINDS = "v5e", "v6e"
IMPLEMENTATIONS = {"kernels": tpu, "xla": bidirectional}
WANTED = [*SHAPES, Shape("wide and long", 2000, 32, 64, 400), *ACCELERATED]
_STEPS = {
    "ctc_forward": {"turn": 8, "a step": 1, "forward": tpu_layout.UNROLLED},
    "ctc_backward": {
        "turn": 8,
        "a step": 1,
        "recompute": tpu_layout.UNROLLED,
        "backward": tpu_layout.UNROLLED,
        "backward a step": 1,
        "turn back": 8,
    },
}
"""The loops of each kernel, in their order, and how many steps one turn of each takes."""


class Figures(NamedTuple):
    """What the compiler says of one implementation on one shape."""

    shape: Shape
    device: str
    implementation: str
    hbm_bytes: int
    """Temporary: beyond arguments and results."""
    cycles: float
    """A step, of all sequences and directions."""
    vmem_bytes: int | None = None
    registers: int | None = None
    """The registers that one array of states fills, in all blocks of rows."""
    loops: dict[str, dict[str, float]] | None = None
    """For each kernel, the cycles of a step for each register."""


def measured(kind: str, implementation: str, shape: Shape) -> Figures:
    for file in _DUMP.glob("*"):
        file.unlink()
    device = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:2x2").devices[0]
    arguments, size = _arguments(shape, jax.sharding.SingleDeviceSharding(device))
    compiled = (
        jax.jit(functools.partial(_program, IMPLEMENTATIONS[implementation].posterior, size))
        .lower(*arguments)
        .compile()
    )
    text, memory = compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes
    if implementation == "xla":
        return Figures(shape, kind, implementation, memory, _estimated_cycles(text))
    steps, columns = arguments[0].shape[2], arguments[1].shape[3]
    cut = tpu_layout.cut((shape.N, 2, steps, columns), size)
    registers = cut.rows * cut.lanes // (8 * 128)
    loops = {}
    for kernel, names in _STEPS.items():
        turns = zip(names.items(), _loops(kernel), strict=True)
        loops[kernel] = {name: cycles / count / registers for (name, count), cycles in turns}
    vmem = max(map(int, re.findall(r'tpu_custom_call.*"used_scoped_memory_configs":\[{[^}]*"size":"(\d+)"', text)))
    registers *= cut.grid[0]
    return Figures(
        shape, kind, implementation, memory, registers * sum(map(_of_a_step, loops.values())), vmem, registers, loops
    )


def _of_a_step(loops: dict[str, float]) -> float:
    """Where there are many; the loops that take one at a time are for what is left over."""
    return sum(cycles for name, cycles in loops.items() if "a step" not in name)


def _program(posterior: Any, size: int, steps: jax.Array, columns: jax.Array, rest: ScaledEmissions) -> Any:
    value, found = posterior(rest._replace(scores=steps * columns), size)
    return value, found.blank, found.label.sum(axis=2)


def _arguments(shape: Shape, sharding: Any) -> tuple[tuple[Any, ...], int]:
    """The scores' factors and the rest of the scaled emissions, and the steps of a segment."""
    _, T, N, C, S = shape

    def of(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    lengths = of(N, dtype=jnp.int32)
    problem = Problem(of(T, N, C), of(N, S, dtype=jnp.int32), lengths, lengths)
    lattice = jax.eval_shape(functools.partial(lattices.build_lattice, request=Request()), problem)
    size = segments.segment_size(T, lattice, jnp.dtype(jnp.float32))
    M, W = segments.step_count(T, size), lattice.labels.shape[1]
    blank, counts = Scaled(*[of(N, 2, M + 1)] * 2), [lengths, of(N, 2, dtype=jnp.int32)]
    rest = ScaledEmissions(None, blank, of(N, 2, W, dtype=bool), *counts, *[of(N, 2, M)] * 2)
    return (of(N, 2, M, 1), of(N, 2, 1, W), rest), size


def _loops(kernel: str) -> list[int]:
    """Cycles that a turn of each innermost loop takes, in the order of the program."""
    bundles = _bundles(_dumped(kernel, "final_bundles"))
    chains = _chains(_dumped(kernel, "critical-path"))
    # What only copies, where a block reaches beyond the last step, has no chain to speak of.
    return [max(pair) for pair in zip(bundles, chains, strict=True) if pair[1] > 10]


def _dumped(kernel: str, what: str) -> str:
    (file,) = _DUMP.glob(f"*-{kernel}.*[0-9]-{what}.txt")
    return file.read_text()


def _bundles(schedule: str) -> list[int]:
    """A mark LB says where a loop's body begins; each bundle has the depth of its loop."""
    marks = re.findall(r"^ *(?:0x)?[0-9a-f]+ +([A-Z]{2})?:? *(>*) *{", schedule, re.MULTILINE)
    places = [i for i, (mark, _) in enumerate(marks) if mark]
    deepest = max(depth for _, depth in marks)
    return [end - begin for begin, end in itertools.pairwise(places) if marks[begin] == ("LB", deepest)]


def _chains(paths: str) -> list[int]:
    """A loop's region holds three blocks: one step that leads into it, its body, one that leads out."""
    regions: dict[str, list[int]] = {}
    for parent, length in re.findall(r"parent=(\d+)}\n(?: *Length to end: (\d+))?", paths):
        regions.setdefault(parent, []).append(int(length or 0))
    return [body for first, body, last in (x for x in regions.values() if len(x) == 3) if first == last == 1]


def _estimated_cycles(text: str) -> float:
    """A step of the innermost loops, two steps a turn, each of which all steps go through once."""
    computations = re.split(r"\n(?=(?:ENTRY )?%)", text)
    bodies = set(re.findall(r" while\(.*body=%([\w.\-]+)", text))
    inner = (c for c in computations if c[1:].split(" ", 1)[0] in bodies and " while(" not in c)
    return sum(sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', c))) for c in inner) / 2


def table(figures: list[Figures]) -> Table:
    shown = Table(title="From scores along the lattice to the posterior", title_justify="left", title_style="bold")
    for column in ("shape: T, N, C, S", "TPU"):
        shown.add_column(column, no_wrap=True)
    for column in _COLUMNS:
        shown.add_column(column, justify="right")
    for _, rows in itertools.groupby(figures, key=lambda f: f.shape):
        for row in _rows(list(rows)):
            shown.add_row(*row)
        shown.add_section()
    return shown


_COLUMNS = (
    "HBM, MB: kernels",
    "xla",
    "VMEM, MB",
    "cycles a step: kernels",
    "xla",
    "cycles a register and step: forward",
    "backward",
)


def _rows(figures: list[Figures]) -> list[list[str]]:
    found = []
    for kind in KINDS:
        ours, xla = (
            next(f for f in figures if (f.device, f.implementation) == (kind, name)) for name in IMPLEMENTATIONS
        )
        forward, backward = map(_of_a_step, ours.loops.values())
        shape = ours.shape
        name = shape.sizes if shape.name == shape.sizes else f"{shape.name}: {shape.sizes}"
        found.append(
            [
                name,
                kind,
                f"{ours.hbm_bytes / 1e6:.1f}",
                f"{xla.hbm_bytes / 1e6:.1f}",
                f"{ours.vmem_bytes / 1e6:.1f}",
                f"{ours.cycles:,.0f}",
                f"{xla.cycles:,.0f}",
                f"{forward:.1f}",
                f"{backward:.1f}",
            ]
        )
    return found


def markdown(figures: list[Figures]) -> str:
    """Returns the table and its explanation in Markdown."""
    header = ["shape: T, N, C, S", "TPU", *_COLUMNS]
    lines = [header, ["---"] * 2 + ["---:"] * len(_COLUMNS)]
    for _, rows in itertools.groupby(figures, key=lambda f: f.shape):
        lines += _rows(list(rows))
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# The recursion on TPUs: counted and modelled, not measured\n\n{__doc__}\n{rows}\n"


def main() -> None:
    """Compiles, prints, writes."""
    cells = list(itertools.product(WANTED, KINDS, IMPLEMENTATIONS))
    figures = [measured(kind, implementation, shape) for shape, kind, implementation in track(cells, transient=True)]
    Console(width=150).print(table(figures))
    rows = [f._asdict() | {"shape": f.shape._asdict()} for f in figures]
    versions = {package: version(package) for package in ("jax", "libtpu")}
    (RESULTS / "tpu.json").write_text(json.dumps({"versions": versions, "figures": rows}, indent=1) + "\n")
    (RESULTS / "tpu.md").write_text(markdown(figures))


if __name__ == "__main__":
    main()
