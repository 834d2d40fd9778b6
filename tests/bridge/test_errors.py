"""PyTorch's exception types, with messages that name the argument, the value, the range and the remedy."""

import numpy as np
import pytest
import torch

import bridge

LOG_PROBS = torch.zeros(5, 2, 4).log_softmax(2)
TARGETS = torch.tensor([[1, 2], [3, 3]])
BATCH_FIRST = LOG_PROBS.transpose(0, 1).contiguous()
LEGAL = {"log_probs": LOG_PROBS, "targets": TARGETS, "input_lengths": [5, 5], "target_lengths": [2, 2]}

ILLEGAL = [
    ({"input_lengths": [6, 1]}, RuntimeError, r"input_lengths\[0\] is 6, .* T = 5 frames: .* \[0, 5\]"),
    ({"input_lengths": [1, -1]}, RuntimeError, r"input_lengths\[1\] is -1, .* \[0, 5\]"),
    ({"target_lengths": [2, 3]}, RuntimeError, r"target_lengths\[1\] is 3, .* S = 2 slots: .* \[0, 2\]"),
    ({"input_lengths": [2, 2], "target_lengths": [5, 5]}, RuntimeError, r"S = 2 .* and target_lengths swapped\?"),
    ({"input_lengths": [1, 2, 3]}, RuntimeError, r"input_lengths has shape \(3,\), .* N = 2 .* \(2,\)"),
    ({"input_lengths": torch.tensor([1.0, 2])}, RuntimeError, r"input_lengths must be integral, .*float32.*long"),
    ({"target_lengths": torch.tensor([True, True])}, RuntimeError, r"target_lengths must be integral, .*bool"),
    ({"blank": 4}, RuntimeError, r"blank is 4, .* C = 4 classes: .* \[0, 4\)"),
    ({"blank": -1}, RuntimeError, r"blank is -1, .* \[0, 4\).* C - 1"),
    ({"blank": 1.0}, TypeError, r"blank must be .* int; got 1.0"),
    ({"blank": True}, TypeError, r"blank must be .* got the bool"),
    ({"reduction": "max"}, ValueError, r"reduction must be one of 'none', 'mean', 'sum', 'batchmean', .*; got 'max'"),
    ({"reduction": None}, ValueError, r"reduction must be one of .* got None"),
    ({"zero_infinity": 1}, TypeError, r"zero_infinity must be True or False, .* got 1"),
    ({"batch_first": "yes"}, TypeError, r"batch_first must be True or False, .* 'yes'"),
    ({"normalized": None}, TypeError, r"normalized must be True or False, .* None"),
    ({"targets": TARGETS.bool()}, TypeError, r"targets must hold the indices .* torch.bool.*targets.long\(\).argmax"),
    ({"targets": TARGETS + 0.5}, RuntimeError, r"targets .* no whole numbers, such as 1.5: .* indices of classes\.$"),
    ({"targets": "ab"}, TypeError, r"targets must be a tensor of integers, got str"),
    ({"targets": TARGETS[:1]}, RuntimeError, r"targets must have shape \(N, S\) with N = 2.* got \(1, 2\)"),
    ({"targets": TARGETS[None]}, RuntimeError, r"targets must have shape .* got \(1, 2, 2\)"),
    ({"targets": TARGETS[0, 0]}, RuntimeError, r"targets must have shape .* got \(\)"),
    ({"targets": TARGETS.flatten()[:3]}, RuntimeError, r"targets holds 3 labels .* sum to 4"),
    ({"targets": torch.tensor([[1, 0], [1, 1]])}, RuntimeError, r"targets\[0, 1\] is 0, which is the blank"),
    ({"targets": torch.tensor([[1, 2], [9, 1]])}, RuntimeError, r"targets\[1, 0\] is 9, .* \[0, 4\)"),
    ({"targets": torch.tensor([[1, 2], [-1, 1]])}, RuntimeError, r"targets\[1, 0\] is -1, .* \[0, 4\)"),
    ({"targets": torch.tensor([1, 2, 3, 9])}, RuntimeError, r"targets\[3\] \(label 1 of sequence 1\) is 9"),
    ({"targets": TARGETS + 2**32}, RuntimeError, r"targets\[0, 0\] is 4294967297"),
    ({"input_lengths": [5.0, 4.0]}, RuntimeError, r"got torch.float32. Convert it with input_lengths.long\(\)\.$"),
    ({"input_lengths": [1.0, 0.9]}, RuntimeError, r"0.9, a length relative to T: .*\(input_lengths \* T\).round\(\)"),
    ({"target_lengths": [1.0, 0.5]}, RuntimeError, r"0.5, a length relative to S: .*\(target_lengths \* S\).round\(\)"),
    ({"input_lengths": [1.0, 1.0]}, RuntimeError, r"counts with input_lengths.long\(\), .*relative to T"),
    ({"input_lengths": [5.0, 3.5]}, RuntimeError, r"It holds 3.5, which is no whole number"),
    ({"input_lengths": [5.0, torch.nan]}, RuntimeError, r"It holds nan, which is no length"),
    ({"input_lengths": torch.ones(2, 5).bool()}, RuntimeError, r"a mask, .* are input_lengths.sum\(dim=-1\)"),
    ({"input_lengths": torch.ones(2, 5).tril(3).long()}, RuntimeError, r"For a mask, .* input_lengths.sum\(dim=-1\)"),
    ({"input_lengths": torch.eye(6)[[5, 3]].long()}, RuntimeError, r"For one-hot .* input_lengths.argmax\(dim=-1\)"),
    ({"input_lengths": None}, TypeError, r"input_lengths must be .* got NoneType. Pass lengths"),
    ({"input_lengths": [[5], [5, 5]]}, TypeError, r"input_lengths must be .* got list of 2 sequences. Pass lengths"),
    ({"targets": None}, TypeError, r"targets must be .* got NoneType. Pass the labels"),
    ({"targets": ["ab", "c"]}, TypeError, r"targets must be .* got list \['ab', 'c'\].* encoded"),
    ({"targets": np.array(["ab", "c"])}, TypeError, r"targets must be .* got ndarray .* encoded"),
    (
        {"targets": list(TARGETS)},
        TypeError,
        r"targets .* list of 2 sequences. .*torch.cat\(targets\), .*pad_sequence\(t",
    ),
    ({"targets": [[1, 2], [3]]}, TypeError, r"targets .* list of 2 sequences. .*torch.cat\(\[torch.as_tensor\(row\)"),
    ({"targets": [np.array([1, 2]), np.array([3])]}, TypeError, r"targets .* list of 2 sequences. .*torch.cat"),
    ({"log_probs": BATCH_FIRST}, RuntimeError, r"targets must .* If log_probs is \(N, T, C\), pass batch_first=True"),
    (
        {"log_probs": BATCH_FIRST, "targets": TARGETS.flatten()},
        RuntimeError,
        r"input_lengths has shape .* If log_probs is \(N, T, C\), pass batch_first=True",
    ),
    (
        {"log_probs": BATCH_FIRST, "targets": [1] * 10, "input_lengths": 5, "target_lengths": 2},
        RuntimeError,
        "see batch",
    ),
    ({"batch_first": True}, RuntimeError, r"targets must .* for \(T, N, C\) leave batch_first out"),
    ({"log_probs": LOG_PROBS.numpy()}, TypeError, r"log_probs must be a torch.Tensor, got ndarray. .*as_tensor"),
    (
        {"log_probs": LOG_PROBS.to(torch.float8_e5m2)},
        NotImplementedError,
        r"log_probs must be .*float8.*log_probs.float",
    ),
    ({"log_probs": LOG_PROBS.to_sparse()}, NotImplementedError, r"log_probs must be .*sparse_coo.*to_dense"),
    ({"log_probs": LOG_PROBS.long()}, NotImplementedError, r"log_probs must be .*floating-point.*int64.*float\(\)"),
    ({"log_probs": LOG_PROBS.cfloat()}, NotImplementedError, r"log_probs must be .*complex64"),
    ({"log_probs": LOG_PROBS.tolist()}, TypeError, r"log_probs must be a torch.Tensor, got list"),
    ({"log_probs": LOG_PROBS[0, 0]}, RuntimeError, r"log_probs must have shape \(T, N, C\).* got \(4,\)"),
    ({"log_probs": LOG_PROBS[None]}, RuntimeError, r"log_probs must have shape \(T, N, C\).* got \(1, 5, 2, 4\)"),
    ({"log_probs": LOG_PROBS[:0]}, RuntimeError, r"log_probs must not be empty, got shape \(0, 2, 4\)"),
    ({"log_probs": LOG_PROBS[:, :0]}, RuntimeError, r"log_probs must not be empty"),
    ({"log_probs": LOG_PROBS[:, 0]}, RuntimeError, r"targets must have shape \(S,\) or \(1, S\) for one sequence"),
    (
        {"log_probs": LOG_PROBS[:, 0], "targets": TARGETS[0], "input_lengths": 5, "target_lengths": 1},
        RuntimeError,
        r"targets holds 2 labels .* sum to 1",
    ),
]


@pytest.mark.parametrize(
    ("change", "exception", "message"), ILLEGAL, ids=[f"{next(iter(c))} {m[:24]}" for c, _, m in ILLEGAL]
)
def test_illegal_argument(change, exception, message):
    with pytest.raises(exception, match=message) as raised:
        bridge.ctc_loss(**LEGAL | change)
    assert type(raised.value) is exception


@pytest.mark.parametrize(("change", "exception", "message"), [row for row in ILLEGAL if "normalized" not in row[0]])
def test_illegal_argument_to_the_fused_loss(change, exception, message):
    arguments = LEGAL | change
    with pytest.raises(exception, match=message.replace("log_probs", "logits")):
        bridge.ctc_loss_with_logits(arguments.pop("log_probs"), **arguments)


def test_legal_arguments_raise_nothing():
    assert bridge.ctc_loss(**LEGAL).isfinite()


def test_messages_about_one():
    with pytest.raises(RuntimeError, match=r"nor can 1 other\)"):
        bridge.forced_align(LOG_PROBS[:2], torch.tensor([[1, 1], [2, 2]]), 2, 2)
    with pytest.raises(RuntimeError, match=r"take 2 frames, but .* is 1"):
        bridge.forced_align(LOG_PROBS[:1, :1], torch.tensor([[1, 2]]), 1, 2)
    with pytest.raises(RuntimeError, match=r"T = 1 frame:"):
        bridge.ctc_loss(LOG_PROBS[:1], TARGETS, 2, 2)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((400, 32, 29, 50), r"must be a list of shapes .*\[\(400, 32, 29, 50\)\]; got \(400, 32, 29, 50\)"),
        ([(400, 32, 29)], r"must be a list of shapes .* of 3 numbers"),
        ([(400, 32, 29, 1.5)], r"each size in shapes .* got 1.5"),
    ],
)
def test_warmup_takes_a_list_of_shapes(shapes, message):
    with pytest.raises(TypeError, match=message):
        bridge.warmup(shapes)
