"""Test the loops for GPUs: on a CPU against the loops that run there, and by what XLA compiles of them for a GPU."""

import functools
import re

import cudas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import jaxctc
from jaxctc._autodiff import loss_rule
from jaxctc._forward_backward import bidirectional, gpu_loops, occupancy, scaled_emissions, segments
from jaxctc._lattice import frame_map, lattices
from jaxctc._types import Layout, Problem, Request

N, C, S = 4, 5, 6


def problem(frames, dtype):
    """Return sequences of all lengths, the last without a frame, with repeats and with scores of all magnitudes."""
    rng = np.random.default_rng(0)
    scores = np.log(rng.dirichlet(np.full(C, 0.2), size=(frames, N)))
    scores[3::4, :, 0] = -200
    scores[5::7, :, 2] = -np.inf
    targets = rng.integers(1, C, (N, S))
    targets[:, 1] = targets[:, 0]
    lengths = np.array([frames, frames - frames // 4, frames // 2, 0])
    arrays = targets, lengths, np.minimum([S, 3, 0, 0], lengths // 2)
    return Problem(jnp.asarray(scores, dtype), *(jnp.asarray(x, jnp.int32) for x in arrays))


@functools.partial(jax.jit, static_argnums=1)
def by_both(batch, size):
    """Return likelihoods without and with a posterior, and posteriors: by the loops for CPUs, and by those for GPUs."""
    frames = len(batch.scores)
    lattice = lattices.build_lattice(batch, Request())
    steps = frame_map.build_frame_map(lattice, segments.step_count(frames, size))
    emissions = scaled_emissions.build_emissions(batch.scores, lattice, Request(), steps)
    return [
        (alone, *posterior)
        for alone, posterior in (
            (bidirectional.likelihood(emissions, 0), bidirectional.posterior(emissions, size, every_blank=True)),
            (gpu_loops.likelihood(emissions, size), gpu_loops.posterior(emissions, size, every_blank=True)),
        )
    ]


@pytest.mark.parametrize(("frames", "size"), [(13, 4), (150, 2)])
def test_gpus_compute_what_cpus_compute(frames, size):
    """In one turn and in several, and to the last digit but for how a compiler rounds products and sums."""
    with jax.enable_x64(True):
        cpu, gpu = by_both(problem(frames, jnp.float64), size)
    for one, other in zip(jax.tree.leaves(cpu), jax.tree.leaves(gpu), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_a_turn_has_the_steps_that_take_the_fewest_launches():
    for frames in (1, 2, 50, 64, 80, 183, 300, 500, 2000):
        size = gpu_loops.turn_size(frames)
        turns, rest = divmod(segments.step_count(frames, size), size)
        assert rest == 0
        assert size % 2 == 0
        assert turns * size >= -(-frames // 2)
        assert turns * (size // 2 + 2) <= 0.45 * frames + 3


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
@pytest.mark.parametrize("function", [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits])
def test_every_loop_on_a_gpu_ends_after_a_known_number_of_turns(platform, function):
    """No loop depends on a length: as for a batch whose longest input is traced, which is how the bridge calls."""
    shapes = ((90, 3, C), jnp.float32), ((3, 20), jnp.int32), ((3,), jnp.int32), ((3,), jnp.int32)
    from_logits = function is jaxctc.ctc_loss_with_logits

    def run(scores, targets, input_lengths, target_lengths):
        request = Request(from_logits=from_logits)
        return loss_rule.losses_and_gradient(
            request, scores, targets, input_lengths, target_lengths, input_lengths.max()
        )

    traced = jax.jit(run).trace(*(jax.ShapeDtypeStruct(*x) for x in shapes))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.while") == 2
    size = gpu_loops.turn_size(90)
    turns = segments.step_count(90, size) // size
    conditions = re.findall(r"stablehlo\.while.*?cond \{(.*?)\} do", text, re.DOTALL)
    assert len(conditions) == 2
    for condition in conditions:
        assert re.search(rf"constant dense<{turns}> : tensor<i32>\s+%\w+ = stablehlo.compare +LT", condition), condition


def test_batches_that_the_loops_for_gpus_have_no_room_for_are_left_to_the_others():
    layouts = []

    def run(request, _):
        layouts.append(request.layout.runs)
        return jnp.zeros(())

    from jaxctc._kernels import dispatch

    for frames in (20_000, 200_000):
        scores = jax.ShapeDtypeStruct((frames, 1, 32), jnp.float32)
        rest = jax.ShapeDtypeStruct((1, frames // 4), jnp.int32), *[jax.ShapeDtypeStruct((1,), jnp.int32)] * 2
        layouts.clear()
        chosen = jax.jit(lambda *x: dispatch.choose(run, Request(), Problem(*x), results=jnp.zeros(())))
        chosen.trace(scores, *rest).lower(lowering_platforms=("cuda",))
        assert ("gpu_loops" in layouts) == (frames == 20_000)
        assert ("loops" in layouts) == (frames == 200_000)


def test_gpus_and_other_platforms_read_the_same_frames():
    """The two forms of the inverse of the frame map give the same, which is its inverse."""
    batch = problem(13, jnp.float32)
    lattice = lattices.build_lattice(batch, Request())
    frames = frame_map.build_frame_map(lattice, 8)
    direction, step = frame_map.steps_of_frames(lattice, 13, 8)
    mask = np.asarray(lattices.frame_mask(lattice.input_lengths, 13))
    places = frame_map.places_of_frames(lattice, 13, 8)
    np.testing.assert_array_equal(np.asarray(places)[mask], np.asarray(direction * 8 + step).T[mask])
    read = np.asarray(frames.frame).reshape(len(mask.T), -1)
    for n, (place, inside) in enumerate(zip(np.asarray(places).T, mask.T, strict=True)):
        np.testing.assert_array_equal(read[n, place[inside]], np.flatnonzero(inside))
        assert np.asarray(frames.in_length)[n].sum() == inside.sum()


@pytest.mark.parametrize("number", [0.5, 0.0, -1.0, np.nan, np.inf, -np.inf])
def test_the_bins_of_classes_are_the_same_whatever_the_posterior(number):
    """They use a number of it, so that XLA computes them once it is known; it may be one that nobody wrote."""
    batch = problem(13, jnp.float32)
    lattice = lattices.build_lattice(batch, Request())
    scatters = [occupancy.class_scatter(lattice, 200, gpu=gpu) for gpu in (True, False)]
    posterior = jnp.full((*lattice.labels.shape[:1], 2, 4, lattice.labels.shape[1]), number)
    found, wanted = (np.asarray(scatter.bin_of_class(posterior)) for scatter in scatters)
    targets, lengths = np.asarray(batch.targets), np.asarray(batch.target_lengths)
    for row in range(len(targets)):
        labels = targets[row, : lengths[row]]
        np.testing.assert_array_equal(found[row, labels], wanted[row, labels])
        np.testing.assert_array_equal(targets[row, found[row, labels]], labels)


@pytest.fixture(scope="module")
def counting():
    """Return the module that counts what XLA compiles; a wheel is tested without it."""
    return pytest.importorskip("benchmarks.gpu_loops", reason="the benchmarks are in the checkout alone")


@pytest.fixture(scope="module")
def compile_for(counting):
    """Return a function that compiles a job for a GPU of some compute capability."""
    cudas.devices(1)
    compilers = {}

    def run(capability, *problem):
        if capability not in compilers:
            compilers[capability] = counting.Compiler(cudas.TARGET.read_text(), capability)
        return compilers[capability](*problem)

    return run


@pytest.mark.cuda_aot
@pytest.mark.parametrize(
    ("capability", "dtype", "sizes", "job"),
    [
        ("9.0", "float32", "500,16,32,100", "gradient"),
        ("9.0", "float32", "500,16,32,100", "loss"),
        ("8.0", "bfloat16", "300,32,1024,60", "gradient"),
        ("12.0", "float32", "1000,256,128,200", "gradient"),
        ("9.0", "bfloat16", "80,64,6000,20", "gradient"),
        ("9.0", "float32", "50,16,20,30", "gradient"),
        ("9.0", "float32", "64,4,32,16", "gradient"),
    ],
)
def test_a_gpu_has_few_launches_and_never_waits_for_the_host(compile_for, counting, capability, dtype, sizes, job):
    """A command buffer can hold a program of kernels, copies, and loops of known length."""
    shape = counting.Shape.parse(sizes)
    counted, temporary = compile_for(capability, job, shape, dtype)
    assert counted.unknown == 0
    # The fewest turns of a short input are many for its frames.
    assert counted.in_loops <= {"loss": 0.55, "gradient": 1.1 if shape.T > 50 else 1.2}[job] * shape.T
    assert counted.beside <= 40
    # The scores and one table, where these are much beside all else.
    assert temporary <= counting.tables(shape) * (0.6 if shape.T >= 256 else 1)
    assert counted.kinds <= {"fusion", "copy"}


@pytest.mark.cuda_aot
def test_the_program_of_the_bridge_has_no_loop_of_unknown_length_either(counting):
    sharding = SingleDeviceSharding(cudas.devices(1)[0])
    shapes = ((256, 32, 32), jnp.float32), ((32, 62), jnp.int32), ((32,), jnp.int32), ((32,), jnp.int32)

    def run(scores, targets, input_lengths, target_lengths):
        rest = targets, input_lengths, target_lengths, input_lengths.max()
        return loss_rule.losses_and_gradient(Request(), scores, *rest)

    compiled = jax.jit(run).lower(*(jax.ShapeDtypeStruct(*x, sharding=sharding) for x in shapes)).compile()
    counted = counting.count(compiled.as_text())
    assert counted.unknown == 0
    assert counted.in_loops <= 1.1 * 256
    assert counted.kinds <= {"fusion", "copy"}


def test_a_loop_of_unknown_length_is_counted(counting):
    """XLA's text of a program with two loops, of which it knows the length of one."""
    text = """HloModule m

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %f = f32[8]{0} fusion(%p), kind=kLoop, calls=%g
  ROOT %t = (s32[], f32[8]) tuple(%p, %f)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %e = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
  %c = f32[8]{0} copy(%a)
  %w = (s32[], f32[8]) while(%c), condition=%k, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %x = (s32[], f32[8]) while(%c), condition=%k, body=%body
  ROOT %r = f32[8]{0} custom-call(%x), custom_call_target="host"
}
"""
    assert counting.count(text) == (8, 2, 1, frozenset({"fusion", "copy", "custom-call"}))


def test_layouts_for_gpus_are_known_as_such():
    assert [Layout(x).gpu for x in ("loops", "gpu_loops", "cuda", "tpu")] == [False, True, True, False]
