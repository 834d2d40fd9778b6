"""Gradients of half-precision scores under a loss scale: PyTorch's own in float64, narrowed once."""

import functools

import pytest
import torch
from torch.nn import functional

import bridge
from jaxctc._tools.conformance import oracle

SCALE = 65536.0
"""What GradScaler begins with; float16 ends at 65504."""

T, N, S = 20, 4, 3
TARGETS = torch.tensor([[1, 2, 3], [4, 5, 1], [2, 2, 0], [0, 0, 0]])
INPUT_LENGTHS, TARGET_LENGTHS = torch.tensor([20, 18, 11, 5]), torch.tensor([3, 3, 2, 0])
LATTICE = TARGETS, INPUT_LENGTHS, TARGET_LENGTHS

# PyTorch's own machinery warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


SIZES = bridge.Sizes(frames=(24,), labels=(4,), sequences=3)


def row(function=bridge.ctc_loss, classes=6, sizes=SIZES, **options):
    return function, classes, sizes, options


ROWS = {
    "logits": row(bridge.ctc_loss_with_logits),
    "PyTorch's gradient": row(),
    "true derivative": row(normalized=False),
    "nothing padded": row(sizes=None),
    "batch first": row(batch_first=True),
    "nothing padded, batch first": row(bridge.ctc_loss_with_logits, sizes=None, batch_first=True),
    "own classes alone": row(classes=40),
    "own classes alone, true derivative": row(classes=40, normalized=False, batch_first=True),
}


# For the other of two types each row would be compiled again: in `make test` it is for one of each kind.
OTHER_TYPE = "logits", "true derivative", "own classes alone"


def rows_in(dtype, other):
    """Each row in both types, and of `other` in `make test` the kinds alone."""
    marks = [(dtype, ROWS, []), (other, OTHER_TYPE, []), (other, ROWS.keys() - OTHER_TYPE, [pytest.mark.full])]
    return [
        pytest.param(name, kind, marks=mark, id=f"{name}-{str(kind)[6:]}")
        for kind, names, mark in marks
        for name in ROWS
        if name in names
    ]


def scores_of(function, classes, dtype, frames=T, sequences=N):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(frames, sequences, classes, generator=generator, dtype=torch.float64) * 2
    return (scores if function is bridge.ctc_loss_with_logits else scores.log_softmax(2)).to(dtype)


def weights_of(outer, reduction, target_lengths=TARGET_LENGTHS):
    """What each sequence's gradient is multiplied by."""
    weights = outer.double().expand(len(target_lengths))
    return weights / target_lengths.clamp(min=1) / len(target_lengths) if reduction == "mean" else weights


def truth(scores, weights, function=bridge.ctc_loss, normalized=True, lattice=LATTICE, **_):
    """PyTorch's gradient in float64, of losses with these weights."""
    leaf = scores.double().requires_grad_()
    from_logits = function is bridge.ctc_loss_with_logits
    functional.ctc_loss(leaf.log_softmax(2) if from_logits else leaf, *lattice, reduction="none").backward(weights)
    if normalized or from_logits:
        return leaf.grad
    live = torch.arange(len(scores))[:, None] < lattice[1]
    return leaf.grad - scores.double().exp() * (live * weights)[:, :, None]


def assert_narrowed_once(ours, expected, weights, float32=5e-7):
    """As near as the type has it, but for what float32 has lost of the posteriors, which are at most 1."""
    assert torch.equal(ours.isinf(), expected.to(ours.dtype).isinf())
    kind = torch.finfo(ours.dtype)
    within = kind.eps / 2 * expected.abs() + kind.smallest_normal * kind.eps / 2 + float32 * weights.abs()[:, None]
    wrong = ~((ours.double() - expected).abs() <= within) & ~ours.isinf()
    assert not wrong.any(), (ours[wrong], expected[wrong])


def by_backward(loss, scores, outer):
    leaf = scores.clone().requires_grad_()
    loss(leaf).backward(outer)
    return leaf.grad


def by_backward_twice(loss, scores, outer):
    """The first time what was kept for it is wanted again."""
    leaf = scores.clone().requires_grad_()
    value = loss(leaf)
    (first,) = torch.autograd.grad(value, leaf, outer, retain_graph=True)
    kept = first.clone()
    first.fill_(7)
    value.backward(outer)
    torch.testing.assert_close(leaf.grad, kept, rtol=0, atol=0, equal_nan=True)
    return leaf.grad


def with_its_graph(loss, scores, outer):
    leaf = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf, outer, create_graph=True)[0].detach()


def by_vjp(loss, scores, outer):
    return torch.func.vjp(loss, scores)[1](outer)[0]


def by_vmap(loss, scores, outer):
    many = torch.stack([scores.flip(0), scores])
    return torch.vmap(lambda x: by_vjp(loss, x, outer))(many)[1]


def compiled(backend, loss, scores, outer):
    torch._dynamo.reset()
    return by_backward(torch.compile(loss, backend=backend, fullgraph=True), scores, outer)


def exported(loss, scores, outer):
    class Module(torch.nn.Module):
        def forward(self, scores):
            return loss(scores)

    leaf = scores.clone().requires_grad_()
    return by_backward(torch.export.export(Module(), (leaf,)).module(), scores, outer)


EAGER = [by_backward_twice, with_its_graph, by_vjp, by_vmap]
TRACED = {
    "aot_eager": functools.partial(compiled, "aot_eager"),
    "inductor": functools.partial(compiled, "inductor"),
    "export": exported,
}


def scaled_gradient(road, row, reduction, scores, outer):
    """Return a function of scores (T, N, C), whatever order of axes the row has."""
    function, _, sizes, options = row
    first = options.get("batch_first", False)

    def loss(x):
        return function(x, *LATTICE, reduction=reduction, **options)

    with bridge.set_sizes(sizes):
        made = road(loss, scores.transpose(0, 1).contiguous() if first else scores, outer)
    assert made.dtype == scores.dtype
    return made.transpose(0, 1) if first else made


def outer_of(reduction, scale=SCALE):
    return torch.tensor([scale, scale * 0.3, -scale / 60, 0.0]) if reduction == "none" else torch.tensor(scale)


@pytest.mark.parametrize(("name", "dtype"), rows_in(torch.float16, torch.bfloat16))
@pytest.mark.parametrize("road", EAGER, ids=lambda road: road.__name__)
def test_a_scaled_gradient_is_narrowed_once(name, dtype, road):
    function, classes, _, options = ROWS[name]
    scores = scores_of(function, classes, dtype)
    for reduction in ("none", "mean", "sum"):
        for scale in (1.0, SCALE):
            outer = outer_of(reduction, scale)
            weights = weights_of(outer, reduction)
            made = scaled_gradient(road, ROWS[name], reduction, scores, outer)
            assert_narrowed_once(made, truth(scores, weights, function, **options), weights)


@pytest.mark.parametrize("name", ["logits", "true derivative", "own classes alone"])
@pytest.mark.parametrize("road", TRACED)
def test_the_same_when_traced(name, road):
    function, classes, _, options = ROWS[name]
    reduction = "none" if name == "true derivative" else "mean"
    scores, outer = scores_of(function, classes, torch.float16), outer_of(reduction)
    weights = weights_of(outer, reduction)
    made = scaled_gradient(TRACED[road], ROWS[name], reduction, scores, outer)
    assert_narrowed_once(made, truth(scores, weights, function, **options), weights)


def test_the_loss_times_the_scale():
    x = torch.randn(20, 2, 6, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    targets = torch.tensor([[1, 2, 3], [4, 5, 1]])
    with bridge.set_sizes(SIZES):
        (bridge.ctc_loss_with_logits(x, targets, [20, 18], [3, 3]) * SCALE).backward()
    expected = torch.tensor([-5022.6, -4807.5, 1328.4, 1105.8, 3987.2, 3408.7])
    torch.testing.assert_close(x.grad[0, 0], expected.half(), rtol=0, atol=0)
    assert (x.grad[18:, 1] == 0).all()


@pytest.mark.parametrize("name", ["logits", "true derivative", "own classes alone", "nothing padded, batch first"])
@pytest.mark.parametrize("road", EAGER, ids=lambda road: road.__name__)
def test_what_only_the_scale_lifts_above_the_smallest_number(name, road):
    """Unscaled, float16 has these gradients as 0 or with few digits; a scale of 2 ** 14 it has itself."""
    function, classes, _, options = ROWS[name]
    scores = scores_of(function, classes, torch.float16)
    scores = scores - 12 * (torch.arange(classes) > 2)  # classes of small probability, in targets and in none
    outer = torch.tensor(2.0**14)
    weights = weights_of(outer, "mean")
    expected = truth(scores, weights, function, **options)
    small = (expected.abs() < 2.0**14 * torch.finfo(torch.float16).smallest_normal) & (expected != 0)
    assert small.sum() > 20
    made = scaled_gradient(road, ROWS[name], "mean", scores, outer)
    within = expected.abs() * 2**-10.9 + 2**-25  # float32's own errors are relative: nothing cancels in most of them
    assert ((made.double() - expected).abs() <= within)[small].double().mean() > 0.95
    assert_narrowed_once(made, expected, weights)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("road", EAGER, ids=lambda road: road.__name__)
def test_what_float16_cannot_hold_is_infinite_and_nothing_is_nan(name, road):
    function, classes, _, options = ROWS[name]
    scores = scores_of(function, classes, torch.float16)
    outer = torch.tensor(2.0**19)
    weights = weights_of(outer, "sum")
    expected = truth(scores, weights, function, **options)
    assert expected.half().isinf().any()
    assert_narrowed_once(scaled_gradient(road, ROWS[name], "sum", scores, outer), expected, weights)


@pytest.mark.parametrize(("name", "dtype"), rows_in(torch.float16, torch.float32))
@pytest.mark.parametrize("road", EAGER, ids=lambda road: road.__name__)
def test_padded_frames_are_0_whatever_the_cotangent(name, dtype, road):
    """As PyTorch's are, be it infinite or NaN."""
    function, classes, _, _ = ROWS[name]
    scores = scores_of(function, classes, dtype)
    outer = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    made = scaled_gradient(road, ROWS[name], "none", scores, outer)
    padded = torch.arange(T)[:, None] >= INPUT_LENGTHS
    assert (made[padded] == 0).all()
    assert made[:5, 3].isfinite().all()
    assert not made[:11, 2].isfinite().any() or "true" in name


@pytest.mark.parametrize("name", ["PyTorch's gradient", "true derivative", "own classes alone"])
@pytest.mark.parametrize("road", EAGER, ids=lambda road: road.__name__)
def test_infeasible_rows(name, road, monkeypatch):
    """The first three: one weighted, one masked by a cotangent of 0, one by a scale that is 0."""
    function, classes, sizes, options = ROWS[name]
    scores = scores_of(function, classes, torch.float16)
    lattice = TARGETS, torch.tensor([2, 2, 11, 5]), TARGET_LENGTHS
    monkeypatch.setitem(globals(), "LATTICE", lattice)
    outer = torch.tensor([SCALE, 0.0, SCALE / 64, SCALE])
    made = scaled_gradient(road, (function, classes, sizes, options), "none", scores, outer)
    assert made[:2, 0].isnan().all() if options.get("normalized", True) else (made[:, 0] == 0).all()
    assert (made[2:, 0] == 0).all()
    assert (made[:, 1] == 0).all()
    expected = truth(scores[:, 2:], outer[2:].double(), function, lattice=[x[2:] for x in lattice], **options)
    assert_narrowed_once(made[:, 2:], expected, outer[2:].double())
    zero = function, classes, sizes, {**options, "zero_infinity": True}
    made = scaled_gradient(road, zero, "none", scores, outer)
    assert (made[:, :2] == 0).all()
    assert_narrowed_once(made[:, 2:], expected, outer[2:].double())


def losses_by_enumeration(scores, function):
    """(2,), of targets 1 2 and 3 3, by every path there is: differentiable to any order."""
    scores = scores.log_softmax(2) if function is bridge.ctc_loss_with_logits else scores
    frames, sequences, classes = scores.shape
    losses = []
    for n, target in zip(range(sequences), ((1, 2), (3, 3)), strict=True):
        paths = torch.from_numpy(oracle.paths_by_target(frames, classes, 0)[target])
        losses.append(-scores[torch.arange(frames), n, paths].sum(1).logsumexp(0))
    return torch.stack(losses)


SMALL = torch.tensor([[1, 2], [3, 3]]), [5, 5], [2, 2]


@pytest.fixture
def small_sizes():
    with bridge.set_sizes(bridge.Sizes(frames=(8,), labels=(2,), sequences=4)):
        yield


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("logits", torch.float16),
        ("true derivative", torch.float16),
        ("PyTorch's gradient", torch.float16),
        pytest.param("PyTorch's gradient", torch.bfloat16, marks=pytest.mark.full),
    ],
)
def test_second_derivatives(name, dtype):
    """The scale times the direction is beyond float16, what comes of it is not."""
    function, _, _, options = ROWS[name]
    scores = scores_of(function, 4, dtype, 5, 2)
    direction = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for scale, reach in ((2.0**12, 32), (SCALE, 0.25), (SCALE, 2**-14)):
        along, weights = direction * reach, torch.full((2,), scale / 4, dtype=torch.float64)

        def loss(x, scale=scale):
            return function(x, *SMALL, **options) * scale

        def total(x, weights=weights):
            return losses_by_enumeration(x, function) @ weights

        expected = torch.autograd.functional.hvp(total, scores.double(), along.double())[1]
        if name == "PyTorch's gradient":
            expected += scores.double().exp() * along.double() * weights[:, None]
        leaf = scores.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (backward,) = torch.autograd.grad(gradient, leaf, along)
        _, forward = torch.func.jvp(torch.func.grad(loss), (scores,), (along,))
        _, pull_back = torch.func.vjp(torch.func.grad(loss), scores)
        for product in (backward, forward, pull_back(along)[0]):
            assert product.dtype == dtype
            assert_narrowed_once(product, expected, weights * along.double().abs().max(), 1e-6)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("logits", torch.float16),
        ("true derivative", torch.float16),
        ("logits", torch.bfloat16),
        pytest.param("true derivative", torch.bfloat16, marks=pytest.mark.full),
    ],
)
def test_forward_mode_is_as_exact_as_the_loss(name, dtype):
    function, _, _, options = ROWS[name]
    scores = scores_of(function, 4, dtype, 5, 2)
    direction = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).to(dtype) * 1000

    def loss(x):
        return function(x, *SMALL, reduction="none", **options) * SCALE

    def plain(x):
        return losses_by_enumeration(x, function) * SCALE

    _, made = torch.func.jvp(loss, (scores,), (direction,))
    _, expected = torch.func.jvp(plain, (scores.double(),), (direction.double(),))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=SCALE * 1000 * 1e-6)


@pytest.mark.usefixtures("small_sizes")
def test_derivatives_of_the_cotangent():
    """They are in float32, and so is all that they come from."""
    scores = scores_of(bridge.ctc_loss, 4, torch.float16, 5, 2).requires_grad_()
    weights = torch.tensor([SCALE, 1e-9], requires_grad=True)
    direction = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).half()
    losses = bridge.ctc_loss(scores, *SMALL, reduction="none", normalized=False)
    (gradient,) = torch.autograd.grad(losses, scores, weights, create_graph=True)
    (made,) = torch.autograd.grad(gradient, weights, direction)
    plain = functools.partial(losses_by_enumeration, function=bridge.ctc_loss)
    _, expected = torch.func.jvp(plain, (scores.detach().double(),), (direction.double(),))
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", [bridge.ctc_loss, bridge.ctc_loss_with_logits])
def test_the_scale_of_a_training_stays_where_pytorch_s_does(function, reduction):
    def ours(scores):
        scores = scores if function is bridge.ctc_loss_with_logits else scores.float().log_softmax(2).half()
        with bridge.set_sizes(SIZES):
            return function(scores, *LATTICE, reduction=reduction)

    def theirs(scores):
        return functional.ctc_loss(scores.double().log_softmax(2), *LATTICE, reduction=reduction)

    results = []
    for loss in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(T, N, 8, generator=generator)
        weight = (torch.randn(8, 6, generator=generator) / 2).requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.05)
        scaler = torch.amp.GradScaler("cpu")
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            value = loss((features @ weight).half())
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(value.item())
        results.append((scaler.get_scale(), torch.tensor(losses), weight.detach()))
    (scale, losses, weight), (their_scale, their_losses, their_weight) = results
    assert scale == their_scale == SCALE
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, their_losses, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(weight, their_weight, rtol=1e-2, atol=1e-2)
