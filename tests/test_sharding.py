"""Sharded over eight devices: the results of one device, and no more said between them than must be."""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import collectives, mesh_of

import jaxctc
from jaxctc import _mesh
from jaxctc._tools.conformance.oracle import log_softmax

T, N, C, S = 12, 16, 256, 4
WIDTH = 8
"""Columns of the lattice: S + 2, in whole vectors."""
every_function = pytest.mark.parametrize(
    # Of the two, that of logits says more between devices: it is there in `make test`.
    "function",
    [pytest.param(jaxctc.ctc_loss, marks=pytest.mark.full), jaxctc.ctc_loss_with_logits],
    ids=lambda function: function.__name__,
)
# One of the two is enough for `make test`; tests/test_frames.py has explicit axes there as well.
every_type = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.full)], ids=lambda t: t.name
)


def drawn():
    """Lengths of every kind; the last target is infeasible."""
    rng = np.random.default_rng(0)
    scores = log_softmax(rng.normal(size=(T, N, C)) * 3).astype(np.float32)
    targets = rng.integers(1, C, (N, S)).astype(np.int32)
    frames, labels = rng.integers(2 * S, T + 1, N), rng.integers(0, S + 1, N)
    frames[-1], labels[-1] = 1, S
    return scores, targets, frames.astype(np.int32), labels.astype(np.int32)


PROBLEM = drawn()


def placed(mesh, sequences=None, classes=None, problem=PROBLEM):
    specs = P(None, sequences, classes), P(sequences), P(sequences), P(sequences)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(problem, specs, strict=True)]


def gradient_of(function, reduction, **options):
    """Not compiled: a test compiles it as it needs it."""
    return jax.value_and_grad(functools.partial(function, reduction=reduction, zero_infinity=True, **options))


@functools.cache
def on_one_device(function, reduction):
    return jax.jit(gradient_of(function, reduction))(*PROBLEM)


def assert_same(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@every_type
@every_function
def test_a_sharded_batch_meets_in_the_reduction_alone(function, axis_type):
    mesh = mesh_of(axis_type, data=8)
    with jax.set_mesh(mesh):
        arguments = placed(mesh, "data")
        compiled = jax.jit(gradient_of(function, "mean")).lower(*arguments).compile()
        got = compiled(*arguments)
        assert collectives(compiled) == [("all-reduce", 4)]
        assert got[1].sharding.is_equivalent_to(arguments[0].sharding, 3)
        each = jax.jit(functools.partial(function, reduction="none")).lower(*arguments).compile()
        assert collectives(each) == []
        assert each(*arguments).sharding.is_equivalent_to(arguments[2].sharding, 1)
    assert_same(got, on_one_device(function, "mean"))


@every_type
@pytest.mark.parametrize("axes", [pytest.param({"model": 8}, marks=pytest.mark.full), {"data": 2, "model": 4}], ids=str)
@every_function
def test_sharded_classes_exchange_emissions_and_normalizers(function, axes, axis_type):
    mesh = mesh_of(axis_type, **axes)
    with jax.set_mesh(mesh):
        arguments = placed(mesh, "data" if "data" in axes else None, "model")
        compiled = jax.jit(gradient_of(function, "mean")).lower(*arguments).compile()
        got = compiled(*arguments)
    assert got[1].sharding.is_equivalent_to(arguments[0].sharding, 3)
    assert_same(got, on_one_device(function, "mean"))
    sequences, number = N // axes.get("data", 1), 4
    emitted = 2 * math.ceil(T / 2) * WIDTH * sequences * number + T * sequences * number  # labels, and the blank
    want = [("all-reduce", emitted)]
    if function is jaxctc.ctc_loss_with_logits:
        # The maximum, and the sum of all classes but the target's best one: which that is the emissions say.
        want += [("all-reduce", T * sequences * number)] * 2
    if "data" in axes:
        want.append(("all-reduce", number))
    assert sorted(collectives(compiled)) == sorted(want)


@every_type
@pytest.mark.parametrize(
    "function",
    [jaxctc.ctc_posteriors, jaxctc.forced_align, pytest.param(jaxctc.ctc_statistics, marks=pytest.mark.full)],
)
def test_posteriors_and_alignment_say_nothing_over_a_sharded_batch(axis_type, function):
    problem = *PROBLEM[:3], np.minimum(PROBLEM[3], PROBLEM[2] // 2)  # all feasible
    arguments = placed(mesh_of(axis_type, data=8), "data", problem=problem)
    compiled = jax.jit(function).lower(*arguments).compile()
    assert collectives(compiled) == []
    for x, y in zip(*map(jax.tree.leaves, (compiled(*arguments), function(*problem))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@every_type
@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lambda *x: jaxctc.ctc_posteriors(*x).classes, id="posteriors"),
        pytest.param(jaxctc.ctc_statistics, id="statistics", marks=pytest.mark.full),
    ],
)
def test_posteriors_have_their_derivatives_over_a_sharded_batch(axis_type, found):
    problem = *PROBLEM[:3], np.minimum(PROBLEM[3], PROBLEM[2] // 2)

    def total(scores, *rest):
        return sum((x**2).sum() for x in jax.tree.leaves(found(scores, *rest)))

    mesh = mesh_of(axis_type, data=8)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(total))(*placed(mesh, "data", problem=problem))
    want = jax.jit(jax.grad(total))(*problem)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@every_function
def test_shard_map(function):
    mesh = mesh_of(AxisType.Auto, data=8)
    specs = P(None, "data"), P("data"), P("data"), P("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=(P(), specs[0]))
    def mapped(*part):
        loss, gradient = gradient_of(function, "sum")(*part)
        return jax.lax.psum(loss, "data"), gradient

    arguments = placed(mesh, "data")
    compiled = jax.jit(mapped).lower(*arguments).compile()
    assert collectives(compiled) == [("all-reduce", 4)]
    assert_same(compiled(*arguments), on_one_device(function, "sum"))


def test_a_function_that_cannot_be_divided_is_called_on_each_device_with_its_own():
    """It says how many sequences it has seen."""

    @_mesh.on_each_device
    def counted(x, y):
        return [x + len(x), y * len(y)]

    mesh = mesh_of(AxisType.Auto, data=4, model=2)
    x, y = np.zeros((N, 3), np.float32), np.ones((N, 2, 5), np.float32)
    on = NamedSharding(mesh, P("data"))
    compiled = jax.jit(counted).lower(*(jax.device_put(z, on) for z in (x, y))).compile()
    assert collectives(compiled) == []
    whole, of_four = counted(x, y), compiled(*(jax.device_put(z, on) for z in (x, y)))
    for got, sequences in ((whole, N), (of_four, N // 4)):
        np.testing.assert_array_equal(got[0], x + sequences)
        np.testing.assert_array_equal(got[1], y * sequences)
    # Where somebody has divided already, there is nothing left to do.
    mapped = jax.shard_map(lambda x, y: counted(x, y)[0], mesh=mesh, in_specs=P("model"), out_specs=P("model"))
    np.testing.assert_array_equal(jax.jit(mapped)(x, y), x + N // 2)


def test_pmap():
    devices, sequences = 8, N // 8
    scores, *rest = PROBLEM
    parts = [scores.reshape(T, devices, sequences, C).swapaxes(0, 1)]
    parts += [x.reshape(devices, sequences, *x.shape[1:]) for x in rest]

    def part(*arguments):
        loss, gradient = gradient_of(jaxctc.ctc_loss, "sum")(*arguments)
        return jax.lax.psum(loss, "devices"), gradient

    loss, gradient = jax.pmap(part, axis_name="devices")(*parts)
    assert_same((loss[0], gradient.swapaxes(0, 1).reshape(T, N, C)), on_one_device(jaxctc.ctc_loss, "sum"))


def test_the_page_s_examples():
    """The first on a mesh that nobody has set."""
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        exec(example, {})


@every_function
@pytest.mark.parametrize("classes", [8, C])
def test_nothing_is_said_where_the_compiler_alone_knows_the_mesh(function, classes):
    """A step that is jitted with shardings of its arguments: no array's type tells how it is divided."""
    mesh = mesh_of(AxisType.Auto, data=8)
    specs = P(None, "data"), P("data"), P("data"), P("data")
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (PROBLEM[0][:, :, :classes], *PROBLEM[1:])]
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    gradient = jax.jit(jax.grad(functools.partial(function, reduction="sum")), in_shardings=shardings)
    assert collectives(gradient.lower(*shapes).compile()) == []


@pytest.mark.parametrize("classes", [8, 256])
def test_a_program_that_was_exported_for_one_device_serves_a_sharded_batch(classes):
    mesh = mesh_of(AxisType.Auto, data=8)
    problem = PROBLEM[0][:, :, :classes], *PROBLEM[1:]
    gradient = jax.jit(jax.grad(functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum")))
    want = gradient(*problem)
    exported = export.export(gradient)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in problem))
    assert exported.nr_devices == 1
    specs = P(None, "data"), P("data"), P("data"), P("data")
    sharded = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(problem, specs, strict=True)]
    compiled = jax.jit(exported.call).lower(*sharded).compile()
    assert collectives(compiled) == []
    np.testing.assert_allclose(compiled(*sharded), want, rtol=1e-6, atol=1e-7)


@every_type
def test_second_derivatives_and_the_batch_first(axis_type):
    mesh = mesh_of(axis_type, data=4, model=2)
    scores, *rest = PROBLEM
    rest = [jnp.asarray(x) for x in rest]
    scores = scores.swapaxes(0, 1)
    tangent = np.random.default_rng(1).normal(size=scores.shape).astype(np.float32)

    @jax.jit
    def along(scores, tangent, *rest):
        gradient = gradient_of(jaxctc.ctc_loss_with_logits, "mean", batch_first=True)
        return jax.jvp(lambda x: gradient(x, *rest)[1], (scores,), (tangent,))

    want = along(jnp.asarray(scores), jnp.asarray(tangent), *rest)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("data", None, "model"))
        spread = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in rest]
        got = along(jax.device_put(scores, sharding), jax.device_put(tangent, sharding), *spread)
    assert_same(got, want)


def test_second_derivatives_of_a_scan_within_shard_map():
    """Where axes are manual, programs are traced at once, and JAX splits the scan all the same."""
    mesh = mesh_of(AxisType.Auto, data=8)
    specs = P(None, "data"), P("data"), P("data"), P("data")
    tangent = jnp.asarray(np.random.default_rng(1).normal(size=PROBLEM[0].shape), jnp.float32)

    def twice(scores, *rest):
        def turn(_, weight):
            losses = jaxctc.ctc_loss_with_logits(weight * scores, *rest, reduction="none", zero_infinity=True)
            return None, losses

        return jax.lax.scan(turn, None, jnp.array([0.5, 2.0]))[1]

    def along(function):
        gradient = jax.grad(lambda scores, *rest: function(scores, *rest).sum())
        return jax.jit(lambda scores, *rest: jax.jvp(lambda x: gradient(x, *rest), (scores,), (tangent,))[1])

    mapped = jax.shard_map(twice, mesh=mesh, in_specs=specs, out_specs=P(None, "data"))
    assert_same((along(mapped)(*placed(mesh, "data")),), (along(twice)(*PROBLEM),))
