"""Alignment, posteriors and decoding of tensors: the same as of arrays, whatever is padded on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import bridge
import jaxctc

T, N, C, S, BLANK = 20, 3, 5, 4, 4
TARGETS = torch.tensor([[1, 1, 2, 0], [3, 0, -9, -9], [2, 1, 3, 2]])
FRAMES, COUNTS = [20, 13, 9], [4, 2, 4]
SIZES = [
    pytest.param(None, id="exact"),
    pytest.param(bridge.Sizes(), marks=pytest.mark.full, id="padded"),
    pytest.param(bridge.Sizes(frames=(24,), sequences=2), id="in blocks"),
]


@pytest.fixture(autouse=True)
def _in_blocks():
    """What is compiled for one test serves the others."""
    with bridge.set_sizes(bridge.Sizes(frames=(24,), sequences=2)):
        yield


def log_probs(dtype=torch.float32):
    return torch.randn(T, N, C, generator=torch.Generator().manual_seed(0)).log_softmax(2).to(dtype)


def array(x):
    return x.float().numpy() if x.dtype == torch.bfloat16 else x.detach().numpy()


def equal(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(array(x), np.asarray(y, np.float64), rtol=1e-6, atol=1e-7)


LATTICE = TARGETS.numpy(), np.array(FRAMES), np.array(COUNTS)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_same_as_jaxctc(sizes):
    scores = log_probs()
    with bridge.set_sizes(sizes):
        problem = scores, TARGETS, FRAMES, COUNTS, BLANK
        equal(bridge.forced_align(*problem), jaxctc.forced_align(scores.numpy(), *LATTICE, BLANK))
        equal(bridge.ctc_posteriors(*problem), jaxctc.ctc_posteriors(scores.numpy(), *LATTICE, BLANK))
        equal(
            bridge.greedy_decode(scores, FRAMES, BLANK), jaxctc.greedy_decode(scores.numpy(), np.array(FRAMES), BLANK)
        )


@pytest.mark.parametrize("turned", [False, True])
def test_the_batch_first(turned):
    """Be it so in memory, or behind a transposed view."""
    scores = log_probs()
    given = scores.transpose(0, 1) if turned else scores.transpose(0, 1).contiguous()
    for function, rest in (
        (bridge.forced_align, (TARGETS, FRAMES, COUNTS, BLANK)),
        (bridge.greedy_decode, (FRAMES, BLANK)),
    ):
        equal(function(given, *rest, batch_first=True), function(scores, *rest))
    posteriors = bridge.ctc_posteriors(given, TARGETS, FRAMES, COUNTS, BLANK, batch_first=True)
    equal([x.transpose(0, 1) for x in posteriors], bridge.ctc_posteriors(scores, TARGETS, FRAMES, COUNTS, BLANK))


def test_end_to_end_and_one_sequence():
    scores = log_probs()
    end_to_end = torch.cat([row[:count] for row, count in zip(TARGETS, COUNTS, strict=True)])
    for function in (bridge.forced_align, bridge.ctc_posteriors):
        want = function(scores, TARGETS, FRAMES, COUNTS, BLANK)
        equal(function(scores, end_to_end, FRAMES, COUNTS, BLANK), want)
        axis = 0 if function is bridge.forced_align else 1
        equal(function(scores[:, 0], TARGETS[0], 20, 4, BLANK), [x.select(axis, 0) for x in want])
    want = bridge.greedy_decode(scores, FRAMES, BLANK)
    equal(bridge.greedy_decode(scores[:, 1], 13, BLANK), [x[1] for x in want])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types(dtype):
    scores = log_probs(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    aligned = bridge.forced_align(scores, TARGETS.int(), FRAMES, COUNTS, BLANK)
    assert (aligned.labels.dtype, aligned.scores.dtype) == (torch.int32, dtype)
    assert bridge.forced_align(scores, TARGETS, FRAMES, COUNTS, BLANK).labels.dtype == torch.int64
    picked = scores.transpose(0, 1).gather(2, aligned.labels.long()[:, :, None])[:, :, 0]
    live = torch.arange(T) < torch.tensor(FRAMES)[:, None]
    assert torch.equal(aligned.scores, torch.where(live, picked, 0))
    states, classes = bridge.ctc_posteriors(scores, TARGETS, FRAMES, COUNTS, BLANK)
    assert states.dtype == classes.dtype == wide
    torch.testing.assert_close(states.sum(2), live.T.to(wide), atol=1e-5, rtol=0)
    decoded = bridge.greedy_decode(scores, FRAMES, BLANK)
    assert (decoded.labels.dtype, decoded.log_probs.dtype) == (torch.int64, wide)


def test_posteriors_can_be_differentiated():
    scores = log_probs(torch.float64)[:6].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tuple(bridge.ctc_posteriors(x, TARGETS[:, :2], [6, 5, 2], [2, 2, 2], BLANK)),
        scores,
        fast_mode=True,
    )
    states, _ = bridge.ctc_posteriors(scores, TARGETS[:, :2], [6, 5, 2], [2, 2, 2], BLANK)
    assert not torch.isnan(torch.autograd.grad(states[:, :, 1].sum(), scores)[0]).any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_beam_search(batch_first):
    """It is the core's, in blocks and padded; a function of JAX arrays may add scores."""

    def shorter(labels, lengths):
        del labels
        return jnp.full((len(lengths), C), -1.0)

    scores = log_probs(torch.float64)
    given = scores.transpose(0, 1).contiguous() if batch_first else scores
    for options in ({}, {"score_function": shorter}):
        with jax.enable_x64(True):
            want = jaxctc.beam_search_decode(scores.numpy(), np.array(FRAMES), BLANK, beam_width=5, **options)
        for sizes in (None, bridge.Sizes(sequences=2)):
            with bridge.set_sizes(sizes):
                found = bridge.beam_search_decode(
                    given, FRAMES, BLANK, beam_width=5, batch_first=batch_first, **options
                )
            assert [x.dtype for x in found] == [torch.int64, torch.int64, torch.float64]
            for x, y in zip(found, want, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-12)
    alone = bridge.beam_search_decode(scores[:, 1], FRAMES[1], BLANK, beam_width=5)
    equal(alone, [x[1] for x in bridge.beam_search_decode(scores, FRAMES, BLANK, beam_width=5)])
    with pytest.raises(ValueError, match="beam_width is 0"):
        bridge.beam_search_decode(scores, FRAMES, BLANK, beam_width=0)
    for wrong, message in (
        ({"beam_width": 2.5}, "beam_width must be"),
        ({"score_function": 1}, "score_function must be a function"),
    ):
        with pytest.raises(TypeError, match=message):
            bridge.beam_search_decode(scores, FRAMES, BLANK, **wrong)


def test_spans_of_tensors():
    aligned = bridge.forced_align(log_probs(), TARGETS, FRAMES, COUNTS, BLANK)
    spans = jaxctc.merge_tokens(*aligned, BLANK)
    assert [[x.token for x in row] for row in spans] == [[1, 1, 2, 0], [3, 0], [2, 1, 3, 2]]
    beams = bridge.beam_search_decode(log_probs(), FRAMES, BLANK)
    best = bridge.forced_align(log_probs(), beams.labels[:, 0], FRAMES, beams.lengths[:, 0], BLANK)
    arrays = log_probs().numpy(), np.array(FRAMES), BLANK
    want = jaxctc.decoded_spans(arrays[0], jaxctc.beam_search_decode(*arrays), *arrays[1:])
    for ours, theirs in zip(jaxctc.merge_tokens(*best, BLANK), want, strict=True):
        assert [(x.token, x.start, x.end) for x in ours] == [(x.token, x.start, x.end) for x in theirs]
    found = bridge.decoded_spans(log_probs(), beams, FRAMES, BLANK)
    assert found == jaxctc.merge_tokens(*best, BLANK)
    turned = log_probs().transpose(0, 1)
    assert bridge.decoded_spans(turned, beams, FRAMES, BLANK, batch_first=True) == found
    alone = log_probs()[:, 0]
    assert bridge.decoded_spans(alone, bridge.beam_search_decode(alone, T, BLANK), T, BLANK) == found[0]
    greedy = bridge.greedy_decode(alone, T, BLANK)
    spans = bridge.decoded_spans(alone, greedy, T, BLANK)
    assert [x.token for x in spans] == greedy.labels[: greedy.lengths].tolist()
    with pytest.raises(TypeError, match=r"decoded must be what bridge.greedy_decode .* got jaxctc.Beams"):
        bridge.decoded_spans(log_probs(), jaxctc.beam_search_decode(*arrays), FRAMES, BLANK)
    with pytest.raises(TypeError, match=r"got bridge.Beams. For the bridge's results there is bridge.decoded_spans"):
        jaxctc.decoded_spans(arrays[0], beams, *arrays[1:])


def test_memory_is_shared_where_nothing_is_padded(monkeypatch):
    seen = []
    to_jax = bridge._programs.to_jax
    monkeypatch.setattr(bridge._programs, "to_jax", lambda x: seen.append(x.data_ptr()) or to_jax(x))
    scores = log_probs()
    with bridge.set_sizes(None):
        bridge.forced_align(scores, TARGETS, FRAMES, COUNTS, BLANK)
        bridge.ctc_posteriors(scores, TARGETS, FRAMES, COUNTS, BLANK)
        bridge.greedy_decode(scores, FRAMES, BLANK)  # PyTorch alone decodes
        bridge.beam_search_decode(scores, FRAMES, BLANK)
    assert seen == [scores.data_ptr()] * 3


def test_errors_are_pytorchs():
    scores = log_probs()
    with pytest.raises(RuntimeError, match=r"targets\[2\] cannot be aligned: 4 labels, 0 of them .* is 3"):
        bridge.forced_align(scores, TARGETS, [20, 13, 3], COUNTS, BLANK)
    with pytest.raises(RuntimeError, match=r"targets\[0, 0\] is 1, which is the blank"):
        bridge.ctc_posteriors(scores, TARGETS, FRAMES, COUNTS, 1)
    with pytest.raises(RuntimeError, match=r"input_lengths\[0\] is 21, but log_probs has T = 20 frames"):
        bridge.greedy_decode(scores, [21, 13, 3], BLANK)
    with pytest.raises(TypeError, match=r"log_probs must be a torch.Tensor, got ndarray"):
        bridge.greedy_decode(scores.numpy(), FRAMES, BLANK)
    with pytest.raises(NotImplementedError, match="log_probs must be of a floating-point type"):
        bridge.forced_align(scores.long(), TARGETS, FRAMES, COUNTS, BLANK)


def test_jax_keeps_its_own_settings():
    bridge.ctc_posteriors(log_probs(torch.float64), TARGETS, FRAMES, COUNTS, BLANK)
    assert not jax.config.jax_enable_x64
