"""Frames over several devices: the results of one device, and nothing passed on but states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import collectives, mesh_of

import jaxctc
from jaxctc._forward_backward import scaled_emissions
from jaxctc._tools.conformance.oracle import log_softmax

T, N, C, S = 64, 4, 5, 6
STATES = 2 * (8 + 8) * 8
"""Bytes of a sequence's states in one direction: two rows of the columns and a margin, mantissa and exponent."""
every_function = pytest.mark.parametrize(
    # The others of these tests take the one that `make test` leaves out.
    "function",
    [pytest.param(jaxctc.ctc_loss, marks=pytest.mark.full), jaxctc.ctc_loss_with_logits],
    ids=lambda function: function.__name__,
)


def drawn(frames=T):
    """One sequence ends within the first device's frames, one is infeasible; some frames all but forbid the blank."""
    rng = np.random.default_rng(0)
    scores = log_softmax(rng.normal(size=(frames, N, C)) * 2).astype(np.float32)
    scores[[t for t in (7, 8, 31, 32, 40) if t < frames], 0, 0] = -300
    targets = rng.integers(1, C, (N, S)).astype(np.int32)
    lengths = np.array([frames, 50, 3, S - 1], np.int32)
    return scores, targets, lengths, np.array([S, 5, 0, S], np.int32)


def placed(mesh, problem, batch=None, batch_first=False):
    scores, *rest = problem
    spec = P(batch, "time") if batch_first else P("time", batch)
    scores = scores.swapaxes(0, 1) if batch_first else scores
    specs = spec, *[P(batch)] * 3
    return [jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip((scores, *rest), specs, strict=True)]


@functools.cache
def each_and_gradient(function, **options):
    """Every sequence's loss, and the gradient of the sum of the finite ones."""

    def total(*arguments):
        each = functools.partial(function, reduction="none", **options)(*arguments)
        return jnp.where(jnp.isfinite(each), each, 0).sum(), each

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def assert_same(got, want):
    ((_, each), gradient), ((_, wanted), wanted_gradient) = got, want
    np.testing.assert_allclose(each, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=2e-6)


@every_function
def test_the_same_as_on_one_device(function):
    problem, mesh = drawn(), mesh_of(AxisType.Auto, time=8)
    with jax.set_mesh(mesh):
        arguments = placed(mesh, problem)
        compiled = each_and_gradient(function, frame_axis="time").lower(*arguments).compile()
        got = compiled(*arguments)
    assert_same(got, each_and_gradient(function)(*problem))
    assert got[1].sharding.is_equivalent_to(arguments[0].sharding, 3)
    said = collectives(compiled)
    assert {kind for kind, _ in said} == {"collective-permute", "all-reduce"}
    assert sorted(size for kind, size in said if kind == "collective-permute") == [N * STATES] * 2
    assert all(size <= 4 * N * 4 for kind, size in said if kind == "all-reduce"), said


def test_over_the_batch_too_and_explicit_axes_need_no_word():
    problem, mesh = drawn(), mesh_of(AxisType.Explicit, data=2, time=4)
    arguments = placed(mesh, problem, "data", batch_first=True)
    with jax.set_mesh(mesh):
        function = each_and_gradient(jaxctc.ctc_loss_with_logits, batch_first=True)
        compiled = function.lower(*arguments).compile()
        value, gradient = compiled(*arguments)
    assert gradient.sharding.is_equivalent_to(arguments[0].sharding, 3)
    assert_same((value, gradient.swapaxes(0, 1)), each_and_gradient(jaxctc.ctc_loss_with_logits)(*problem))
    said = collectives(compiled)
    assert {kind for kind, _ in said} == {"collective-permute", "all-reduce"}
    assert max(size for _, size in said) == N // 2 * STATES


@pytest.mark.parametrize("devices", [1, 3])
def test_any_number_of_devices_and_scores_that_are_not_kept(devices, monkeypatch):
    problem, mesh = drawn(60), mesh_of(AxisType.Auto, time=devices)
    want = each_and_gradient(jaxctc.ctc_loss)(*problem)
    monkeypatch.setattr(scaled_emissions, "_LARGE", 0)
    with jax.set_mesh(mesh):
        arguments = placed(mesh, problem)
        if devices == 1:
            got = jaxctc.ctc_loss(*arguments, reduction="none", frame_axis="time")
            np.testing.assert_allclose(got, want[0][1], rtol=1e-6)
        else:
            assert_same(each_and_gradient(jaxctc.ctc_loss, frame_axis="time")(*arguments), want)


def test_frames_that_do_not_suit_are_gathered_unless_it_is_asked_for():
    problem, mesh = drawn(12), mesh_of(AxisType.Explicit, time=2)
    problem = (*problem[:2], np.minimum(problem[2], 12), problem[3])
    each = functools.partial(jaxctc.ctc_loss, reduction="none")
    with jax.set_mesh(mesh):
        arguments = placed(mesh, problem)
        got = jax.jit(each)(*arguments)
        with pytest.raises(ValueError, match="multiple of 8"):
            jaxctc.ctc_loss(*arguments, frame_axis="time")
    np.testing.assert_allclose(got, each(*problem), rtol=1e-6)


def test_what_is_broken_on_one_device_is_broken():
    """And nothing else."""
    scores, *rest = drawn()
    scores[45, 0], scores[20, 1, 1:] = np.nan, -np.inf
    mesh = mesh_of(AxisType.Auto, time=8)
    with jax.set_mesh(mesh):
        got = each_and_gradient(jaxctc.ctc_loss, frame_axis="time")(*placed(mesh, (scores, *rest)))
    assert_same(got, each_and_gradient(jaxctc.ctc_loss)(scores, *rest))
    assert np.isnan(got[0][1][0])
    assert np.isnan(got[1][:, 0]).all()
    assert np.isfinite(got[1][:, 1:]).all()


def test_second_derivatives():
    scores, *rest = drawn(16)
    rest[1] = np.minimum(rest[1], 16)
    tangent = np.random.default_rng(1).normal(size=scores.shape).astype(np.float32)

    def along(scores, tangent, *rest, **options):
        gradient = jax.grad(functools.partial(jaxctc.ctc_loss, zero_infinity=True, **options))
        return jax.jvp(lambda x: gradient(x, *rest), (scores,), (tangent,))[1]

    mesh = mesh_of(AxisType.Auto, time=2)
    want = jax.jit(along)(jnp.asarray(scores), jnp.asarray(tangent), *rest)
    with jax.set_mesh(mesh):
        scores, *rest = placed(mesh, (scores, *rest))
        got = jax.jit(functools.partial(along, frame_axis="time"))(scores, jnp.asarray(tangent), *rest)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_errors_say_what_to_do():
    scores, *rest = drawn()
    loss = functools.partial(jaxctc.ctc_loss, scores, *rest)
    with pytest.raises(ValueError, match=r"frame_axis is 'time', but no mesh is set: call within `with jax.set_mesh"):
        loss(frame_axis="time")
    with jax.set_mesh(mesh_of(AxisType.Auto, time=3)):
        with pytest.raises(ValueError, match=r"log_probs has T = 64 frames.* 3 devices.* multiple of 12.*by 8 frames"):
            loss(frame_axis="time")
        with pytest.raises(ValueError, match=r"frame_axis is 'data', but the mesh has the axes \('time',\)"):
            loss(frame_axis="data")
        with pytest.raises(TypeError, match=r"frame_axis must be the name of a mesh axis, or None; got 0 of type int"):
            loss(frame_axis=0)
    mesh = mesh_of(AxisType.Auto, time=4)
    mapped = jax.shard_map(
        lambda x: jaxctc.ctc_loss(x, *rest, frame_axis="time"), mesh=mesh, in_specs=P(), out_specs=P()
    )
    with pytest.raises(ValueError, match=r"'time', which is manual here"):
        mapped(scores)
