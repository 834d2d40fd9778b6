"""`bridge.diagnose` says of tensors what `jaxctc.diagnose` says of arrays."""

import batches
import numpy as np
import pytest
import torch

import bridge
import jaxctc

BROKEN = {name: (codes.split(), arguments) for name, codes, arguments in batches.broken()}


def tensors(arguments):
    return {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


@pytest.mark.parametrize(
    "name", ["too few frames", "a mask as lengths", "float16 overflows", "log of a float16 softmax", "NaN", "logits"]
)
def test_it_says_the_same_as_of_arrays(name):
    codes, arguments = BROKEN[name]
    found = bridge.diagnose(**tensors(arguments))
    assert sorted(found.codes) == sorted(codes)
    assert str(found) == str(jaxctc.diagnose(**arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_type_and_layout(dtype):
    batch = tensors(batches.healthy())
    scores = batch["log_probs"].to(dtype).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    lengths = [torch.tensor(n) for n in batches.healthy()["input_lengths"]]
    found = bridge.diagnose(**{**batch, "log_probs": scores, "input_lengths": lengths})
    assert (found.ok, found.codes, len(found.rows)) == (True, (), batches.N)


def test_a_half_precision_that_overflows_is_known_as_such():
    scores = torch.from_numpy(
        batches.logits_of(*(batches.healthy()[k] for k in ("targets", "input_lengths", "target_lengths")))
    )
    scores[0, 0, 0] = torch.inf
    batch = {**tensors(batches.healthy()), "log_probs": scores.bfloat16(), "from_logits": True}
    (finding,) = bridge.diagnose(**batch).findings
    assert (finding.code, finding.evidence["precision"]) == ("half-overflow", "bfloat16")


def test_tensors_without_values():
    batch = tensors(batches.healthy())
    with pytest.raises(TypeError, match="a tensor has none"):
        bridge.diagnose(**{**batch, "log_probs": batch["log_probs"].to("meta")})
    with pytest.raises(TypeError, match="a tensor has none"):
        torch.func.vmap(lambda x: bridge.diagnose(**{**batch, "log_probs": x}) and x)(batch["log_probs"][None])
