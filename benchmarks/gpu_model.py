"""Count and model what the recursion needs of an H100, on a machine that has none.

Run it with `python -m benchmarks.gpu_model`, where the dependency group `cuda-aot` is installed.

Each shape is compiled ahead of time for CUDA twice: as loops of XLA (`bidirectional`) and as kernels (`_kernels.gpu`).
Both begin with the scaled emissions, for gathering the scores is the same for both. Counted are launches, from XLA's
own list of what it will launch; memory; registers, spills and instructions a frame, from the assembler. The rest is
modelled; the table says what is assumed. No GPU has measured any of it.

The whole program with kernels, loss and gradient from logits, is compiled once more; its launches, its memory and the
bytes that pass through device memory are counted.
"""

import argparse
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._shapes import ACCELERATED, SHAPES, Shape

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TARGET = ROOT.parent / "shared" / "data" / "h100_target_config.pbtxt"

CLOCK = 1.7e3
"""Cycles in a microsecond."""
LAUNCH = 2.0
"""Microseconds."""
MULTIPROCESSORS, SCHEDULERS, THREADS, REGISTERS, SHARED = 132, 4, 2048, 65536, 227 << 10
BARRIER = 24
LATENCIES = {"LDS": 29, "STS": 12, "LDG": 600, "STG": 12, "FRND": 18, "MUFU": 18, "SHFL": 23, "SYNCS": 20}
OTHER = 20
"""Cycles until the result of an instruction that signals its own completion; the assembler gives that of all others."""

ASSUMED = f"""Two figures with a stroke between them are those of XLA's loops and of the kernels; with a comma, those
of the forward and the backward kernel. Instructions and cycles are of one frame.

Counted: launches, temporary memory, registers, instructions; no register is spilled. The memory is what a call needs
besides the scaled emissions, whose rows are multiples of 128 columns for the kernels, and its results.

Modelled, and measured by nobody: cycles and microseconds. Instructions are issued in order, each after the stall that
the assembler wrote into it and after what it waits for; a barrier of a warpgroup takes {BARRIER} cycles, shared memory
{LATENCIES["LDS"]}, rounding and special functions {LATENCIES["MUFU"]}. A scheduler issues one instruction a cycle for
all the warps that it has. The clock is {CLOCK / 1e3} GHz, and a launch takes {LAUNCH:g} us for both and overlaps
with nothing.
"""


WHOLE = """Loss and gradient from logits, the whole program with kernels. The bytes are those that all launches together
read and write, as if nothing stayed in a cache, in units of one copy of the scores, which reads and writes each once. A
gathered number counts as 32 bytes.
"""


class Instruction(NamedTuple):
    """One instruction of the assembler's listing, with the control words of the hardware."""

    address: int
    name: str
    target: int | None
    """The address that a branch goes to."""
    waits: str
    read: str
    written: str
    stall: int

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]


_LINE = re.compile(
    r"\s+(?P<waits>\S+?):(?P<read>.):(?P<written>.):[Y-]:(?P<stall>\d+)"
    r"\s+/\*(?P<address>[0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)(?P<rest>.*)"
)


def instructions(listing: str) -> list[Instruction]:
    """Reads the listing."""
    places, found = {}, []
    for line in listing.splitlines():
        if match := _LINE.match(line):
            found.append(match)
        elif match := re.match(r"(\.L_x_\d+):", line):
            places[match[1]] = len(found)

    def target(rest: str) -> int | None:
        label = re.search(r"\.L_x_\d+", rest)
        return places.get(label[0]) if label else None

    return [
        Instruction(
            int(x["address"], 16),
            x["name"],
            target(x["rest"]) if x["name"].startswith("BRA") else None,
            x["waits"],
            x["read"],
            x["written"],
            int(x["stall"]),
        )
        for x in found
    ]


class Loop(NamedTuple):
    """Over some frames at once."""

    frames: int
    barriers: int
    backward: bool
    instructions: float
    """A frame."""
    cycles: float
    """A frame, if nothing else runs."""


def loops(code: list[Instruction]) -> list[Loop]:
    """The innermost that have barriers: one a frame, and where a backward pass takes a segment as a whole, one more."""
    spans = [(x.target, i + 1) for i, x in enumerate(code) if x.target is not None and x.target <= i]
    found: list[tuple[int, int]] = []
    for first, stop in sorted(spans, key=lambda span: span[1] - span[0]):
        # A loop may jump back from several places, of which the nearest counts.
        apart = all(stop <= other or first >= end for other, end in found)
        if apart and any(x.kind == "BAR" for x in code[first:stop]):
            found.append((first, stop))
    return [_loop(code[slice(*span)]) for span in sorted(found)]


def _loop(body: list[Instruction]) -> Loop:
    barriers = sum(x.kind == "BAR" for x in body)
    backward = not any(x.kind == "FRND" for x in body)
    frames = barriers - barriers % 2
    return Loop(frames, barriers, backward, len(body) / frames, _cycles(body) / frames)


def _cycles(body: list[Instruction]) -> int:
    """Return the cycles of one turn of a loop, for one warp that repeats it."""
    ready: dict[str, int] = {}
    time = before = 0
    for _ in range(4):
        before = time
        for x in body:
            time = max([time, *(ready.get(flag, 0) for flag in x.waits if flag.isdigit())])
            time += BARRIER * (x.kind == "BAR")
            for flag, latency in ((x.written, LATENCIES.get(x.kind, OTHER)), (x.read, LATENCIES["STS"])):
                if flag != "-":
                    ready[flag] = max(ready.get(flag, 0), time + latency)
            time += max(x.stall, 1)
    return time - before


class Kernel(NamedTuple):
    """A kernel of our own."""

    name: str
    registers: int
    spilled: int
    barriers: int
    """In the code that it was assembled from."""
    loops: list[Loop]


def _kernels(directory: Path) -> Iterator[Kernel]:
    for report in sorted(directory.glob("*.ptxas")):
        text = report.read_text()
        code = instructions(report.with_suffix(".sass_ctrl").read_text())
        yield Kernel(
            report.stem.rpartition("_")[0],
            int(re.search(r"Used (\d+) registers", text)[1]),
            sum(map(int, re.findall(r"(\d+) bytes spill", text))),
            report.with_suffix(".ptx").read_text().count("bar.sync"),
            loops(code),
        )


def launches(thunks: str, trips: list[int]) -> int:
    """In one call, of XLA's list. `trips` are those of the loops, the outermost first."""
    total = 0
    around: list[int] = []
    for line in thunks.splitlines():
        match = re.match(r"( *)\d+: (\w+)", line)
        if match is None:
            continue
        while around and len(match[1]) <= around[-1]:
            around.pop()
        if match[2] == "kWhile":
            around.append(len(match[1]))
        elif match[2] != "kDynamicSliceFusion":  # which says what it launches
            total += math.prod(trips[: len(around)])
    return total


class Program(NamedTuple):
    """One implementation, compiled for one shape."""

    launches: int
    temporary: int
    """Bytes, besides arguments and results: the posterior takes the place of the scores."""
    kernels: list[Kernel]
    cut: Any
    """The cut of the batch that the kernels have (`gpu_layout.Cut`)."""


class Whole(NamedTuple):
    """Loss and gradient from logits, with kernels."""

    shape: str
    sizes: str
    launches: int
    temporary: int
    """Bytes, besides arguments and results."""
    moved: int
    """Bytes."""
    scores: int
    """Bytes."""

    @property
    def copies(self) -> float:
        return self.moved / (2 * self.scores)


class _Operation(NamedTuple):
    """One operation of XLA's text."""

    size: int
    """Bytes of the result."""
    kind: str
    operands: list[str]
    rest: str


_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
_PARTS = ("slice", "dynamic-slice", "bitcast")
_SECTOR = 32
"""Bytes that are read for a single number."""


def _computations(text: str) -> dict[str, dict[str, _Operation]]:
    """By name, and "ENTRY" for that which calls all others."""

    def size(shapes: str) -> int:
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/|\{.*?\}", "", shapes))
        return sum(_WIDTHS[kind] * math.prod(map(int, filter(None, sizes.split(",")))) for kind, sizes in arrays)

    found = {}
    for match in re.finditer(r"^(ENTRY )?%([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        lines = re.findall(r"^  (?:ROOT )?%([\w.-]+) = (.+?) ([a-z-]+)\((.*?)\)(?=, |$)(.*)", match[3], re.MULTILINE)
        found["ENTRY" if match[1] else match[2]] = {
            name: _Operation(size(shapes), kind, re.findall(r"%([\w.-]+)", operands) or [operands], rest)
            for name, shapes, kind, operands, rest in lines
        }
    return found


def _read(body: dict[str, _Operation], name: str) -> int:
    """Bytes that are read of what has this name: all, unless by slices and gathers alone."""
    total = 0
    for user, operation in body.items():
        if name not in operation.operands:
            continue
        if operation.kind in _PARTS:
            total += min(operation.size, _read(body, user))
        elif operation.kind == "gather" and operation.operands[0] == name:
            total += operation.size // _WIDTHS["f32"] * _SECTOR
        else:
            return body[name].size
    return min(total, body[name].size)


def moved(text: str) -> int:
    """Bytes of what the entry's instructions read and write. Loops, of which it must have none, would count once."""
    computations = _computations(text)
    entry, total = computations["ENTRY"], 0
    for operation in entry.values():
        assert operation.kind != "while"
        if operation.kind in _FREE:
            continue
        total += operation.size
        called = re.search(r"calls=%([\w.-]+)", operation.rest)
        body = computations[called[1]] if called else {}
        parameters = {int(x.operands[0]): name for name, x in body.items() if x.kind == "parameter"}
        for i, operand in enumerate(operation.operands):
            if operand in entry:
                total += _read(body, parameters[i]) if body else entry[operand].size
    return total


class Compiler:
    """Has the compiler's reports in a directory of its own. There is one in a process, before JAX is imported."""

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory = directory
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "MOSAIC_GPU_DUMP_PTX": "1",
            "MOSAIC_GPU_DUMP_SASS_CTRL": "1",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={directory}",
        }
        import jax
        from jax.experimental.topologies import get_topology_desc

        described = get_topology_desc(
            platform="cuda", topology_name="H100", target_config=target.read_text(), topology="1x1x1"
        )
        self.sharding = jax.sharding.SingleDeviceSharding(described.devices[0])

    def __call__(self, implementation: str, job: str, shape: Shape) -> Program:
        """Compiles "xla" or "kernels", for the job "loss" or "posterior"."""
        import jax
        import jax.numpy as jnp

        from jaxctc._forward_backward import bidirectional, scaled_emissions, segments
        from jaxctc._kernels import dispatch, gpu, gpu_layout, gpu_passes, step
        from jaxctc._lattice import frame_map, lattices
        from jaxctc._types import Layout, Problem, Request

        _, T, N, C, S = shape
        sizes = jax.ShapeDtypeStruct((N,), jnp.int32)
        problem = Problem(
            jax.ShapeDtypeStruct((T, N, C), jnp.float32), jax.ShapeDtypeStruct((N, S), jnp.int32), sizes, sizes
        )
        request = Request(layout=dispatch._layout("cuda") if implementation == "kernels" else Layout())
        lattice = jax.eval_shape(lambda x: lattices.build_lattice(x, request), problem)
        recomputes = job == "posterior" and implementation == "xla"
        size = segments.segment_size(T, lattice, jnp.dtype(jnp.float32)) if recomputes else step.RENORMALIZE_EVERY
        steps = segments.step_count(T, size)
        emissions = jax.eval_shape(
            lambda x, y: scaled_emissions.build_emissions(x, y, request, frame_map.build_frame_map(y, steps)),
            problem.scores,
            lattice,
        )
        emissions = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding), emissions)

        module = {"xla": bidirectional, "kernels": gpu}[implementation]
        name = f"{implementation}_{job}_{'_'.join(map(str, shape[1:]))}"

        def run(emissions):
            return module.likelihood(emissions) if job == "loss" else module.posterior(emissions, size)

        run.__name__ = name
        own = self.directory / name
        os.environ["MOSAIC_GPU_DUMP_TO"] = str(own)
        own.mkdir()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            compiled = jax.jit(run, donate_argnums=0).lower(emissions).compile()
        (thunks,) = self.directory.glob(f"*.jit_{name}.thunk_sequence.txt")
        memory = gpu_passes.forward_memory if job == "loss" else gpu_passes.backward_memory
        cut = gpu_layout.Cut.of(emissions, memory)
        trips = [steps // size, size // 2] if recomputes and size < steps else [steps // 2]
        return Program(
            launches(thunks.read_text(), [cut.strips] if implementation == "kernels" else trips),
            compiled.memory_analysis().temp_size_in_bytes,
            list(_kernels(own)),
            cut,
        )

    def whole(self, shape: Shape) -> Whole:
        """The program as users call it."""
        import jax
        import jax.numpy as jnp

        import jaxctc

        def of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=self.sharding)

        def total(logits, *rest):
            return jaxctc.ctc_loss_with_logits(logits, *rest, reduction="sum", implementation="pallas")

        def run(*problem):
            return jax.value_and_grad(total)(*problem)

        _, T, N, C, S = shape
        run.__name__ = name = f"whole_{'_'.join(map(str, shape[1:]))}"
        compiled = jax.jit(run).lower(of(T, N, C, dtype=jnp.float32), of(N, S), of(N), of(N)).compile()
        (thunks,) = self.directory.glob(f"*.jit_{name}.thunk_sequence.txt")
        return Whole(
            shape.name,
            shape.sizes,
            launches(thunks.read_text(), []),
            compiled.memory_analysis().temp_size_in_bytes,
            moved(compiled.as_text()),
            4 * T * N * C,
        )


class Cost(NamedTuple):
    """The cost of one kernel for one shape."""

    registers: int
    spilled: int
    instructions: float
    """A frame, of all that a scheduler issues for one block."""
    cycles: float
    """A frame, if nothing else runs."""
    microseconds: float


def cost(kernel: Kernel, program: Program, shape: Shape) -> Cost:
    """In the rows that hold the whole target."""
    from jaxctc._kernels import gpu_layout, gpu_passes

    cut = program.cut
    has_backward = any(loop.backward for loop in kernel.loops)
    memory = gpu_passes.backward_memory if has_backward else gpu_passes.forward_memory
    frames = max(cut.segment_size >> (cut.tiles - 1).bit_length(), 2)
    # Of the loops of several widths that take as many frames at once those of the widest have most to do.
    chosen = [
        max((x for x in kernel.loops if x.frames == frames and x.backward == backward), key=lambda x: x.instructions)
        for backward in ([False, True] if has_backward else [False])
    ]
    issued, latency = sum(x.instructions for x in chosen), max(x.cycles for x in chosen)
    threads = 128 * len(chosen)
    resident = min(
        SHARED // (gpu_layout.bytes_of(memory(cut.tiles, cut.segment_size, cut.has_edges)) + 1024),
        REGISTERS // (threads * -(-kernel.registers // 8) * 8),
        THREADS // threads,
    )
    blocks = 2 * shape.N
    together = min(resident, -(-blocks // MULTIPROCESSORS))
    rounds = -(-blocks // (MULTIPROCESSORS * resident))
    frame = max(latency, together * issued)
    steps = cut.strips * cut.segments * cut.segment_size
    return Cost(kernel.registers, kernel.spilled, issued, latency, rounds * steps * frame / CLOCK)


def row(compiler: Compiler, implementations: list[str], shape: Shape, job: str) -> dict[str, Any]:
    """Returns the figures of the implementations for one shape."""
    programs = {name: compiler(name, job, shape) for name in implementations}
    ours = programs["kernels"]
    costs = [cost(kernel, ours, shape) for kernel in ours.kernels]
    launching = {name: program.launches * LAUNCH for name, program in programs.items()}
    return {
        "shape": shape.name,
        "sizes": shape.sizes,
        "job": job,
        "launches": {name: program.launches for name, program in programs.items()},
        "temporary_bytes": {name: program.temporary for name, program in programs.items()},
        "microseconds": launching | {"kernels": launching["kernels"] + sum(x.microseconds for x in costs)},
        "kernels": [
            {"name": kernel.name, "barriers": kernel.barriers, "loops": [x._asdict() for x in kernel.loops]}
            | x._asdict()
            for kernel, x in zip(ours.kernels, costs, strict=True)
        ],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    heads = ["shape", "T, N, C, S", "job", "launches", "temporary MB", "registers", "instructions", "cycles", "us"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for x in rows:
        pairs = [
            f"{x['launches']['xla']} / {x['launches']['kernels']}",
            f"{x['temporary_bytes']['xla'] / 1e6:.1f} / {x['temporary_bytes']['kernels'] / 1e6:.1f}",
            *(", ".join(f"{k[name]:.0f}" for k in x["kernels"]) for name in ("registers", "instructions", "cycles")),
            f"{x['microseconds']['xla']:.0f} / {x['microseconds']['kernels']:.0f}",
        ]
        lines.append(f"| {x['shape']} | {x['sizes']} | {x['job']} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def whole_table(rows: list[Whole]) -> str:
    """In Markdown."""
    lines = ["| shape | T, N, C, S | launches | temporary MB | bytes, in copies of the scores |", "| --- " * 5 + "|"]
    for x in rows:
        lines.append(f"| {x.shape} | {x.sizes} | {x.launches} | {x.temporary / 1e6:.1f} | {x.copies:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Counts, models, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", action="append", type=Shape.parse, help="T,N,C,S; may be repeated")
    parser.add_argument("--implementations", default="xla,kernels")
    parser.add_argument("--jobs", default="loss,posterior")
    parser.add_argument("--target", type=Path, default=TARGET, help="what XLA must know of the GPU")
    parser.add_argument("--json", action="store_true", help="print only that, and write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        compiler = Compiler(Path(directory), arguments.target)
        shapes = arguments.shape or [*SHAPES, *ACCELERATED]
        rows = [
            row(compiler, arguments.implementations.split(","), shape, job)
            for shape in shapes
            for job in arguments.jobs.split(",")
        ]
        whole = [compiler.whole(shape) for shape in shapes]
    made = {"recursion": rows, "whole": [x._asdict() | {"copies": x.copies} for x in whole]}
    if arguments.json:
        print(json.dumps(made))
        return
    text = f"# The recursion on an H100, modelled\n\n{table(rows)}\n\n{ASSUMED}\n{whole_table(whole)}\n\n{WHOLE}"
    print(text)
    if arguments.shape is None:
        RESULTS.joinpath("gpu_model.json").write_text(json.dumps(made, indent=1) + "\n")
        RESULTS.joinpath("gpu_model.md").write_text(text)


if __name__ == "__main__":
    main()
