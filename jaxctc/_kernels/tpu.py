"""The bidirectional forward-backward recursion on TPUs, in two Pallas kernels that loop over the frames inside.

As in `bidirectional`, each sequence is read in two directions, from either end to its middle. The forward pass takes
both directions to the middle, and stores the states before each block of steps (checkpoints). XLA joins the two
directions there. The backward pass takes both back to the ends, from the last block of steps to the first: it
recomputes each block from its checkpoint and stores the posterior in the place of the scores.

Nothing is copied or padded in HBM. A block transposes its scores from (rows, steps) to (steps, rows) when they are in
VMEM, and the posterior back. Where a block reaches beyond the array, Pallas fills rows and steps with anything: those
concern no other row and are not written back, and the columns there are given scores of impossible labels.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxctc._forward_backward.bidirectional import Posterior
from jaxctc._forward_backward.join import Join, join_directions
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._kernels import tpu_layout, tpu_passes
from jaxctc._kernels.step import Occupancy, States
from jaxctc._kernels.tpu_layout import OCCUPANCY_ARRAYS, STATE_ARRAYS, Cut, Operands, block_specs
from jaxctc._sizes import Index

PRECISION = lax.Precision.HIGHEST
"""The precision of products with a matrix of ones and zeros that select values: all bits of a value count."""


def objection(shape: tuple[int, ...], dtype: jnp.dtype, *, every_blank: bool = False) -> str | None:
    """Return why these kernels cannot run for scores of this shape, (N, 2, M, W), and type; None if they can."""
    if dtype != jnp.float32:
        return f"a TPU computes in float32, and the scores are of type {dtype}"
    if 0 in shape:
        return "there is no sequence"
    if shape[3] > (most := tpu_layout.most_columns(every_blank)):
        return f"a lattice of {shape[3]} columns does not fit into VMEM, where there is room for {most}"
    return None


def likelihood(emissions: ScaledEmissions, start: Index = 0, *, interpret: bool = False) -> Scaled:
    """Return what `bidirectional.likelihood` returns."""
    cut = tpu_layout.cut(emissions.stored_scores.shape)
    operands = tpu_layout.operands(emissions, start, cut)
    states, _ = _run_forward(cut, operands, checkpoints=False, interpret=interpret)
    return _joined(states, emissions).likelihood


def posterior(
    emissions: ScaledEmissions, size: int, start: Index = 0, *, every_blank: bool = False, interpret: bool = False
) -> tuple[Scaled, Posterior]:
    """Return what `bidirectional.posterior` returns; a block has about `size` steps (see `tpu_layout.cut`)."""
    cut = tpu_layout.cut(emissions.stored_scores.shape, size, every_blank=every_blank)
    operands = tpu_layout.operands(emissions, start, cut)
    states, (checkpoints,) = _run_forward(cut, operands, checkpoints=True, interpret=interpret)
    join = _joined(states, emissions)
    last = (x.reshape(cut.row_count, -1) for x in (join.blank, join.label))
    occupancy = Occupancy(*(tpu_layout.pad_lanes(x, cut.lanes) for x in last))
    label, blank, *blanks = _run_backward(
        cut, operands, checkpoints, occupancy, every_blank=every_blank, interpret=interpret
    )
    blank = blank[:, :, : cut.steps].swapaxes(0, 1).reshape(cut.row_count, -1)[:, : cut.step_count]
    label, *blanks = (x.reshape(emissions.stored_scores.shape) for x in (label, *blanks))
    return join.likelihood, Posterior(label, blank.reshape(emissions.stored_scores.shape[:3]), *blanks)


def _joined(states: States, emissions: ScaledEmissions) -> Join:
    sequences, _, _, columns = emissions.stored_scores.shape
    blank, label = jax.tree.map(lambda x: x[:, :columns].reshape(sequences, 2, columns), states)
    return join_directions(blank, label, emissions)


def _run_forward(cut: Cut, operands: Operands, *, checkpoints: bool, interpret: bool) -> tuple[States, list[Array]]:
    """Return the last states and, in a list that is empty if they are not wanted, the checkpoints."""
    specs, tile = block_specs(cut), (cut.rows, cut.lanes)
    shape = STATE_ARRAYS, cut.row_count, cut.lanes
    outputs = [(specs.states, shape), (specs.checkpoints, (cut.grid[1], *shape))]
    last, *stored = _run(
        tpu_passes.forward_pass,
        cut,
        operands,
        name="ctc_forward",
        inputs=[specs.scores, specs.steps_in_lanes, specs.steps_in_lanes, specs.skip],
        outputs=outputs if checkpoints else outputs[:1],
        scratch=[(STATE_ARRAYS, *tile), (cut.steps, *tile)],
        in_place={},
        interpret=interpret,
    )
    return tpu_passes.load_states(last), stored


def _run_backward(
    cut: Cut, operands: Operands, checkpoints: Array, join: Occupancy, *, every_blank: bool, interpret: bool
) -> list[Array]:
    """Return the posterior of each label, of all blanks (laid out as `Operands.exponent`) and, if wanted, of each."""
    specs, tile = block_specs(cut, backward=True), (cut.rows, cut.lanes)
    every_state = (specs.scores, operands.scores.shape)
    return _run(
        tpu_passes.backward_pass,
        cut,
        [*operands, checkpoints, jnp.stack(join)],
        name="ctc_backward",
        inputs=[
            specs.scores,
            specs.steps_in_lanes,
            specs.steps_in_lanes,
            specs.skip,
            specs.checkpoints,
            specs.occupancy,
        ],
        outputs=[every_state, (specs.steps_in_lanes, operands.exponent.shape), *[every_state] * every_blank],
        scratch=[
            *[(cut.steps, *tile)] * every_blank,
            (OCCUPANCY_ARRAYS, *tile),
            (cut.steps, *tile),
            (cut.steps, OCCUPANCY_ARRAYS, *tile),
        ],
        # A block is fetched before anything is written there, and is not fetched again.
        in_place={1: 0, 2: 1},
        interpret=interpret,
    )


def _run(
    kernel: Callable[..., None],
    cut: Cut,
    operands: Sequence[Array],
    *,
    name: str,
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[tuple[pl.BlockSpec, tuple[int, ...]]],
    scratch: Sequence[tuple[int, ...]],
    in_place: dict[int, int],
    interpret: bool,
) -> list[Array]:
    """Call the kernel on the grid of the cut. An output's array has the given shape, and the type of the scores.

    `in_place` says which operand's memory an output takes, by their numbers.
    """
    dtype, axes = operands[1].dtype, jax.typeof(operands[1]).manual_axis_type
    # A kernel's constants have 32 bits even where JAX's default is 64.
    with jax.enable_x64(dtype == jnp.float64):
        return pl.pallas_call(
            functools.partial(kernel, cut),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes) for _, shape in outputs],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=cut.grid,
                in_specs=inputs,
                out_specs=[spec for spec, _ in outputs],
                scratch_shapes=[pltpu.VMEM(shape, dtype) for shape in scratch],
            ),
            input_output_aliases=in_place,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=interpret,
            name=name,
        )(*operands)
