"""Compare each loss of `jaxctc.variants` with the sum over all paths by which its paper defines it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc import variants
from jaxctc._tools.conformance.oracle import by_enumeration, paths_by_target

T, N, C, S = 5, 24, 3, 3
LOG_PRIORS = np.log([0.5, 0.2, 0.3])


def batch(seed=0, blank=0):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(C), (T, N)))
    labels = [c for c in range(C) if c != blank]
    targets, frames, counts = rng.choice(labels, (N, S)), rng.integers(0, T + 1, N), rng.integers(0, S + 1, N)
    return log_probs, targets.astype(np.int32), frames.astype(np.int32), counts.astype(np.int32)


def logsumexp(values):
    values = np.asarray(values, np.float64)
    peak = values.max(initial=-np.inf)
    return peak if np.isinf(peak) else peak + np.log(np.exp(values - peak).sum())


def paths_and_scores(scores, target, blank):
    paths = paths_by_target(*scores.shape, blank).get(target, np.zeros((0, len(scores)), int))
    return paths, scores[np.arange(len(scores)), paths].sum(axis=1)


def prior(scores, target, blank):
    return by_enumeration(scores - 0.7 * LOG_PRIORS, target, blank)[0]


def entropy(scores, target, blank):
    _, totals = paths_and_scores(scores, target, blank)
    loss = -logsumexp(totals)
    weights = np.exp(totals + loss) if len(totals) else totals
    return loss + 0.3 * (weights * (totals + loss)).sum()


def focal(scores, target, blank):
    loss = by_enumeration(scores, target, blank)[0]
    return 0.5 * (1 - np.exp(-loss)) ** 1.5 * loss


def smoothed(scores, target, blank):
    uniform = np.full(C, 1 / C)
    divergence = (uniform * (np.log(uniform) - scores)).sum()
    return 0.9 * by_enumeration(scores, target, blank)[0] + 0.1 * divergence


def delayed(scores, target, blank):
    paths, totals = paths_and_scores(scores, target, blank)
    before = np.concatenate([np.full((len(paths), 1), blank), paths], axis=1)[:, : len(scores)]
    begins = (paths != blank) & (paths != before)
    return -logsumexp(totals + 0.4 * (begins * ((len(scores) - 1) / 2 - np.arange(len(scores)))).sum(axis=1))


def wildcard(begin, end):
    def loss(scores, target, blank):
        t = len(scores)
        stretches = itertools.combinations(range(t + 1), 2)
        kept = [(a, b) for a, b in stretches if (begin or a == 0) and (end or b == t)]
        return -logsumexp([-by_enumeration(scores[a:b], target, blank)[0] for a, b in kept])

    return loss


def star(scores, target, blank):
    """Give each label one frame; the others are blank, or any label but the next one."""
    p = np.exp(scores)
    total = 0.0
    for chosen in itertools.combinations(range(len(scores)), len(target)):
        product = 1.0
        for t, frame in enumerate(p):
            passed = sum(x < t for x in chosen)
            if t in chosen:
                product *= frame[target[passed]]
                continue
            without = {blank, target[passed]} if passed < len(target) else {blank}
            product *= frame[blank] + np.exp(-0.6) * sum(frame[c] for c in range(C) if c not in without)
        total += product
    return -np.log(total) if total else np.inf


def partial(function, **keywords):
    def call(*problem, **common):
        return function(*problem, **keywords, **common)

    return call


LOSSES = {
    "prior": (partial(variants.prior_ctc_loss, log_priors=LOG_PRIORS, scale=0.7), prior),
    "entropy": (partial(variants.entropy_ctc_loss, weight=0.3), entropy),
    "focal": (partial(variants.focal_ctc_loss, gamma=1.5, alpha=0.5), focal),
    "smoothed": (partial(variants.smoothed_ctc_loss, weight=0.1), smoothed),
    "delayed": (partial(variants.delay_penalised_ctc_loss, penalty=0.4), delayed),
    "wildcards": (variants.wildcard_ctc_loss, wildcard(True, True)),
    "wildcard before": (partial(variants.wildcard_ctc_loss, end=False), wildcard(True, False)),
    "wildcard behind": (partial(variants.wildcard_ctc_loss, begin=False), wildcard(False, True)),
    "star": (partial(variants.star_ctc_loss, penalty=0.6), star),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
# One kind of wildcard is enough where a test does not look at the paths: each compiles for a second.
every_kind = pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("wildcard ")])


@pytest.mark.usefixtures("x64")
@every_loss
def test_every_path_counts(name):
    loss, oracle = LOSSES[name]
    log_probs, targets, frames, counts = problem = batch(blank=0)
    want = [oracle(log_probs[: frames[n], n], tuple(targets[n, : counts[n]].tolist()), 0) for n in range(N)]
    np.testing.assert_allclose(loss(*problem, reduction="none"), want, rtol=1e-10, atol=1e-10)
    assert 0 < np.isinf(want).sum() < N


@pytest.mark.usefixtures("x64")
@every_kind
def test_gradients_are_those_of_differences(name):
    loss, _ = LOSSES[name]
    log_probs, *lattice = batch(1, blank=2)
    rng = np.random.default_rng(2)
    weights, direction, step = rng.normal(size=N), rng.normal(size=log_probs.shape), 1e-6

    @jax.jit
    def weighed(scores):
        return (loss(scores, *lattice, blank=2, reduction="none", zero_infinity=True) * weights).sum()

    difference = (weighed(log_probs + step * direction) - weighed(log_probs - step * direction)) / (2 * step)
    gradient = jax.jit(jax.grad(weighed))(log_probs)
    np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-6)
    padding = np.arange(T)[:, None] >= lattice[1]
    assert not np.asarray(gradient)[padding].any()


@every_kind
def test_infeasible_and_invalid_rows_touch_no_others(name):
    """An infeasible row has the loss inf and no gradient, an invalid one NaN in both, and no other row changes."""
    loss, _ = LOSSES[name]
    log_probs, targets, frames, counts = batch(3)
    log_probs = log_probs.astype(np.float32)
    frames[:], counts[:] = T, 1

    def each(scores, *lattice):
        def total(scores):
            losses = loss(scores, *lattice, reduction="none")
            return jnp.where(jnp.isposinf(losses), 0, losses).sum(), losses

        (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(scores)
        return losses, gradient

    each = jax.jit(each)
    want, slope = each(log_probs, targets, frames, counts)
    frames[0], counts[0] = 2, 3  # too few frames
    log_probs[0, 0] = np.nan
    log_probs[1, 1, [0, targets[1, 0]]] = np.nan
    targets[2, 0] = 0  # the blank
    got, gradient = each(log_probs, targets, frames, counts)
    np.testing.assert_array_equal(got[:3], [np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(np.asarray(gradient)[:, 0], 0)
    assert np.isnan(gradient[:, 2]).any()
    np.testing.assert_allclose(got[3:], want[3:], rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 3:], slope[:, 3:], rtol=1e-5, atol=1e-7)
    zeroed = loss(
        log_probs, targets, frames, np.where(np.arange(N) == 2, 0, counts), zero_infinity=True, reduction="none"
    )
    assert zeroed[0] == 0


@pytest.mark.parametrize("name", ["prior", "star"])  # one is a function of the loss, the other has paths of its own
def test_layouts_and_reductions(name):
    loss, _ = LOSSES[name]
    log_probs, targets, frames, counts = batch(4)
    log_probs = log_probs.astype(np.float32)
    frames[:], counts[:] = T, np.maximum(counts, 1)
    targets[:, 1] = 3 - targets[:, 0]
    targets[:, 2] = targets[:, 0]
    each = np.asarray(loss(log_probs, targets, frames, counts, reduction="none"))
    turned = loss(log_probs.swapaxes(0, 1), targets, frames, counts, reduction="batchmean", batch_first=True)
    np.testing.assert_allclose(turned, each.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(log_probs, targets, frames, counts), (each / counts).mean(), rtol=1e-5)
    one = loss(log_probs[:, 0], targets[0, : counts[0]], T, counts[0], reduction="sum")
    np.testing.assert_allclose(one, each[0], rtol=1e-5)


def test_the_neutral_value_of_each_parameter_gives_ctc_loss():
    problem = batch(5)
    want = jaxctc.ctc_loss(*(jnp.asarray(x) for x in problem), zero_infinity=True, reduction="none")
    for same in (
        partial(variants.prior_ctc_loss, log_priors=LOG_PRIORS, scale=0.0),
        partial(variants.entropy_ctc_loss, weight=0.0),
        partial(variants.focal_ctc_loss, gamma=0.0),
        partial(variants.smoothed_ctc_loss, weight=0.0),
        partial(variants.delay_penalised_ctc_loss, penalty=0.0),
        partial(variants.wildcard_ctc_loss, begin=False, end=False),
    ):
        np.testing.assert_allclose(same(*problem, zero_infinity=True, reduction="none"), want, rtol=1e-5, atol=1e-6)


def test_the_other_labels_of_a_star_do_not_cancel():
    """The label that the star excludes has all but 1e-12 of the probability."""
    log_probs = np.log(np.array([[1e-13, 1 - 1e-12, 9e-13]] * 2))
    loss = variants.star_ctc_loss(log_probs.astype(np.float32), [1], 2, 1, penalty=0.0)
    want = -np.log((1e-13 + 9e-13) * (1 - 1e-12) + (1 - 1e-12) * 1)
    np.testing.assert_allclose(loss, want, atol=1e-7)
    # Here the target is the improbable label, whose 9e-13 every path contains.
    slope = jax.grad(lambda x: variants.star_ctc_loss(x, [2], 2, 1, penalty=0.0))(jnp.asarray(log_probs, jnp.float32))
    assert np.isfinite(slope).all()


def test_focal_at_its_edges():
    certain = jnp.log(jnp.array([[0.0, 1.0]]))
    for gamma in (0.5, 2.0):
        focal = partial(variants.focal_ctc_loss, gamma=gamma)
        value, slope = jax.value_and_grad(focal)(certain, [1], 1, 1)
        assert value == 0
        assert np.isfinite(slope).all()
    value, slope = jax.value_and_grad(lambda x: variants.focal_ctc_loss(x, [1, 1], 1, 2, gamma=2.0))(certain)
    assert value == np.inf
    assert not slope.any()


@pytest.mark.parametrize("name", ["prior", "focal", "wildcards", "star"])
def test_no_loss_is_a_negative_zero(name):
    """The target is certain, or it is empty and has no frames."""
    loss, _ = LOSSES[name]
    log_probs = np.full((2, 2, C), -np.inf, np.float32)
    log_probs[:, :, 1] = 0
    log_probs[1, 0] = [0, -np.inf, -np.inf]  # the label, then the blank
    problem = [[1], [1]], [2, 0], [1, 0]
    if name == "prior":
        loss = partial(variants.prior_ctc_loss, log_priors=np.zeros(C, np.float32))
    if name == "wildcards":
        loss = partial(variants.wildcard_ctc_loss, begin=False, end=False)
    losses = loss(log_probs, *problem, reduction="none")
    np.testing.assert_array_equal(losses, 0)
    assert not np.signbit(losses).any()


def test_priors():
    rng = np.random.default_rng(6)
    log_probs = np.log(rng.dirichlet(np.ones(C), (T, 2))).astype(np.float32)
    frames = np.array([5, 3])
    want = np.log(np.concatenate([np.exp(log_probs[:5, 0]), np.exp(log_probs[:3, 1])]).mean(axis=0))
    np.testing.assert_allclose(variants.label_priors(log_probs, frames), want, rtol=1e-5)
    turned = variants.label_priors(log_probs.swapaxes(0, 1), frames, batch_first=True)
    np.testing.assert_allclose(turned, want, rtol=1e-5)
    unseen = np.array([0, -np.inf, 0], np.float32)
    problem = log_probs[:, 0], [1, 2], 5, 2
    np.testing.assert_allclose(
        variants.prior_ctc_loss(*problem, log_priors=unseen), jaxctc.ctc_loss(*problem), rtol=1e-6
    )


def test_errors_say_what_is_legal():
    problem = np.zeros((4, 3), np.float32), [1, 2], 4, 2
    with pytest.raises(ValueError, match=r"log_priors has shape \(2,\), but there are C = 3 classes: .* \(3,\)"):
        variants.prior_ctc_loss(*problem, log_priors=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"gamma is -1: it must be at least 0"):
        variants.focal_ctc_loss(*problem, gamma=-1)
    with pytest.raises(ValueError, match=r"weight is 1.5: it must lie in \[0, 1\]"):
        variants.smoothed_ctc_loss(*problem, weight=1.5)
    with pytest.raises(TypeError, match="begin must be True or False"):
        variants.wildcard_ctc_loss(*problem, begin="yes")
    with pytest.raises(ValueError, match="reduction must be one of 'none', 'mean', 'sum', 'batchmean', 'mean_volume'"):
        variants.entropy_ctc_loss(*problem, weight=0.1, reduction="average")
    with pytest.raises(ValueError, match=r"no kernel for this: these paths are not .*. Leave it to None"):
        variants.star_ctc_loss(*problem, penalty=0.0, implementation="pallas")
    with pytest.raises(ValueError, match="blank is 3, but there are C = 3 classes"):
        variants.star_ctc_loss(*problem, penalty=0.0, blank=3)


def test_reductions_of_other_toolkits():
    log_probs, targets, frames, counts = batch(7)
    log_probs = jnp.asarray(log_probs, jnp.float32)
    for loss in (jaxctc.ctc_loss, jaxctc.ctc_loss_with_logits):
        each = np.asarray(loss(log_probs, targets, frames, counts, zero_infinity=True, reduction="none"), np.float64)
        for reduction, want in (("batchmean", each.sum() / N), ("mean_volume", each.sum() / counts.sum())):
            got = loss(log_probs, targets, frames, counts, zero_infinity=True, reduction=reduction)
            np.testing.assert_allclose(got, want, rtol=1e-6)
