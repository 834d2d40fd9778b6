"""What crosses, how, and who may write where afterwards."""

import jax
import numpy as np
import pytest
import torch

import bridge
from bridge import _dlpack


def test_an_aligned_tensor_is_shared_and_not_copied():
    tensor = torch.arange(64, dtype=torch.float32).reshape(4, 4, 4)
    assert _dlpack.to_jax(tensor).unsafe_buffer_pointer() == tensor.data_ptr()


def test_an_array_is_shared_and_not_copied():
    array = jax.numpy.arange(64.0)
    pointer = array.unsafe_buffer_pointer()
    assert _dlpack.to_torch(array).data_ptr() == pointer


def test_host_integers_are_shared():
    tensor = torch.arange(4)
    made = _dlpack.integers_to_jax(tensor, torch.device("cpu"))
    assert isinstance(made, np.ndarray)
    assert made.ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_type_crosses_as_itself(dtype):
    tensor = torch.linspace(-1, 1, 32, dtype=dtype).reshape(4, 8)
    with _dlpack.crossing(tensor):
        array = _dlpack.to_jax(tensor)
        assert array.dtype.name == str(dtype).removeprefix("torch.")
        back = _dlpack.to_torch(array + 0)
    assert back.dtype == dtype
    torch.testing.assert_close(back, tensor, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_to_share(dtype):
    tensor = torch.zeros(3, 0, dtype=dtype)
    with _dlpack.crossing(tensor):
        assert _dlpack.to_torch(_dlpack.to_jax(tensor)).shape == (3, 0)
        assert _dlpack.to_torch(_dlpack.to_jax(tensor)).dtype == dtype


def test_the_caller_s_own_settings_stay_as_they_are():
    x64 = jax.config.jax_enable_x64
    loss = bridge.ctc_loss(torch.zeros(3, 1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.long), [3], [1])
    assert loss.dtype == torch.float64
    assert jax.config.jax_enable_x64 == x64
    assert jax.numpy.zeros(1).dtype == (np.float64 if x64 else np.float32)


def test_float64_is_not_narrowed_on_the_way():
    scores = torch.full((1, 1, 2), -1 / 3, dtype=torch.float64)
    loss = bridge.ctc_loss(scores, torch.ones(1, 1, dtype=torch.long), [1], [1])
    assert loss.item() == 1 / 3


def test_results_belong_to_the_caller():
    """An in-place change of one result reaches neither the input nor a later result."""
    scores = torch.randn(6, 2, 3).log_softmax(2).requires_grad_()
    problem = torch.tensor([[1], [2]]), [6, 6], [1, 1]
    before = scores.detach().clone()
    loss = bridge.ctc_loss(scores, *problem, reduction="none")
    kept = loss.detach().clone()
    loss.sum().backward()
    with torch.no_grad():
        loss += 1
        scores.grad.zero_()
    torch.testing.assert_close(scores.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(bridge.ctc_loss(scores, *problem, reduction="none"), kept, rtol=0, atol=0)


def test_an_input_changed_after_the_call_does_not_change_the_result():
    """JAX computes asynchronously; the result must be complete before the caller can touch the input."""
    scores = torch.randn(64, 8, 16).log_softmax(2)
    problem = torch.ones(8, 4, dtype=torch.long), [64] * 8, [4] * 8
    expected = bridge.ctc_loss(scores.clone(), *problem, reduction="none")
    for _ in range(30):
        mine = scores.clone()
        loss = bridge.ctc_loss(mine, *problem, reduction="none")
        mine.fill_(-1e3)
        assert torch.equal(loss, expected)


def test_a_device_that_jax_lacks():
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX has a GPU backend")
    with pytest.raises(RuntimeError, match=r"on cuda:0, but this JAX has no cuda backend.*jax\[cuda1\d\].*\.cpu\(\)"):
        _dlpack._device(torch.device("cuda:0"))


def test_a_device_that_the_bridge_does_not_know():
    with pytest.raises(RuntimeError, match=r"on mps: .* CPU and CUDA.*\.cpu\(\)"):
        _dlpack._device(torch.device("mps"))
