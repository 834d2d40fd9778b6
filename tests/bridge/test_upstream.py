"""Upstream gradients that are no plain tensors: batched, of a subclass, negated, or given to the node itself."""

import io

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.autograd.functional import jacobian
from torch.nn import functional
from torch.testing._internal.two_tensor import TwoTensor

import bridge

T, N, S = 5, 3, 2
TARGETS = torch.tensor([[1, 1], [3, 2], [2, 2]])
LENGTHS = torch.tensor([5, 2, 4]), torch.tensor([2, 2, 1])  # of no padding, and of some
FINITE = torch.tensor([5, 3, 4]), LENGTHS[1]

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


@pytest.fixture(autouse=True)
def _small_sizes():
    with bridge.set_sizes(bridge.Sizes(frames=(8,), labels=(4,), sequences=4)):
        yield


def leaf(dtype=torch.float64, classes=4):
    scores = torch.randn(T, N, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return scores.to(dtype).requires_grad_()


def log_probs_loss(x, reduction="none", lengths=FINITE, **options):
    return bridge.ctc_loss(x, TARGETS, *lengths, reduction=reduction, **options)


def logits_loss(x, reduction="none", lengths=FINITE):
    return bridge.ctc_loss_with_logits(x, TARGETS, *lengths, reduction=reduction)


LOSSES = {
    "log_probs": (log_probs_loss, 4),
    "log_probs, true derivative": (lambda x, *args: log_probs_loss(x, *args, normalized=False), 4),
    "log_probs, classes of the vocabulary": (log_probs_loss, 40),
    "logits": (logits_loss, 4),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_upstream_gradients_gives_what_each_gives(name, reduction):
    function, classes = LOSSES[name]
    for dtype, lengths in ((torch.float64, FINITE), (torch.float64, LENGTHS), (torch.float16, FINITE)):
        x = leaf(dtype, classes)
        loss = function(x, reduction, lengths)
        upstream = torch.randn(4, *loss.shape, generator=torch.Generator().manual_seed(1)).to(loss.dtype)
        upstream.reshape(4, -1)[0, 0], upstream.reshape(4, -1)[1] = 0, 1
        expected = torch.stack([grad(loss, x, each, retain_graph=True)[0] for each in upstream])
        ways = {
            "is_grads_batched": grad(loss, x, upstream, is_grads_batched=True, retain_graph=True)[0],
            "with its graph": grad(loss, x, upstream, is_grads_batched=True, create_graph=True)[0].detach(),
            "vmap": torch.vmap(lambda u, loss=loss, x=x: grad(loss, x, u, retain_graph=True)[0])(upstream),
            "torch.func": torch.vmap(
                torch.func.vjp(lambda x, lengths=lengths: function(x, reduction, lengths), x.detach())[1]
            )(upstream)[0],
        }
        for way, found in ways.items():
            torch.testing.assert_close(found, expected, equal_nan=True, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("normalized", [True, False])
def test_float16_and_the_scale_of_a_batch(normalized):
    """The gradient of a sequence times 65,536, which float16 cannot represent, is finite where the product is."""
    x = (leaf(classes=4) * 3).detach().half().requires_grad_()
    loss = log_probs_loss(x, normalized=normalized)
    scale = torch.tensor([1e-3, 2.0**15]).repeat(N, 1).T.contiguous()
    found = grad(loss, x, scale, is_grads_batched=True, retain_graph=True)[0]
    wide = leaf(torch.float32).detach().copy_(x.detach()).requires_grad_()
    expected = grad(log_probs_loss(wide, normalized=normalized), wide, scale, is_grads_batched=True)[0].half()
    assert not found[0].isinf().any()
    torch.testing.assert_close(found, expected)


def posteriors(kind):
    return lambda x: getattr(bridge.ctc_posteriors(x, TARGETS, *FINITE), kind)


@pytest.mark.parametrize(
    "function",
    [logits_loss, posteriors("classes"), pytest.param(posteriors("states"), marks=pytest.mark.full)],
    ids=["loss", "classes", "states"],
)
def test_pytorch_s_functions_that_batch_upstream_gradients(function):
    x = leaf()
    expected = jacobian(function, x.detach())
    torch.testing.assert_close(jacobian(function, x.detach(), vectorize=True), expected)
    torch.testing.assert_close(torch.func.jacrev(function)(x.detach()), expected)
    torch.testing.assert_close(
        torch.vmap(function)(torch.stack([x, 2 * x])), torch.stack([function(x), function(2 * x)])
    )
    assert gradcheck(function, (x,), check_batched_grad=True, fast_mode=True)


def test_posteriors_have_one_derivative():
    x = leaf()
    (first,) = grad(posteriors("classes")(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("function", [log_probs_loss, logits_loss])
def test_upstream_of_a_subclass_and_with_the_negative_bit(function):
    x, ones = leaf(), torch.ones(N, dtype=torch.float64)
    loss = function(x)
    (expected,) = grad(loss, x, ones, retain_graph=True)
    (both,) = grad(loss, x, TwoTensor(ones, 2 * ones), retain_graph=True)
    assert isinstance(both, TwoTensor)
    torch.testing.assert_close((both.a, both.b), (expected, 2 * expected))
    negative = (ones * 1j).conj().imag
    assert negative.is_neg()
    for create_graph in (False, True):
        (found,) = grad(loss, x, negative, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(found.detach(), -expected)


def test_the_node_is_a_function_of_the_upstream_gradient():
    """ESPnet calls it so, to look at the gradient before the backward pass."""
    x = leaf()
    theirs = functional.ctc_loss(x, TARGETS, *FINITE, reduction="none")
    ours = log_probs_loss(x)
    expected = theirs.grad_fn(torch.ones_like(theirs))
    for _ in range(2):
        torch.testing.assert_close(ours.grad_fn(torch.ones_like(ours)).detach(), expected.detach())
    ours.sum().backward()
    torch.testing.assert_close(x.grad, expected.detach())
    subclass = log_probs_loss(TwoTensor(x.detach(), x.detach()).requires_grad_())
    torch.testing.assert_close(subclass.grad_fn(torch.ones_like(subclass)).a.detach(), expected.detach())


class Model(torch.nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.criterion = bridge.CTCLoss(**options)

    def forward(self, x, targets, input_lengths, target_lengths):
        return self.criterion(x.log_softmax(2), targets, input_lengths, target_lengths)


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    return torch.jit.load(file)


class ModelOfLogits(torch.nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.criterion = bridge.CTCWithLogitsLoss(**options)

    def forward(self, x, targets, input_lengths, target_lengths):
        return self.criterion(x, targets, input_lengths, target_lengths)


@pytest.mark.parametrize(
    ("model_of", "options"),
    [
        (Model, {}),
        (Model, {"reduction": "none", "zero_infinity": True}),
        (Model, {"reduction": "sum", "normalized": False}),
        (ModelOfLogits, {"reduction": "sum", "zero_infinity": True}),
    ],
)
def test_torchscript(model_of, options):
    x, model = leaf(torch.float32), model_of(**options)
    arguments = TARGETS, *LENGTHS
    traced = torch.jit.trace(model, (torch.zeros_like(x), *arguments))
    scripted = torch.jit.script(model)
    expected = model(x, *arguments)
    (slope,) = grad(expected.sum(), x)
    for program in (scripted, traced, saved_and_loaded(scripted), saved_and_loaded(traced)):
        found = program(x, *arguments)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grad(found.sum(), x)[0], slope, equal_nan=True)
    with pytest.raises(RuntimeError, match=r"targets\[0, 0\] is 9"):
        scripted(x, TARGETS + 8, *LENGTHS)
