"""The bidirectional forward-backward recursion on NVIDIA GPUs, in two Pallas kernels that loop over the frames inside.

As in `bidirectional`, each sequence is read in two directions, from either end to its middle. The forward pass takes
both directions to the middle, and stores the states before each segment of steps (checkpoints). XLA joins the two
directions there. The backward pass takes both back to the ends: it recomputes each segment from its checkpoint, from
the last to the first, and stores the posterior in the place of the scores. No thread adds to what another has written:
results are the same from run to run.

Rows of one, two, four, ... tiles are each compiled on their own, and a block of threads takes the narrowest that holds
its target: columns beyond are not computed. A lattice of more columns than a block has room for is cut into strips. The
forward pass runs over them from the first to the last, each with what the last column of the one before has passed on
at every step; the backward pass runs over them the other way.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxctc._forward_backward import bidirectional, scaled
from jaxctc._forward_backward.bidirectional import Posterior
from jaxctc._forward_backward.join import Join, join_directions
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._kernels import gpu_passes, warpgroup
from jaxctc._kernels.gpu_direction import Direction
from jaxctc._kernels.gpu_layout import Cut, KernelInputs, MemoryOf, kernel_inputs
from jaxctc._kernels.warpgroup import Ref, Warpgroup
from jaxctc._mesh import on_each_device
from jaxctc._sizes import Index

PRECISION = lax.DotAlgorithmPreset.BF16_BF16_F32_X6
"""The precision of products with a matrix of ones and zeros that select values: three numbers of 8 bits hold all 24 of
a float, and tensor cores multiply them.
"""

_OLDEST_JAX = (0, 10, 2)
"""Earlier ones cannot lower a shift in a kernel of a warpgroup."""
_GENERATIONS = ("9", "10")
"""Major compute capabilities: Hopper and Blackwell, without Blackwell for desktops, which is 12."""


def objection(dtype: jnp.dtype, *, varies: bool = False) -> str | None:
    """Return why these kernels cannot run for scores of this type, or None if they can.

    `varies` says whether the scores vary over a mesh axis of a `jax.shard_map` that checks this.
    """
    if varies:
        return "Pallas knows no values that vary from device to device: call jax.shard_map with check_vma=False"
    if dtype != jnp.float32:
        return f"they compute in float32, and the scores are {dtype}"
    if jax.__version_info__ < _OLDEST_JAX:
        oldest = ".".join(map(str, _OLDEST_JAX))
        return f"those for GPUs need JAX {oldest} or later, and this is {jax.__version__}"
    for version in _capabilities():
        if version.split(".")[0] not in _GENERATIONS:
            return f"they are for GPUs of compute capability 9 and 10, and that of this one is {version}"
    return None


def _capabilities() -> set[str]:
    """Return those of this process's GPUs. It may have none, and compile for one elsewhere."""
    try:
        return {device.compute_capability for device in jax.local_devices(backend="cuda")}
    except RuntimeError:
        return set()


def likelihood(emissions: ScaledEmissions, start: Index = 0, *, interpret: Any = None) -> Scaled:
    """Return what `bidirectional.likelihood` returns.

    The scores are copied unless their steps are a multiple of a segment's and their columns one of a tile's.
    """
    if emissions.stored_scores.size == 0:
        return bidirectional.likelihood(emissions, start)
    cut = Cut.of(emissions, gpu_passes.forward_memory)
    last, _ = _run_forward(_LIKELIHOOD, cut, kernel_inputs(cut, emissions, start), 1, interpret)
    return _joined(cut.from_strips(last[:, :, :, -1]), emissions).likelihood


def posterior(
    emissions: ScaledEmissions, size: int, start: Index = 0, *, every_blank: bool = False, interpret: Any = None
) -> tuple[Scaled, Posterior]:
    """Return what `bidirectional.posterior` returns; a segment has `size` steps or fewer (see `Cut.of`).

    The scores are copied as in `likelihood`.
    """
    if emissions.stored_scores.size == 0:
        return bidirectional.posterior(emissions, size, start, every_blank=every_blank)
    cut = Cut.of(emissions, gpu_passes.backward_memory, size)
    inputs = kernel_inputs(cut, emissions, start)
    checkpoints, inputs = _run_forward(_FORWARD, cut, inputs, cut.segments + 1, interpret)
    join = _joined(cut.from_strips(checkpoints[:, :, :, -1]), emissions)
    occupancy = cut.to_strips(jnp.stack([join.blank, join.label], axis=2))
    label, total, *blanks = _run_backward(
        cut, inputs, checkpoints, occupancy, every_blank=every_blank, interpret=interpret
    )

    label, *blanks = (cut.from_strips(x)[:, :, cut.added_steps :] for x in (label, *blanks))
    total = total.sum(axis=0).reshape(*total.shape[1:3], -1)[:, :, cut.added_steps :]
    return join.likelihood, Posterior(label, total, *blanks)


def _joined(last: Float[Array, "N 2 2 2 W"], emissions: ScaledEmissions) -> Join:
    """Join the last states of the two directions; those in columns beyond a target were not written."""
    written = lax.broadcasted_iota(jnp.int32, (1, 1, last.shape[-1]), 2) <= emissions.target_lengths[:, None, None]
    blank, label = (Scaled(last[:, :, k, 0], last[:, :, k, 1]) for k in range(2))
    zero = scaled.zeros(blank.mantissa.shape, last.dtype)
    return join_directions(scaled.where(written, blank, zero), scaled.where(written, label, zero), emissions)


class _Kernel(NamedTuple):
    """A kernel: a body that runs for each direction of each sequence, in rows just wide enough for its target."""

    name: str
    body: Callable[..., None]
    memory: MemoryOf
    warpgroups: int | None = None
    """The number of warpgroups in a block of threads, if more than one."""

    def __call__(self, cut: Cut, out: list[jax.ShapeDtypeStruct], interpret: Any) -> Callable[..., list[Array]]:
        sequences, directions, *_ = out[0].shape
        mesh = plgpu.Mesh(
            grid=(directions, sequences),  # CUDA limits all axes but the last to 65,535
            grid_names=("direction", "sequence"),
            num_threads=self.warpgroups,
            thread_name="warpgroup" if self.warpgroups else None,
        )

        def block(scores: Ref, skip: Ref, span: Ref, per_step: Ref, *rest: Ref) -> None:
            n, d = lax.axis_index("sequence"), lax.axis_index("direction")
            labels, first_column, first_live = (span[n, d, k] for k in range(3))

            def run(tiles: int) -> None:
                threads = Warpgroup(tiles, interpret)
                skips = threads.load(skip.at[n, d]) != 0
                direction = Direction(cut, threads, scores.at[n, d], skips, first_column, first_live, per_step.at[n, d])
                body = functools.partial(self.body, direction, *(x.at[n, d] for x in rest))
                memory = self.memory(tiles, cut.segment_size, cut.has_edges)
                pl.run_scoped(body, collective_axes=mesh.thread_name or (), **memory)

            too_narrow = ((labels >= width * warpgroup.THREADS).astype(jnp.int32) for width in cut.widths[:-1])
            lax.switch(sum(too_narrow), [functools.partial(run, width) for width in cut.widths])

        return pl.kernel(
            block,
            out,
            mesh=mesh,
            compiler_params=warpgroup.COMPILER,
            interpret=interpret or False,
            name=self.name,
        )


_FORWARD = _Kernel(
    "ctc_forward", functools.partial(gpu_passes.forward_pass, checkpoints=True), gpu_passes.forward_memory
)
_LIKELIHOOD = _Kernel(
    "ctc_likelihood", functools.partial(gpu_passes.forward_pass, checkpoints=False), gpu_passes.forward_memory
)
_BACKWARD = _Kernel("ctc_backward", gpu_passes.backward_pass, gpu_passes.backward_memory, 2)


def _run_forward(
    kernel: _Kernel, cut: Cut, inputs: KernelInputs, count: int, interpret: Any
) -> tuple[Array, KernelInputs]:
    """Return so many states, (B, N, 2, count, 2, 2, K, 128), and the inputs with what arrives at each strip."""

    @functools.partial(_flat_under_vmap, interpret=interpret)
    def call(*inputs: Array) -> list[Array]:
        out = functools.partial(_out_type, inputs[0])
        outputs = [out(count, 2, 2, cut.tiles, warpgroup.THREADS), out(cut.segments, 2, 1, warpgroup.THREADS)]
        return kernel(cut, outputs if cut.has_edges else outputs[:1], interpret)(*inputs)

    def strip(arriving: Array | None, inputs: KernelInputs) -> tuple[Array | None, tuple[Array, KernelInputs]]:
        if arriving is not None:
            inputs = inputs._replace(per_step=inputs.per_step.at[:, :, :, 2:, : cut.segment_size].set(arriving))
        states, *passed_on = call(*inputs)
        return passed_on[0][:, :, :, :, 0, : cut.segment_size] if passed_on else None, (states, inputs)

    if not cut.has_edges:
        return cut.scan_strips(strip, None, inputs)
    zero = scaled.zeros(inputs.per_step[0, :, :, :, 0, : cut.segment_size].shape, inputs.per_step.dtype)
    return cut.scan_strips(strip, jnp.stack(zero, axis=3), inputs)


def _run_backward(
    cut: Cut, inputs: KernelInputs, checkpoints: Array, join: Array, *, every_blank: bool, interpret: Any
) -> list[Array]:
    """Return, for all strips, the posterior of each label, of all blanks together and, if wanted, of each blank.

    In steps before a direction's first live segment it is whatever was in memory.
    """

    @functools.partial(_flat_under_vmap, interpret=interpret)
    def call(scores: Array, *rest: Array) -> list[Array]:
        out = functools.partial(_out_type, scores)
        every_state = out(*scores.shape[2:])
        others = [
            out(cut.segments, cut.segment_size),
            *[every_state] * every_blank,
            *[out(cut.segments, 1, warpgroup.THREADS)] * cut.has_edges,
        ]
        if interpret:
            return _BACKWARD(cut, [every_state, *others], interpret)(scores, *rest)

        def run(refs: list[Ref]) -> None:
            label, *other_refs = refs
            for ref, value in zip(other_refs, _BACKWARD(cut, others, interpret)(label, *rest), strict=True):
                ref[...] = value

        return pl.run_state(run)([scores, *(jnp.zeros(x.shape, x.dtype) for x in others)])

    def strip(arriving: Array | None, operands: tuple[KernelInputs, Array, Array]) -> tuple[Array | None, list[Array]]:
        inputs, checkpoints, join = operands
        if arriving is None:
            return None, call(*inputs, checkpoints, join)
        *outputs, passed_on = (
            # Nothing was written for strips beyond the target.
            jnp.where((inputs.span[:, 0, 0] < 0).reshape(-1, *[1] * (x.ndim - 1)), 0, x)
            for x in call(*inputs, checkpoints, join, arriving)
        )
        return passed_on, outputs

    sequences = checkpoints.shape[1]
    zero = jnp.zeros((sequences, 2, cut.segments, 1, warpgroup.THREADS), jnp.float32) if cut.has_edges else None
    return cut.scan_strips(strip, zero, (inputs, checkpoints, join), reverse=True)


def _out_type(scores: Float[Array, "N 2 M K 128"], *shape: int) -> jax.ShapeDtypeStruct:
    """Return the type of an output that has this shape for each direction of each sequence."""
    return jax.ShapeDtypeStruct((*scores.shape[:2], *shape), jnp.float32)


def _flat_under_vmap(function: Callable[..., Any], interpret: Any) -> Callable[..., Any]:
    """Let `vmap` call a function of N sequences once, with the sequences of all members of the mapped batch.

    Where the sequences are sharded, each device calls it with its own.
    """
    # What an interpreter does has effects, which a function that `on_each_device` divides may not have.
    flat = jax.custom_batching.custom_vmap(function if interpret else on_each_device(function))

    @flat.def_vmap
    def _(members: int, mapped: list[bool], *arguments: Array) -> tuple[Any, Any]:
        pairs = zip(arguments, mapped, strict=True)
        each = (x if own else jnp.broadcast_to(x, (members, *x.shape)) for x, own in pairs)
        # The members of a sequence follow one another, so that each sequence stays on its device.
        results = flat(*(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in each))
        results = jax.tree.map(lambda x: x.reshape(-1, members, *x.shape[1:]).swapaxes(0, 1), results)
        return results, jax.tree.map(lambda _: True, results)

    return flat
