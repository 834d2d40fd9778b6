"""Which implementation a program is made of, and what is said where there is none."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

import jaxctc
from jaxctc import variants
from jaxctc._forward_backward import bidirectional
from jaxctc._inputs import default_implementation
from jaxctc._kernels import dispatch

T, N, C, S = 500, 16, 32, 100
PROBLEM = [
    jax.ShapeDtypeStruct(shape, dtype)
    for shape, dtype in (((T, N, C), jnp.float32), ((N, S), jnp.int32), ((N,), jnp.int32), ((N,), jnp.int32))
]
LENGTHS = [jax.ShapeDtypeStruct((3,), jnp.int32)] * 2
MANY = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in PROBLEM]
LOSSES = pytest.mark.parametrize("function", [jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits])


def parts(function, problem, platform):
    """Kernels, and loops that XLA runs, in the program for a platform."""
    text = jax.jit(function).trace(*problem).lower(lowering_platforms=(platform,)).as_text()
    return len(re.findall("@(tpu_custom_call|mosaic_gpu_v2)", text)), text.count("stablehlo.while")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_kernel_runs_where_it_is_asked_for(platform):
    asked = functools.partial(jaxctc.ctc_loss, implementation="pallas")
    of_logits = functools.partial(jaxctc.ctc_loss_with_logits, implementation="pallas")
    assert parts(asked, PROBLEM, platform) == (1, 0)
    assert parts(jax.grad(of_logits), PROBLEM, platform) == (2, 0)
    assert parts(jax.vmap(jax.grad(asked)), MANY, platform) == (2, 0)
    sliced = functools.partial(of_logits, sequences_at_once=8)
    assert parts(jax.grad(sliced), PROBLEM, platform) == (2, 1)


def test_a_kernel_for_gpus_reads_the_scores_where_they_are():
    """In rows and segments as it takes them: nothing is added."""
    asked = functools.partial(jaxctc.ctc_loss, implementation="pallas")
    text = jax.jit(jax.grad(asked)).trace(*PROBLEM).lower(lowering_platforms=("cuda",)).as_text()
    pads = re.findall(r"stablehlo\.pad .* low = \[(.*?)\], high = \[(.*?)\].* -> tensor<(\d+)x2x(\d+)x128xf32>", text)
    assert pads
    for low, high, *sizes in pads:
        assert {*low.split(", "), *high.split(", ")} == {"0"}, sizes


@pytest.mark.parametrize(("platform", "gathers"), [("cpu", 1), ("cuda", 2), ("tpu", 0)])
def test_a_gpu_gathers_again_what_it_would_have_to_keep(platform, gathers):
    """To know each frame's best, and then its scores; a TPU multiplies instead. Over a mesh devices would tell each
    other twice.
    """

    def count(problem):
        text = jax.jit(jaxctc.ctc_loss).trace(*problem).lower(lowering_platforms=(platform,)).as_text()
        return len(re.findall(rf"stablehlo.gather.*-> tensor<{N}x2x\d+x\d+xf32>", text))

    assert count(PROBLEM) == gathers
    on = NamedSharding(mesh_of(AxisType.Auto, m=2), P())
    assert count([jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on) for x in PROBLEM]) == min(gathers, 1)


@pytest.mark.parametrize(("implementation", "products"), [("pallas", 1), ("xla", 0)])
def test_columns_of_one_label_are_added_up_by_tensor_cores_to_the_last_digit(implementation, products):
    """In six products of half precision; the loops run on GPUs without them too."""
    asked = functools.partial(jaxctc.ctc_loss, implementation=implementation)
    text = jax.jit(jax.grad(asked)).trace(*PROBLEM).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall("lhs_precision_type = bf16.*num_primitive_operations = 6", text)) == products


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_loops_run_everywhere_else(platform):
    for function, implementation in ((jaxctc.ctc_loss, None), (jaxctc.ctc_loss_with_logits, "xla")):
        asked = functools.partial(function, implementation=implementation)
        kernels, loops = parts(jax.grad(asked), PROBLEM, platform)
        assert kernels == 0
        assert loops > 1


@pytest.mark.parametrize(("platform", "checked"), [("tpu", True), ("tpu", False), ("cuda", False), ("cuda", True)])
def test_a_kernel_runs_within_shard_map(platform, checked):
    """Checked are JAX's own notes on what varies from device to device, of which Pallas knows nothing on a GPU."""
    asked = functools.partial(jaxctc.ctc_loss, reduction="sum", implementation="pallas")
    scores, others = P(None, "n"), (P("n"),) * 3
    mapped = jax.shard_map(
        jax.grad(asked),
        mesh=mesh_of(AxisType.Auto, n=4),
        in_specs=(scores, *others),
        out_specs=scores,
        check_vma=checked,
    )
    if platform == "cuda" and checked:
        with pytest.raises(ValueError, match=r"call jax.shard_map with check_vma=False"):
            parts(mapped, PROBLEM, platform)
    else:
        assert parts(mapped, PROBLEM, platform) == (2, 0)


@LOSSES
def test_a_proven_kernel_runs_unasked_where_it_can(monkeypatch, function):
    """In shapes of their own, for what is traced is remembered."""
    monkeypatch.setattr(dispatch, "PROVEN", frozenset({"cuda"}))

    def problem(frames, labels, dtype=jnp.float32):
        return [jax.ShapeDtypeStruct((frames, 3, C), dtype), jax.ShapeDtypeStruct((3, labels), jnp.int32), *LENGTHS]

    unasked = functools.partial(function, reduction="sum")

    assert parts(unasked, problem(90, 20), "cuda") == (1, 0)
    assert parts(jax.grad(unasked), problem(91, 20), "cuda") == (2, 0)
    assert parts(unasked, problem(92, 20), "tpu")[0] == 0
    assert parts(unasked, problem(30_000, 1500), "cuda")[0] == 0
    assert parts(functools.partial(unasked, implementation="xla"), problem(93, 20), "cuda")[0] == 0
    with jax.enable_x64(True):
        assert parts(unasked, problem(94, 20, jnp.float64), "cuda")[0] == 0


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_default_is_program_for_program_what_its_name_gives(monkeypatch, platform):
    """Were the kernels of a platform the default, what would run is what has been measured."""

    def text(function, implementation, count):
        shapes = ((80, count, C), jnp.float32), ((count, 20), jnp.int32), ((count,), jnp.int32), ((count,), jnp.int32)
        asked = functools.partial(function, implementation=implementation)
        problem = [jax.ShapeDtypeStruct(*x) for x in shapes]
        return jax.jit(asked).trace(*problem).lower(lowering_platforms=(platform,)).as_text()

    def gradient(*problem, **options):
        return jax.grad(lambda *x: jaxctc.ctc_loss_with_logits(*x, **options))(*problem)

    proven = frozenset({"tpu", "cuda"})
    rows = (jaxctc.ctc_loss, proven), (gradient, proven), (jaxctc.ctc_posteriors, proven), (gradient, frozenset())
    for count, (function, default) in enumerate(rows, start=3):
        monkeypatch.setattr(dispatch, "PROVEN", default)
        jax.clear_caches()
        assert text(function, None, count) == text(function, "pallas" if default else "xla", count)


def test_the_reference_is_a_scan_over_time_differentiated_by_jax():
    asked = functools.partial(jaxctc.ctc_loss, implementation="reference")
    text = jax.jit(asked).trace(*PROBLEM).lower().as_text()
    assert text.count("stablehlo.while") == 1
    text = jax.jit(jax.grad(asked)).trace(*PROBLEM).lower().as_text()
    assert text.count("stablehlo.while") == 2


def test_one_program_for_several_platforms():
    exported = jax.export.export(jax.jit(jax.grad(jaxctc.ctc_loss)), platforms=("cpu", "cuda", "tpu"))(*PROBLEM)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_the_second_derivative_is_that_of_the_recursion():
    asked = functools.partial(jaxctc.ctc_loss, implementation="pallas")

    def curvature(scores, *rest):
        return jax.jvp(lambda x: jax.grad(asked)(x, *rest), (scores,), (scores,))

    kernels, loops = parts(curvature, PROBLEM, "tpu")
    assert kernels == 2
    assert loops > 1


def test_a_kernel_that_takes_less_is_left_to_those_that_take_it():
    """A GPU walks strips of a lattice, and a TPU has all columns in VMEM."""
    shapes = ((6000, 1, C), jnp.float32), ((1, 5500), jnp.int32), ((1,), jnp.int32), ((1,), jnp.int32)
    long = [jax.ShapeDtypeStruct(*x) for x in shapes]
    asked = functools.partial(jaxctc.ctc_loss, implementation="pallas")
    if jax.__version_info__ >= (0, 10, 2):
        assert parts(asked, long, "cuda") == (1, 1)
    else:
        with pytest.raises(ValueError, match=r"those for GPUs need JAX 0\.10\.2 or later, and this is 0\.10"):
            parts(asked, long, "cuda")
    with pytest.raises(ValueError, match=r"lattice of \d+ columns does not fit into VMEM"):
        parts(asked, long, "tpu")


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(jaxctc.variants.prior_ctc_loss, log_priors=np.zeros(C)),
        functools.partial(jaxctc.variants.focal_ctc_loss, gamma=2.0),
        functools.partial(jaxctc.variants.smoothed_ctc_loss, weight=0.1),
    ],
    ids=["prior", "focal", "smoothed"],
)
def test_losses_that_come_of_the_loss_take_its_kernels(function):
    asked = functools.partial(function, implementation="pallas")
    assert parts(asked, PROBLEM, "tpu") == (1, 0)
    assert parts(jax.grad(asked), PROBLEM, "cuda") == (2, 0)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_posteriors_take_what_kernels_leave(platform):
    def asked(*problem):
        return jaxctc.ctc_posteriors(*problem, implementation="pallas")

    assert parts(asked, PROBLEM, platform) == (2, 0)


def test_what_has_no_kernel_is_said():
    scores, target = np.zeros((4, 1, 3), np.float32), ([[1]], [4], [1])
    with pytest.raises(
        ValueError, match=r"kernels for TPUs and NVIDIA GPUs, not for the platform cpu. Leave it to None"
    ):
        jaxctc.ctc_loss(scores, *target, implementation="pallas")
    with pytest.raises(ValueError, match=r"must be one of 'reference', 'xla', 'pallas', or None; got 'cuda'"):
        jaxctc.ctc_loss(scores, *target, implementation="cuda")
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"on tpu, .* float32, .* float64; on cuda, .* float64"):
        jaxctc.ctc_loss(scores.astype(np.float64), *target, implementation="pallas")
    with pytest.raises(ValueError, match=r"these paths are not those of ctc_loss"):
        jaxctc.variants.wildcard_ctc_loss(scores, *target, implementation="pallas")
    for function in (jaxctc.ctc_posteriors, jaxctc.ctc_statistics):
        with pytest.raises(ValueError, match=r"not for the platform cpu"):
            function(scores, *target, implementation="pallas")
        with pytest.raises(ValueError, match=r"must be one of 'reference', 'xla', 'pallas', or None"):
            function(scores, *target, implementation="")
    large = [jax.ShapeDtypeStruct((100_000, 1, 32), jnp.float32), jax.ShapeDtypeStruct((1, 2_000), jnp.int32)]
    asked = functools.partial(jaxctc.ctc_loss, implementation="pallas")
    with pytest.raises(ValueError, match=r"more than 512 MB"):
        jax.eval_shape(asked, *large, *[jax.ShapeDtypeStruct((1,), jnp.int32)] * 2)


def test_registered_kernels_refuse_what_only_loops_can_do():
    """They run one device's frames as if there were no others: that would be a wrong number."""

    class Kernels:
        PRECISION = jax.lax.Precision.HIGHEST
        likelihood = staticmethod(bidirectional.likelihood)
        posterior = staticmethod(bidirectional.posterior)

    dispatch.register("loops-again", Kernels, column_multiple=16, segment_steps=4)
    rng = np.random.default_rng(0)
    scores = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(16, 2, 5)), jnp.float32))
    rest = jnp.array([[1, 2, 2], [3, 1, 4]]), jnp.array([16, 13]), jnp.array([3, 2])
    loss = functools.partial(jaxctc.ctc_loss, implementation="loops-again", reduction="none")

    want = jaxctc.ctc_loss(scores, *rest, implementation="reference", reduction="none")
    np.testing.assert_allclose(loss(scores, *rest), want, rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x, *rest).sum())(scores)
    np.testing.assert_allclose(
        gradient, jax.grad(lambda x: jaxctc.ctc_loss(x, *rest, reduction="sum"))(scores), atol=1e-6
    )
    with (
        jax.set_mesh(mesh_of(AxisType.Auto, time=2)),
        pytest.raises(ValueError, match=r"implementation is 'loops-again', but .* the frames are on several devices"),
    ):
        loss(scores, *rest, frame_axis="time")
    large = [jax.ShapeDtypeStruct((30_000, 3, 5), jnp.float32), jax.ShapeDtypeStruct((3, 1500), jnp.int32), *LENGTHS]
    with pytest.raises(ValueError, match=r"implementation is 'loops-again', but .* more than 512 MB"):
        jax.eval_shape(loss, *large)
    with pytest.raises(ValueError, match=r"implementation is 'loops-again', but .* these paths are not those"):
        variants.star_ctc_loss(scores, *rest, penalty=-1.0, implementation="loops-again")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_chosen_implementation_is_program_for_program_what_its_name_gives(platform):
    def text(shape=(60, 3, C), dtype=jnp.float32, **options):
        problem = [jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((3, 20), jnp.int32), *LENGTHS]
        asked = functools.partial(jaxctc.ctc_loss, **options)
        return jax.jit(jax.grad(asked)).trace(*problem).lower(lowering_platforms=(platform,)).as_text()

    by_name = {name: text(implementation=name) for name in ("reference", "xla", "pallas")}
    assert len(set(by_name.values())) == 3
    for name, want in by_name.items():
        with jaxctc.set_implementation(name):
            assert text() == want
    with jaxctc.set_implementation("pallas"):
        assert text(implementation="xla") == by_name["xla"]
    assert text() == by_name["xla"]
    with jax.enable_x64(True):
        loops = text(dtype=jnp.float64)
        with jaxctc.set_implementation("pallas"):  # a kernel computes in float32
            assert text(dtype=jnp.float64) == loops


def test_a_choice_ends_with_its_block_or_lasts():
    blocks = []
    try:
        jaxctc.set_implementation("reference")
        blocks.append(default_implementation.served_by(None))
        with jaxctc.set_implementation("xla"):
            blocks.append(default_implementation.served_by(None))
        blocks.append(default_implementation.served_by(None))
    finally:
        jaxctc.set_implementation(None)
    assert blocks == [("reference", False), ("xla", False), ("reference", False)]
    assert default_implementation.served_by(None) == (None, False)
    with pytest.raises(ValueError, match=r"implementation must be one of .*, or None; got 'fast'"):
        jaxctc.set_implementation("fast")


def test_the_environment_chooses_too():
    def run(value):
        code = "from jaxctc._inputs.default_implementation import served_by; print(served_by(None))"
        environment = {**os.environ, "JAXCTC_IMPLEMENTATION": value}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    assert run("pallas").stdout == "(None, True)\n"
    assert run("").stdout == "(None, False)\n"
    wrong = run("fast")
    assert wrong.returncode == 1
    assert "The environment variable JAXCTC_IMPLEMENTATION: implementation must be one of" in wrong.stderr
