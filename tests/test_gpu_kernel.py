"""Test the kernels for GPUs: interpreted on a CPU, against the loops of XLA; and compiled ahead of time for a GPU."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cudas
import jax
import jax.numpy as jnp
import numpy as np
import ptx
import pytest
from jax.sharding import AxisType, Mesh, SingleDeviceSharding
from meshes import collectives, shapes_of_problems
from oracles import torch_float64

from jaxctc._tools.conformance.oracle import log_softmax

pytest.importorskip("absl", reason="Pallas's Mosaic GPU needs absl-py")

from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

import jaxctc
from jaxctc._forward_backward import bidirectional, occupancy, scaled_emissions, segments, sums
from jaxctc._kernels import gpu, gpu_direction, gpu_layout, gpu_passes, warpgroup
from jaxctc._lattice import frame_map, lattices
from jaxctc._lattice.to_frames import ToFrames
from jaxctc._types import Problem, Request

INTERPRETED = InterpretGPUParams()
WATCHED = InterpretGPUParams(detect_races=True)
C = 5


def problem(frames, input_lengths, target_lengths, seed=0):
    """Return a batch with a masked label in one frame and a very unlikely blank in another."""
    rng = np.random.default_rng(seed)
    sequences, longest = len(input_lengths), max(target_lengths)
    scores = log_softmax(rng.standard_normal((frames, sequences, C)) * 3)
    scores[frames // 2, :, 0] = -200
    scores[frames // 3, :, 3] = -np.inf
    targets = rng.integers(1, C, (sequences, longest))
    targets[:, 1:2] = targets[:, :1]
    arrays = targets, np.array(input_lengths), np.array(target_lengths)
    return Problem(jnp.asarray(scores, jnp.float32), *(jnp.asarray(x, jnp.int32) for x in arrays))


@jax.jit
def emissions_of(batch):
    steps = segments.step_count(len(batch.scores))
    lattice = lattices.build_lattice(batch, Request())
    plan = frame_map.build_frame_map(lattice, steps)
    return scaled_emissions.build_emissions(batch.scores, lattice, Request(), plan)


def log_likelihood(emissions, value):
    return sums.log_likelihood(value, sums.in_parts(scaled_emissions.peaks(emissions)))


def likelihood(module, **options):
    """Return a function of scaled emissions that returns the log likelihoods by this module."""
    return jax.jit(lambda emissions, start=0: log_likelihood(emissions, module.likelihood(emissions, start, **options)))


def posterior(module, size, **options):
    def run(emissions):
        value, found = module.posterior(emissions, size, every_blank=True, **options)
        return log_likelihood(emissions, value), found

    return jax.jit(run)


by_xla = likelihood(bidirectional)
interpreted = likelihood(gpu, interpret=INTERPRETED)

# Full, short, without a frame, with too few frames for the target, and with an empty target.
MIXED = problem(37, [37, 18, 0, 1, 37], [6, 5, 0, 4, 0])


@pytest.mark.parametrize("batch", [MIXED, problem(301, [301], [12])], ids=["short", "long"])
def test_likelihoods_are_those_of_xla(batch):
    """In many frames the states grow beyond what a mantissa holds."""
    emissions = emissions_of(batch)
    np.testing.assert_allclose(interpreted(emissions), by_xla(emissions), rtol=1e-6)


def test_steps_before_the_start_are_not_read():
    batch = MIXED._replace(input_lengths=MIXED.input_lengths // 3)
    emissions = emissions_of(batch)
    scores = emissions.scores.at[:, :, :12].set(np.nan)
    np.testing.assert_array_equal(interpreted(emissions._replace(scores=scores), 12), interpreted(emissions, 0))


def test_a_mapped_batch_is_one_batch():
    """Some of the arguments are not mapped over."""
    emissions = emissions_of(MIXED)
    two = jnp.stack([emissions.scores, emissions.scores[..., ::-1]])
    mapped = jax.vmap(lambda scores: interpreted(emissions._replace(scores=scores)))(two)
    np.testing.assert_allclose(mapped, [by_xla(emissions._replace(scores=x)) for x in two], rtol=1e-6)


@pytest.fixture
def small_tiles(monkeypatch, request):
    """Tiles have 8 columns, or as many as a test wants; when interpreted, a column has no thread of its own."""
    monkeypatch.setattr(warpgroup, "THREADS", getattr(request, "param", 8))


def posteriors(emissions, size, width, monkeypatch):
    """Return the kernels' log likelihoods and posteriors, after comparing them with those of XLA's loops.

    No warpgroup has written what another has still to read. (The interpreter does not let two of them choose a width.)
    """
    monkeypatch.setattr(gpu_layout.Cut, "widths", [width])
    value, found = jax.block_until_ready(posterior(gpu, size, interpret=WATCHED)(emissions))
    assert not get_races().races_found
    expected_value, expected = posterior(bidirectional, emissions.scores.shape[2])(emissions)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    live = np.arange(emissions.scores.shape[2]) >= np.asarray(emissions.first)[:, :, None]
    for ours, theirs in zip(found, expected, strict=True):
        where = live.reshape(*live.shape, *[1] * (ours.ndim - 3))
        np.testing.assert_allclose(np.where(where, ours, 0), np.where(where, theirs, 0), atol=5e-7)
    return value, found


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("tiles", [2, 1], ids=["a strip of two tiles", "two strips"])
def test_posteriors_are_those_of_xla_and_of_an_oracle(monkeypatch, tiles):
    """There are more segments than fit into shared memory at once, and the short sequence skips some."""
    monkeypatch.setattr(gpu_layout, "MOST_TILES", tiles)
    batch = problem(27, [27, 11], [11, 3])
    value, found = posteriors(emissions_of(batch), 4, tiles, monkeypatch)

    pytest.importorskip("torch")
    losses, wanted = torch_float64(*(np.asarray(x) for x in batch))
    np.testing.assert_allclose(-value, losses, rtol=1e-6)
    lattice = lattices.build_lattice(batch, Request())
    scatter = occupancy.class_scatter(lattice, C)
    found = found._replace(label=scatter.to_classes(found.label))
    classes = occupancy.class_posterior(found, scatter, ToFrames.of(lattice, 27, found.label.shape[2]), Request())
    live = np.arange(27)[:, None] < np.asarray(batch.input_lengths)
    # Where a score is -inf PyTorch's gradient is NaN.
    np.testing.assert_allclose(np.where(live[:, :, None], classes, 0), np.nan_to_num(wanted), atol=2e-6)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("small_tiles", [16], indirect=True)
def test_a_target_of_any_length_is_cut_into_strips(monkeypatch):
    """Of two tiles each. Targets end within the first strip, at its end, and within the second and the third."""
    monkeypatch.setattr(gpu_layout, "MOST_TILES", 2)
    emissions = emissions_of(problem(80, [80, 80, 70, 80], [3, 31, 40, 66]))
    cut = gpu_layout.Cut.of(emissions, gpu_passes.forward_memory)
    assert cut[2:4] == (3, 2)
    labels, _, first = np.moveaxis(gpu_layout.kernel_inputs(cut, emissions, 0).span, -1, 0)
    assert ((labels < 0) == (first == cut.segments * cut.segment_size)).all()  # no step is taken beyond the target
    assert (labels < 0).sum(axis=(1, 2)).tolist() == [0, 4, 6]
    strips = likelihood(gpu, interpret=INTERPRETED)(emissions)
    np.testing.assert_allclose(strips, by_xla(emissions), rtol=1e-6)


def test_the_widest_strip_has_room():
    for memory in (gpu_passes.forward_memory, gpu_passes.backward_memory):
        assert (
            gpu_layout.bytes_of(memory(gpu_layout.MOST_TILES, gpu_layout.LEAST_SEGMENT, True))
            <= gpu_layout.SHARED_BYTES
        )


@pytest.mark.usefixtures("small_tiles")
def test_tiles_beyond_the_target_are_left_out(monkeypatch):
    batch = problem(16, [7, 16], [3, 9])
    emissions = emissions_of(batch)
    cut = gpu_layout.Cut.of(emissions, gpu_passes.forward_memory)
    (last,), _ = gpu._run_forward(gpu._LIKELIHOOD, cut, gpu_layout.kernel_inputs(cut, emissions, 0), 1, INTERPRETED)
    # What is not written has no value.
    np.testing.assert_array_equal(np.isnan(last).any(axis=(1, 2, 3, 4, 6)), [[False, True], [False, False]])

    one = batch._replace(scores=batch.scores[:, :1], **{k: getattr(batch, k)[:1] for k in batch._fields[1:]})
    posteriors(emissions_of(one), 4, 1, monkeypatch)


def test_ratios_are_rounded_nearly_once():
    """The ratio of equal numbers is exactly one."""
    rng = np.random.default_rng(0)
    whole = np.float32(2.0 ** rng.uniform(0, 42, 100_000))
    part = np.float32(whole * rng.uniform(0, 1, 100_000))
    ratio = np.asarray(jax.jit(gpu_direction._ratio)(part, whole))
    np.testing.assert_allclose(ratio, part / np.float64(whole), rtol=2e-7)
    assert ratio.max() <= 1
    assert (gpu_direction._ratio(whole, whole) == 1).all()
    assert (gpu_direction._ratio(0 * whole, whole) == 0).all()


class _Device:
    def __init__(self, capability):
        self.compute_capability = capability


def test_says_why_it_does_not_apply(monkeypatch):
    def have(*capabilities):
        monkeypatch.setattr(jax, "local_devices", lambda *, backend: {"cuda": [*map(_Device, capabilities)]}[backend])

    have("9.0", "10.3")
    assert gpu.objection(jnp.dtype(jnp.float32)) is None
    assert "float64" in gpu.objection(jnp.dtype(jnp.float64))
    for capability in ("8.0", "12.0"):
        have("9.0", capability)
        assert capability in gpu.objection(jnp.dtype(jnp.float32))


def test_applies_where_there_is_no_gpu():
    assert gpu.objection(jnp.dtype(jnp.float32)) is None


def test_lowers_for_cuda_where_there_is_none():
    """In both widths, and without a loop of XLA; two strips need one over the strips in each pass."""

    def posterior(emissions):
        return gpu.posterior(emissions, 16)

    for labels, function, kernels, loops in (
        (130, gpu.likelihood, 1, 0),
        (130, posterior, 2, 0),
        (1500, posterior, 2, 2),
    ):
        emissions = jax.eval_shape(emissions_of, problem(labels + 10, [labels + 10] * 2, [labels, 3]))
        text = jax.jit(function).trace(emissions).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == kernels
        assert text.count("stablehlo.while") == loops


@pytest.mark.cuda_aot
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_a_batch_on_several_gpus_stays_where_it_is(axis_type):
    """Also if the mesh has an axis that the batch is not sharded over."""
    mesh = Mesh(np.array(cudas.devices(4)).reshape(2, 2), ("n", "m"), axis_types=(axis_type,) * 2)
    problem, mapped = shapes_of_problems(mesh)
    asked = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum", implementation="pallas")
    for function, arguments in ((jax.grad(asked), problem), (jax.vmap(jax.grad(asked)), mapped)):
        compiled = jax.jit(function).lower(*arguments).compile()
        assert len(re.findall('custom_call_target="mosaic_gpu', compiled.as_text())) == 2
        assert collectives(compiled) == []


@pytest.mark.cuda_aot
@pytest.mark.parametrize("labels", [300, 1450], ids=["one strip", "two strips"])
def test_no_barrier_is_missing(monkeypatch, tmp_path, labels):
    """In the PTX, in every width, for every thread, over some segments; the first has steps that are not live."""
    sharding = SingleDeviceSharding(cudas.devices(1)[0])
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    emissions = jax.eval_shape(emissions_of, problem(labels + 10, [labels + 10] * 2, [labels, 3]))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), emissions)
    jax.jit(lambda emissions: gpu.posterior(emissions, 16)).lower(placed).compile()
    cut = gpu_layout.Cut.of(emissions, gpu_passes.backward_memory)
    words = {8: cut.segments * cut.segment_size - 3 * cut.segment_size - 2}  # the third number of a span
    listings = {path.stem: path.read_text() for path in tmp_path.glob("*.ptx")}
    assert len(listings) == 2
    for name, text in listings.items():
        for part in range(2 if "ctc_forward" not in name else 1):
            for branch in range(len(cut.widths)):
                run = ptx.run(text, warpgroup=part, branch=branch, words=words)
                assert not run.races, (name, part, branch)
                assert run.barriers > 3 * cut.segment_size
                assert run.accesses > 10 * cut.segment_size
    assert ptx.run(re.sub(r"bar\.sync.*", "", text), warpgroup=part, branch=branch, words=words).races


@pytest.fixture(scope="module")
def compiled():
    """What `benchmarks.gpu_model` counts for a short input and for one ten times as long."""
    cudas.need()
    command = [sys.executable, "-m", "benchmarks.gpu_model", "--json", "--target", str(cudas.TARGET)]
    command += ["--implementations", "kernels", "--jobs", "posterior"]
    command += ["--shape", "32,2,8,9", "--shape", "320,2,8,9"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)["recursion"]


@pytest.mark.cuda_aot
def test_launches_do_not_depend_on_the_frames(compiled):
    short, long = (row["launches"]["kernels"] for row in compiled)
    assert short == long < 20


@pytest.mark.cuda_aot
def test_a_frame_has_one_barrier_and_no_register_is_spilled(compiled):
    """A segment has 16 frames; one more barrier comes before their blanks are summed."""
    for row in compiled:
        forward, backward = row["kernels"]
        assert [loop["barriers"] for loop in forward["loops"]] == [16]
        assert [loop["barriers"] for loop in backward["loops"]] == [16, 17]
        assert forward["spilled"] == backward["spilled"] == 0
