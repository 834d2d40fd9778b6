"""What TPUs have in place of gathers: the same to the last bit where nothing is added, and compiled without gathers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tpus
from jax.sharding import AxisType, SingleDeviceSharding
from meshes import mesh_of

import jaxctc
from jaxctc._autodiff import loss_rule, posterior_rule
from jaxctc._forward_backward import bidirectional, occupancy, scaled_emissions
from jaxctc._lattice import frame_map, indexing, label_scores, lattices
from jaxctc._lattice.to_frames import ToFrames
from jaxctc._types import LOG_ZERO, Problem, Request

LENGTHS = [(21, 4), (20, 0), (9, 3), (12, 4), (0, 0), (1, 1), (21, 2), (17, 3), (3, 4)]
T, N, S = 21, len(LENGTHS), 4


def problem(classes, dtype=np.float32, seed=0):
    """The second label is the first's, where there are two."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(T, N, classes)).astype(dtype)
    targets = rng.integers(1, classes - 1, (N, S)).astype(np.int32)
    targets[:, 1] = targets[:, 0]
    input_lengths, target_lengths = np.array(LENGTHS, np.int32).T
    return Problem(scores, targets, input_lengths, target_lengths)


def strange(batch):
    """With scores that are not finite: in use, where nobody looks, and in padding."""
    scores = batch.scores.copy()
    unused, used = scores.shape[2] - 1, batch.targets[:, 0]
    scores[2, :, unused] = np.nan, np.inf, -np.inf, np.finfo(scores.dtype).min, *[np.nan] * (N - 4)
    for n, (frames, _) in enumerate(LENGTHS):
        scores[frames:, n] = np.nan if n % 2 else np.inf
    scores[5, 0, used[0]] = -np.inf
    scores[6, 0, 0] = np.finfo(scores.dtype).min
    scores[3, 2, used[2]] = np.nan
    scores[4, 3, 0] = np.inf
    scores[7, 6] = -np.inf
    scores[2, 7, 0] = -300
    return batch._replace(scores=scores)


BATCHES = [problem(6), problem(40), strange(problem(6)), strange(problem(40))]
everything = pytest.mark.parametrize("batch", BATCHES, ids=["few", "many", "few strange", "many strange"])


@pytest.fixture
def both(monkeypatch):
    """Calls a function twice: with what is for TPUs, and with what is for everything else."""

    def call(function, *arguments):
        found = []
        for choice in (lambda multiplied, _: multiplied(), lambda _, gathers: gathers()):
            monkeypatch.setattr(indexing, "on_tpu", choice)
            # A function of its own each time, for what is traced is remembered.
            found.append(jax.tree.map(np.asarray, jax.jit(functools.partial(function))(*arguments)))
        return found

    return call


def walk_of(problem, options, keep=True):
    """The emissions, the scores that are computed again, and which sequences have a frame that is NaN."""
    lattice = lattices.build_lattice(problem, options)
    plan = frame_map.build_frame_map(lattice, 16)
    walk = scaled_emissions.build_emissions(problem.scores, lattice, options, plan, 4, 0, keep=keep)
    made = None if keep else [walk.recompute_scores(first, 4) for first in (0, 5, 12)]
    not_finite = jnp.isnan(scaled_emissions.peaks(walk)).any(axis=0)
    # Beyond the end of a target nothing is skipped to; and where a frame says nothing, so does its peak.
    walk = walk._replace(peak=jnp.where(jnp.abs(walk.peak) < -LOG_ZERO, walk.peak, 0))
    return walk._replace(recompute_scores=None, skip=walk.skip & lattices.has_label(lattice)[:, None]), made, not_finite


def turned(batch):
    return batch._replace(scores=batch.scores.swapaxes(0, 1))


@pytest.mark.parametrize(("batch_first", "keep"), [(False, True), (True, True), (True, False)])
@everything
def test_walks_are_the_same_to_the_last_bit(batch, batch_first, keep, both):
    of = functools.partial(walk_of, options=Request(batch_first=batch_first), keep=keep)
    got, want = both(of, turned(batch) if batch_first else batch)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.isfinite(got[0].peak).all()
    assert sorted(np.flatnonzero(got[2])) == ([2, 3] if np.isnan(batch.scores).any() else [])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.dtype(x) for x in ("float64", "bfloat16", "float16")], ids=str)
def test_walks_of_other_types_are_too(dtype, both):
    for classes in (6, 40):
        batch = strange(problem(classes, np.float64 if dtype == jnp.float64 else np.float32))
        batch = batch._replace(scores=jnp.asarray(batch.scores).astype(dtype))
        got, want = both(functools.partial(walk_of, options=Request()), batch)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert want[0].scores.dtype == lattices.accumulation_dtype(dtype)


def test_some_are_above_what_the_matrix_unit_takes_apart():
    """What counts as infinite is beyond any score, and the greatest that does not is kept."""
    assert np.float32(label_scores._HUGE) < np.finfo(np.float32).max
    scores = jnp.array([[[np.finfo(np.float32).max, np.nextafter(np.float32(label_scores._HUGE), 0), -jnp.inf]]])
    lattice = lattices.build_lattice(Problem(scores, *(jnp.array(x) for x in ([[1]], [1], [1]))), Request())
    labels = jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32), (1, 2, 3))
    found = label_scores.emitted(scores, labels, lattice, lambda x: jnp.stack([x, x], axis=1), select_first=False)
    np.testing.assert_array_equal(found[0, 0, 0], [jnp.inf, scores[0, 0, 1], -label_scores._HUGE])


def posteriors_of(problem, options, keep):
    frames = lattices.frames_of(problem.scores, options)
    lattice = lattices.build_lattice(problem, options)
    plan = frame_map.build_frame_map(lattice, 16)
    walk = scaled_emissions.build_emissions(problem.scores, lattice, options, plan, 4, keep=keep)
    places = occupancy.class_scatter(lattice, problem.scores.shape[2])
    _, found = bidirectional.posterior(walk, 4, every_blank=True)
    folded = found._replace(label=places.to_classes(found.label))
    live = lattices.frames_first(lattices.frame_mask(lattice.input_lengths, frames), options)[:, :, None]
    classes = occupancy.class_posterior(folded, places, ToFrames.of(lattice, frames, folded.label.shape[2]), options)
    states = posterior_rule._by_frame(found, lattice, frames, problem.targets.shape[1], options)
    return jnp.where(live, classes, 0), jnp.where(live, states, 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("classes", "batch_first", "dtype", "keep"),
    [
        (6, False, np.float64, True),
        (6, True, np.float32, False),
        (40, True, np.float64, True),
        (40, False, np.float32, False),
    ],
)
def test_posteriors_are_the_same(classes, batch_first, dtype, keep, both):
    """Up to the order of sums: that of equal labels comes first, or last."""
    batch = problem(classes, dtype)
    batch = turned(batch) if batch_first else batch
    (classes, states), wanted = both(
        functools.partial(posteriors_of, options=Request(batch_first=batch_first), keep=keep), batch
    )
    np.testing.assert_array_equal(states, wanted[1])
    np.testing.assert_allclose(classes, wanted[0], rtol=4 * np.finfo(dtype).eps)
    live = np.arange(T) < np.array(LENGTHS)[:, :1]
    live[-1] = False  # infeasible
    total = classes.sum(axis=2)
    np.testing.assert_allclose((total if batch_first else total.T)[live], 1, rtol=1e-5)


def losses_of(batch, options):
    value, gradient, _ = loss_rule.losses_and_gradient(options, *batch)
    return value, gradient


def test_lattices_without_anything(both):
    for shape in ((0, 2, 3), (2, 0, 3)):
        batch = jnp.zeros(shape), jnp.zeros((shape[1], 1), jnp.int32), *[jnp.zeros(shape[1], jnp.int32)] * 2
        got, want = both(functools.partial(losses_of, options=Request(from_logits=True)), batch)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_many_batches_at_once(both):
    batches = jax.tree.map(lambda *x: np.stack(x), *(strange(problem(40, seed=seed)) for seed in range(2)))
    got, want = both(jax.vmap(functools.partial(losses_of, options=Request())), batches)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("classes", [6, 40])
def test_frames_on_several_devices(classes, both):
    """Each of which walks both halves of its own, the far one out of its frames' order."""
    batch = strange(problem(classes))
    batch = batch._replace(scores=np.concatenate([batch.scores, np.full((3, N, classes), np.nan, np.float32)]))
    with jax.set_mesh(mesh_of(AxisType.Auto, f=3)):
        got, want = both(functools.partial(losses_of, options=Request(frame_axis="f")), batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
    assert list(np.isfinite(want[0])) == [True, True, False, False, True, True, False, True, False]


def gathered(text):
    """What each gather has, row by row: one of rows of many numbers takes no longer than one of as many single ones."""
    gathers = re.findall(r" = \w+\[([\d,]*)\]\S* gather\(.*?offset_dims={([\d,]*)}.*?slice_sizes={([\d,]*)}", text)
    sizes = []
    for shape, offsets, slices in gathers:
        whole = np.prod([int(x) for x in shape.split(",")])
        sizes.append(whole // (int(slices.split(",")[-1]) if offsets else 1))
    return sizes


@pytest.mark.parametrize(
    ("kind", "shape", "implementation"),
    [("v5e", (300, 24, 40, 50), "xla"), ("v6e", (60, 24, 700, 12), "pallas")],
    ids=["few", "many"],
)
def test_a_tpu_gathers_neither_scores_nor_posterior(kind, shape, implementation):
    """At most the sequences' frames, as whole rows."""
    frames, sequences, classes, labels = shape
    sharding = SingleDeviceSharding(tpus.devices(kind)[0])
    asked = functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum", implementation=implementation)
    shapes = [((frames, sequences, classes), jnp.float32), ((sequences, labels), jnp.int32)]
    shapes += [((sequences,), jnp.int32)] * 2
    batch = [jax.ShapeDtypeStruct(*x, sharding=sharding) for x in shapes]
    lowered = jax.jit(jax.value_and_grad(asked)).lower(*batch)
    products = re.findall("stablehlo.dot_general.*", lowered.as_text())
    assert len(products) >= 2
    assert all("precision = [HIGHEST, HIGHEST]" in x for x in products)
    text = lowered.compile().as_text()
    assert max(gathered(text), default=0) <= sequences * (frames + 32)


def test_one_program_for_tpus_and_others():
    """Which has both forms, and one of them runs."""
    batch = strange(problem(40))
    function = jax.jit(jax.grad(functools.partial(jaxctc.ctc_loss_with_logits, reduction="sum", zero_infinity=True)))
    exported = jax.export.export(function, platforms=("cpu", "tpu"))(*batch)
    assert exported.platforms == ("cpu", "tpu")
    products = [x.count("stablehlo.dot_general") for x in (exported.mlir_module(), function.lower(*batch).as_text())]
    assert products[0] > 2 * products[1]  # JAX has a product of many matrices once for each platform
    np.testing.assert_array_equal(exported.call(*batch), function(*batch))
