"""Test the kernels for TPUs: interpreted, against XLA's loops; and compiled ahead of time for a TPU."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpus
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import shapes_of_problems
from oracles import torch_float64

import jaxctc
from jaxctc._forward_backward import bidirectional, scaled_emissions, segments
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._kernels import dispatch, tpu, tpu_layout, tpu_passes
from jaxctc._lattice import frame_map, lattices
from jaxctc._tools.conformance.oracle import log_softmax
from jaxctc._types import LOG_ZERO, Problem, Request

C = 5
posterior = functools.partial(tpu.posterior, interpret=True)
likelihood = functools.partial(tpu.likelihood, interpret=True)


def problem(frames, longest, input_lengths, target_lengths, seed=0):
    rng = np.random.default_rng(seed)
    log_probs = log_softmax(rng.normal(size=(frames, len(input_lengths), C)) * 2)
    targets = rng.integers(1, C, (len(input_lengths), longest))
    targets[:, 1:2] = targets[:, :1]
    lengths = (jnp.asarray(x, jnp.int32) for x in (targets, input_lengths, target_lengths))
    return Problem(jnp.asarray(log_probs), *lengths)


@functools.partial(jax.jit, static_argnums=1)
def emissions_of(problem, steps):
    lattice = lattices.build_lattice(problem, Request())
    plan = frame_map.build_frame_map(lattice, steps)
    return scaled_emissions.build_emissions(problem.scores, lattice, Request(), plan)


def agree(got, want, start=0):
    """Likelihoods agree but for the order in which XLA adds up a join; kernels divide posteriors in another way."""
    (*values, found), (value_wanted, wanted) = jax.tree.map(np.asarray, (got, want))
    feasible = value_wanted.exponent > LOG_ZERO / 2
    for value in values:
        np.testing.assert_array_equal(value.exponent > LOG_ZERO / 2, feasible)
        number, shift = 1 + value.mantissa[feasible], (value.exponent - value_wanted.exponent)[feasible]
        np.testing.assert_allclose(number * 2.0**shift, 1 + value_wanted.mantissa[feasible], rtol=5e-7)
    for x, y in zip(found, wanted, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_allclose(x[feasible, :, start:], y[feasible, :, start:], atol=1e-6)


def test_agrees_with_xla():
    """More rows and columns than a register has, more steps than a block; blocks reach beyond the arrays."""
    frames, size = 300, 30
    lengths = [(300, 120), (299, 140), (150, 0), (20, 300), (76, 9), (9, 5), (3, 9), (1, 1), (0, 0)]
    emissions = emissions_of(problem(frames, 300, *zip(*lengths, strict=True)), segments.step_count(frames, size))
    cut = tpu_layout.cut(emissions.scores.shape, size)
    assert all(whole % part for whole, part in zip(cut[:3], cut[3:], strict=True))
    for every_blank in (False, True):
        options = {"every_blank": every_blank}
        got = jax.jit(lambda emissions, options=options: posterior(emissions, size, **options))(emissions)
        agree(
            got,
            jax.jit(lambda emissions, options=options: bidirectional.posterior(emissions, size, **options))(emissions),
        )


def test_no_step_before_the_start_is_read():
    """Whichever block and step the start is in, and even if no step is left."""
    batch = problem(12, 4, [12, 7, 0, 3], [4, 2, 0, 1])
    steps, needed = 38, 6
    emissions = emissions_of(batch, steps)
    kernels = jax.jit(lambda emissions, start: (likelihood(emissions, start), *posterior(emissions, 8, start)))
    want = jax.jit(bidirectional.posterior, static_argnums=1)(emissions, 2)
    for start in range(steps - needed + 1):
        unread = np.arange(steps)[:, None] < start
        agree(kernels(emissions._replace(scores=jnp.where(unread, jnp.nan, emissions.scores)), start), want, start)
    nobody = emissions_of(
        batch._replace(input_lengths=0 * batch.input_lengths, target_lengths=0 * batch.target_lengths), steps
    )
    for mantissa, exponent in kernels(nobody._replace(scores=jnp.full_like(emissions.scores, jnp.nan)), steps)[:2]:
        assert (mantissa == 0).all()
        assert (exponent == 0).all()


@pytest.mark.usefixtures("x64")
def test_agrees_with_torch():
    """In float64: all lengths, empty and infeasible targets, labels and blanks of probability zero."""
    pytest.importorskip("torch")

    kernels = types.SimpleNamespace(likelihood=likelihood, posterior=posterior, PRECISION=jax.lax.Precision.HIGHEST)
    dispatch.register("interpreted-tpu", kernels)
    batch = problem(21, 4, [21, 20, 9, 12, 3, 21, 17], [4, 0, 3, 4, 4, 2, 3])
    scores = batch.scores.at[5, 5, 2].set(-jnp.inf).at[4:6, 6, 0].set(-jnp.inf).at[8, 3, 0].set(-300)

    @jax.jit
    def loss_and_gradient(scores):
        asked = functools.partial(jaxctc.ctc_loss, reduction="none", implementation="interpreted-tpu")
        value, pull_back = jax.vjp(lambda scores: asked(scores, *batch[1:]), scores)
        return value, *pull_back(jnp.ones_like(value))

    value, gradient = loss_and_gradient(scores)

    # PyTorch's gradient is NaN where a score is -inf.
    finite = batch._replace(scores=jnp.maximum(scores, -1e5))
    want, found = torch_float64(*finite)
    infeasible = np.isinf(want)
    assert list(infeasible) == [False] * 4 + [True] + [False] * 2
    np.testing.assert_allclose(value, want, rtol=1e-12)
    np.testing.assert_allclose(gradient, np.where(infeasible[:, None], 0, -found), atol=1e-12)


def test_a_ratio_is_at_most_one_and_one_of_equals():
    whole, ratio = jnp.linspace(1, 100, 1000)[None], jax.jit(tpu_passes._ratio)
    assert (whole * (1 / whole) != 1).any()
    for part in (whole, jnp.nextafter(whole, 0), 0.3 * whole, 0 * whole):
        got, exact = ratio(part, whole), np.float64(part) / np.float64(whole)
        np.testing.assert_allclose(got, exact, rtol=2e-7)
        assert (got <= 1).all()
        assert ((got == 1) >= (exact == 1)).all()


def test_maps_over_batches():
    batches = [emissions_of(problem(9, 3, [9, 8], [3, 2], seed), 10) for seed in range(2)]
    mapped = jax.jit(jax.vmap(lambda emissions: posterior(emissions, 8)))(
        jax.tree.map(lambda *x: jnp.stack(x), *batches)
    )
    for i, emissions in enumerate(batches):
        want = jax.jit(bidirectional.posterior, static_argnums=1)(emissions, 2)
        (value, _), (label, blank, _) = mapped
        np.testing.assert_array_equal(value[i], want[0].mantissa)
        np.testing.assert_allclose(label[i], want[1].label, atol=1e-6)
        np.testing.assert_allclose(blank[i], want[1].blank, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((4, 2, 10, 8), jnp.float64, "float32"),
        ((0, 2, 10, 8), jnp.float32, "no sequence"),
        ((4, 2, 10, tpu_layout.most_columns(False) + 8), jnp.float32, f"room for {tpu_layout.most_columns(False)}"),
    ],
)
def test_says_what_it_does_not_take(shape, dtype, words):
    assert words in tpu.objection(shape, dtype)
    widest = 4, 2, 10, tpu_layout.most_columns(False)
    assert tpu.objection(widest, jnp.float32) is None
    assert f"room for {tpu_layout.most_columns(True)}" in tpu.objection(widest, jnp.float32, every_blank=True)


def abstract(sharding, shape):
    """Return the scores' two factors and the other scaled emissions: `used` makes the scores on the device."""
    N, _, M, W = shape

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    blank, counts = Scaled(*[of(N, 2, M + 1)] * 2), [of(N, dtype=jnp.int32), of(N, 2, dtype=jnp.int32)]
    rest = ScaledEmissions(None, blank, of(N, 2, W, dtype=bool), *counts, *[of(N, 2, M)] * 2)
    return of(N, 2, M, 1), of(N, 2, 1, W), rest


def used(size, steps, columns, rest, **options):
    emissions = rest._replace(scores=steps * columns)
    value, (label, blank, *each) = tpu.posterior(emissions, size, **options)
    return value, blank, *(None if x is None else x.sum(axis=2) for x in (label, *each))


def assert_all_in_kernels(compiled):
    """There is a kernel for each pass, and no loop of XLA."""
    text = compiled.as_text()
    assert re.findall(r"%ctc_([a-z]+).* custom_call_target=\"tpu_custom_call\"", text) == ["forward", "backward"]
    assert " while(" not in text


@pytest.mark.parametrize("kind", ["v5e", "v6e"])
def test_compiles_for_a_tpu(kind):
    """2,000 frames of 32 sequences of 400 labels, in blocks of as many steps as VMEM has room for."""
    shape = sequences, _, steps, columns = 32, 2, 1000, 408
    compiled = (
        jax.jit(functools.partial(used, steps))
        .lower(*abstract(NamedSharding(Mesh(tpus.devices(kind)[:1], "n"), P()), shape))
        .compile()
    )
    assert_all_in_kernels(compiled)
    # The posterior takes the place of the scores: there is room for one of them.
    scores = 4 * 2 * sequences * steps * -(-columns // 128) * 128
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * scores


@pytest.mark.parametrize("columns", [8, tpu_layout.most_columns(True)])
def test_there_is_room_for_every_blank(columns):
    on = NamedSharding(Mesh(tpus.devices("v5e")[:1], "n"), P())
    run = functools.partial(used, 200, every_blank=True)
    assert_all_in_kernels(jax.jit(run).lower(*abstract(on, (16, 2, 200, columns))).compile())


@pytest.mark.usefixtures("x64")
def test_compiles_for_sequences_on_several_tpus():
    """Even where 64 bits are the default."""
    mesh = Mesh(np.array(tpus.devices("v5e")), "n")
    run = jax.shard_map(functools.partial(used, 8), mesh=mesh, in_specs=P("n"), out_specs=P("n"))
    compiled = jax.jit(run).lower(*abstract(NamedSharding(mesh, P("n")), (8, 2, 8, 16))).compile()
    assert_all_in_kernels(compiled)


def test_a_batch_on_several_tpus_stays_where_it_is():
    """With explicit sharding, mapped or not: each device has its own sequences, and nothing is communicated."""
    mesh = Mesh(np.array(tpus.devices("v5e")), "n", axis_types=(AxisType.Explicit,))
    problem, mapped = shapes_of_problems(mesh)
    asked = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum", implementation="pallas")
    for function, arguments in ((jax.grad(asked), problem), (jax.vmap(jax.grad(asked)), mapped)):
        text = jax.jit(function).lower(*arguments).compile().as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == 2
        assert not re.findall("all-gather|all-to-all|all-reduce|collective-permute", text)
