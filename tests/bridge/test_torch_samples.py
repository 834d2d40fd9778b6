"""PyTorch's own samples of its loss, as its test suite draws them, through the bridge."""

import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import bridge

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db


def of_the_operator(dtype):
    [info] = [info for info in op_db if info.name == "nn.functional.ctc_loss"]
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        yield sample.input.detach(), sample.args, sample.kwargs


def of_the_module(dtype):
    [info] = [info for info in module_db if info.module_cls is torch.nn.CTCLoss]
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True):
        scores, *args = sample.forward_input.args
        yield scores.detach(), tuple(args), sample.constructor_input.kwargs


SAMPLES = {"OpInfo": of_the_operator, "ModuleInfo": of_the_module}
COUNTS = {"OpInfo": 12, "ModuleInfo": 40}


@pytest.fixture(params=SAMPLES)
def samples(request):
    drawn = list(SAMPLES[request.param](torch.float64))
    assert len(drawn) >= COUNTS[request.param]
    return drawn


def value_and_gradient(function, scores, *args, **options):
    leaf = scores.clone().requires_grad_()
    loss = function(leaf, *args, **options)
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("source", SAMPLES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(source, dtype):
    for scores, args, options in SAMPLES[source](dtype):
        ours = value_and_gradient(bridge.ctc_loss, scores, *args, **options)
        theirs = value_and_gradient(functional.ctc_loss, scores, *args, **options)
        # In float32 it is PyTorch's gradient that is off by as much; see the README.
        tolerance = {"rtol": 1e-5, "atol": 2e-4} if dtype == torch.float32 else {}
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def test_module(samples):
    for scores, args, options in samples:
        torch.testing.assert_close(
            bridge.CTCLoss(**options)(scores, *args), torch.nn.CTCLoss(**options)(scores, *args), equal_nan=True
        )


def finite(samples):
    """Numerical differences of an infinite loss say nothing. One sample of each kind of shapes is enough."""
    kinds = {}
    for scores, args, options in samples:
        if bridge.ctc_loss(scores, *args, **options).isfinite().all():
            kinds.setdefault((args[0].ndim, scores.ndim), (scores, args, options))
    return list(kinds.values())


def test_derivatives_behind_log_softmax(samples):
    """As PyTorch's own wrapper tests it; the second derivative is marked there as an expected failure."""
    for scores, args, options in finite(samples):

        def loss(x, args=args, options=options):
            return bridge.ctc_loss(x.log_softmax(-1), *args, **options)

        assert gradcheck(loss, (scores.requires_grad_(),), fast_mode=True)
        assert gradgradcheck(loss, (scores,), fast_mode=True)


def test_derivatives_of_leaves(samples):
    for scores, args, options in finite(samples):

        def loss(x, args=args, options=options):
            return bridge.ctc_loss(x, *args, **options, normalized=False)

        assert gradcheck(loss, (scores.requires_grad_(),), fast_mode=True)
        assert gradgradcheck(loss, (scores,), fast_mode=True)
