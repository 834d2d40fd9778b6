"""PyTorch's machinery around a loss: compiler, export, checkpoints, hooks, other devices, other processes."""

import copy
import datetime
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import bridge

T, N, C, S = 12, 3, 5, 3
SCORES = torch.randn(T, N, C, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[1, 2, 2], [4, 3, 0], [1, 0, 0]])
LENGTHS = torch.tensor([12, 9, 7]), torch.tensor([3, 2, 1])

# PyTorch's own machinery warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def criterion(scores, targets=TARGETS, *lengths):
    return bridge.ctc_loss(scores.log_softmax(2), targets, *(lengths or LENGTHS))


def value_and_gradient(function=criterion, *args):
    leaf = SCORES.clone().requires_grad_()
    loss = function(leaf, *args)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch._dynamo.reset()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = bridge.CTCLoss()

    def forward(self, scores, targets, input_lengths, target_lengths):
        return self.criterion(scores.log_softmax(2), targets, input_lengths, target_lengths)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compile_whole(backend):
    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled, TARGETS, *LENGTHS), value_and_gradient())


@pytest.mark.parametrize(
    "reduction",
    ["none", "elementwise_mean", *(pytest.param(name, marks=pytest.mark.full) for name in ("sum", "mean_volume"))],
)
def test_compile_other_options_and_forms(reduction):
    def loss(scores):
        return bridge.ctc_loss_with_logits(scores, TARGETS, [12, 9, 7], [3, 2, 1], 0, reduction, True).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled), value_and_gradient(loss))


def test_compile_with_dynamic_shapes():
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True, dynamic=True)
    for frames in (12, 14, 15):
        scores = torch.randn(frames, N, C, requires_grad=True)
        torch.testing.assert_close(compiled(scores), criterion(scores))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="PyTorch before 2.13 cannot compile torch.func.grad of an operator with a gradient of its own",
)
def test_compile_a_gradient_of_torch_func():
    compiled = torch.compile(torch.func.grad(criterion), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(SCORES), value_and_gradient()[1])


def test_compile_without_a_gradient():
    with torch.no_grad():
        loss = torch.compile(criterion, backend="eager", fullgraph=True)(SCORES)
    torch.testing.assert_close(loss, value_and_gradient()[0])


def test_an_illegal_value_is_reported_out_of_a_compiled_program():
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"targets\[0, 1\] is 9"):
        compiled(SCORES, torch.tensor([[1, 9, 2], [4, 3, 0], [1, 0, 0]]), *LENGTHS)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    def checkpointed(scores):
        return checkpoint(criterion, scores, use_reentrant=use_reentrant)

    torch.testing.assert_close(value_and_gradient(checkpointed), value_and_gradient())


def test_saved_tensor_hooks():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        result = value_and_gradient()
    torch.testing.assert_close(result, value_and_gradient())
    assert any(x.shape[-1] == C and x.ndim == 3 for x in saved)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_export(strict, requires_grad):
    example = SCORES.clone().requires_grad_(requires_grad)
    exported = torch.export.export(Model(), (example, TARGETS, *LENGTHS), strict=strict).module()
    torch.testing.assert_close(value_and_gradient(exported, TARGETS, *LENGTHS), value_and_gradient())


def test_export_with_a_dynamic_shape():
    shapes = {0: torch.export.Dim("T", min=10, max=100)}, None, None, None
    exported = torch.export.export(Model(), (SCORES, TARGETS, *LENGTHS), dynamic_shapes=shapes).module()
    longer = torch.randn(20, N, C)
    torch.testing.assert_close(exported(longer, TARGETS, *LENGTHS), criterion(longer))


@pytest.mark.parametrize("lengths_too", [True, False])
def test_meta_tensors_have_shapes_only(lengths_too):
    leaf = torch.zeros(T, N, C, device="meta", requires_grad=True)
    rest = [x.to("meta") for x in (TARGETS, *LENGTHS)] if lengths_too else [TARGETS, *LENGTHS]
    loss = bridge.ctc_loss(leaf, *rest, reduction="none")
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (N,), torch.float32)
    loss.sum().backward()
    assert (leaf.grad.device.type, leaf.grad.shape) == ("meta", (T, N, C))


def test_fake_tensors():
    with FakeTensorMode():
        leaf = torch.zeros(T, N, C, dtype=torch.float64, requires_grad=True)
        targets, frames, labels = torch.ones(N, S, dtype=torch.long), torch.full((N,), T), torch.full((N,), S)
        loss = bridge.ctc_loss(leaf, targets, frames, labels)
        loss.backward()
    assert (loss.shape, loss.dtype, leaf.grad.shape) == ((), torch.float64, leaf.shape)


def test_autocast_computes_in_float32():
    features = torch.randn(T, N, 8, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(8, C, generator=torch.Generator().manual_seed(2), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = features @ weight
        loss = bridge.ctc_loss(narrow.log_softmax(2), TARGETS, *LENGTHS)
        expected = functional.ctc_loss(narrow.log_softmax(2), TARGETS, *LENGTHS)
    loss.backward()
    assert (narrow.dtype, loss.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_the_module_copies_and_pickles(copied):
    made = copied(bridge.CTCLoss(1, "sum", zero_infinity=True, normalized=False, batch_first=True))
    assert repr(made) == repr(bridge.CTCLoss(1, "sum", zero_infinity=True, normalized=False, batch_first=True))


def test_operators_pass_pytorch_s_own_check():
    arguments = SCORES.clone().requires_grad_(), TARGETS, *LENGTHS, 0, False, False, False
    torch.library.opcheck(torch.ops.jaxctc.losses.default, arguments)
    torch.library.opcheck(torch.ops.jaxctc.losses_and_gradient.default, (SCORES, *arguments[1:]))


def half_a_batch(rank, port):
    """What each of two processes does; both arrive at the gradient of the whole."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 5)
    features, targets = torch.randn(12, 4, 8), torch.randint(1, 5, (4, 3))

    def loss(model, part):
        return bridge.ctc_loss(model(features[:, part]).log_softmax(2), targets[part], 12, 3)

    whole = torch.autograd.grad(loss(model, slice(0, 4)), model.parameters())
    address, patience = f"tcp://127.0.0.1:{port}", datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=patience)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        loss(wrapped, slice(2 * rank, 2 * rank + 2)).backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], list(whole))
    finally:
        torch.distributed.destroy_process_group()


def test_distributed_data_parallel():
    """Neither is this process, in which PyTorch has not always come to an end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = Path(__file__)
    command = f"import runpy; runpy.run_path({str(path)!r})['half_a_batch']({{}}, {port})"
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", command.format(rank)], cwd=path.parents[2])
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
