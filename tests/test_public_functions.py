"""What holds for every public function: under `jax.debug_nans`, in `jax.shard_map`, over explicit axes, of bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of
from public_functions import (
    FUNCTIONS,
    ON_THE_HOST,
    TYPES,
    WITH_GRADIENT,
    WITHOUT_DERIVATIVE,
    WITHOUT_RESULT,
    every,
    finite_total,
    gradient_of,
    problem,
)

import jaxctc
from jaxctc import compat, variants


def test_the_table_has_every_public_function():
    names = {*jaxctc.__all__, *compat.__all__, *variants.__all__} - {"compat", "variants"}
    assert names == {*FUNCTIONS} | WITHOUT_RESULT | TYPES | ON_THE_HOST


@every(FUNCTIONS, "ctc_loss_with_logits", "forced_align")
def test_debug_nans_reports_nothing_without_jit(name):
    """The result of each operation is checked there: no constant may be a NaN."""
    arguments = problem(frames=3)
    with jax.disable_jit(), jax.debug_nans(True):
        jax.block_until_ready(FUNCTIONS[name](*arguments))


@every(WITH_GRADIENT, "ctc_posteriors")
def test_debug_nans_reports_no_derivative(name):
    """What a derivative stores is the result of a compiled function, and is checked."""
    with jax.debug_nans(True):
        jax.block_until_ready(gradient_of(WITH_GRADIENT[name])(*problem()))


@pytest.mark.parametrize("jitted", [True, False])
def test_debug_nans_reports_a_nan_that_is_there(jitted):
    scores, *rest = problem(frames=3)
    scores = scores.at[0, 0, 0].set(np.nan)
    with jax.disable_jit(not jitted), jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax.block_until_ready(jaxctc.ctc_loss(scores, *rest))


@every(FUNCTIONS, "forced_align", "beam_search_decode")
def test_each_device_of_a_shard_map_runs_its_own_sequences(name):
    """With the default `check_vma`: the carry of every loop must vary as its results do."""
    arguments, specs = problem(), (P(None, "n"), P("n"), P("n"), P("n"))

    def each(*part):
        return jax.lax.psum(finite_total(FUNCTIONS[name](*part)), "n")

    mapped = jax.shard_map(each, mesh=mesh_of(AxisType.Auto, n=2), in_specs=specs, out_specs=P())
    halves = ([arguments[0][:, i : i + 1], *(x[i : i + 1] for x in arguments[1:])] for i in range(2))
    alone = jax.jit(lambda *half: finite_total(FUNCTIONS[name](*half)))
    want = sum(alone(*half) for half in halves)
    np.testing.assert_allclose(jax.jit(mapped)(*arguments), want, rtol=1e-5)


@every(FUNCTIONS, "star_ctc_loss", "beam_search_decode")
def test_axes_may_be_explicit(name):
    """What JAX refuses of explicit axes it refuses when it traces; the numbers are compared where two are divided."""
    arguments = problem()
    function = jax.jit(gradient_of(FUNCTIONS[name]) if name in WITH_GRADIENT else FUNCTIONS[name])
    want = jax.tree.leaves(function(*arguments))
    with jax.set_mesh(mesh := mesh_of(AxisType.Explicit, n=2, c=2)):
        for spec in (P(None, "n"), P(None, None, "c"), P(None, "n", "c")):
            on = [NamedSharding(mesh, spec), *[NamedSharding(mesh, P(*spec[1:2]))] * 3]
            divided = [jax.device_put(*x) for x in zip(arguments, on, strict=True)]
            function.trace(*divided)
        got = jax.tree.leaves(function(*divided))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@every(FUNCTIONS, "ctc_loss_with_logits", "beam_search_decode")
def test_bfloat16_changes_no_derivative_but_by_rounding(name):
    """Where the bits of numbers are moved, a derivative may be lost without a word; and a scan may lose its rule."""
    scores, *rest = problem()
    scores = scores.astype(jnp.bfloat16)
    along = jnp.asarray(np.random.default_rng(1).normal(size=scores.shape), scores.dtype)

    def value(scores):
        return finite_total(FUNCTIONS[name](scores, *rest)).astype(jnp.float32)

    def value_in_a_scan(scores):
        return jax.lax.scan(lambda _, x: (None, value(x)), None, scores[None])[1].sum()

    def gradient(scores):
        return jax.grad(value)(scores), jax.grad(value_in_a_scan)(scores)

    found, want = (
        jax.jit(lambda x, dx: jax.jvp(gradient, (x,), (dx,)))(scores.astype(dtype), along.astype(dtype))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    for order in range(2):
        expected = want[order][0]
        assert name in WITHOUT_DERIVATIVE or (jnp.abs(expected) > 0.01).any()
        for each in (*found[order], want[order][1]):
            np.testing.assert_allclose(each, expected, rtol=0, atol=0.02 * (1e-9 + jnp.abs(expected).max()))
