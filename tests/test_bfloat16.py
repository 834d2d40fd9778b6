"""What bfloat16 costs on a CPU, which has no bfloat16: no program may store all scores in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import AS_FOR_USERS

import jaxctc

T, N, C, S = 90, 8, 2000, 6
TARGETS = np.arange(N * S).reshape(N, S) % (C - 1) + 1
LENGTHS = np.full(N, T), np.full(N, S)


def loss(scores, function=jaxctc.ctc_loss, **options):
    return function(scores, TARGETS, *LENGTHS, reduction="sum", **options)


CALLS = {
    "loss": loss,
    "loss in chunks": functools.partial(loss, sequences_at_once=2),
    "loss of logits": functools.partial(loss, function=jaxctc.ctc_loss_with_logits),
    "gradient": jax.grad(loss),
    "gradient of logits": jax.grad(functools.partial(loss, function=jaxctc.ctc_loss_with_logits)),
    "alignment": lambda scores: jaxctc.forced_align(scores, TARGETS, *LENGTHS),
    "alignment, batch first": lambda scores: jaxctc.forced_align(scores, TARGETS, *LENGTHS, batch_first=True),
    "greedy": lambda scores: jaxctc.greedy_decode(scores, LENGTHS[0]),
    "beam": lambda scores: jaxctc.beam_search_decode(scores, LENGTHS[0], beam_width=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_copy_of_the_scores(name):
    shape = (N, T, C) if "batch first" in name else (T, N, C)
    scores = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    compiled = jax.jit(CALLS[name]).lower(scores).compile(compiler_options=AS_FOR_USERS)
    most = T * N * C  # half of the scores' own bytes, and a quarter of those of a copy in float32
    assert compiled.memory_analysis().temp_size_in_bytes < most


def test_the_alignment_s_scores_have_their_derivative():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(7, 1, 4)), jnp.bfloat16)

    def total(scores):
        return jaxctc.forced_align(scores, [[1, 2]], [7], [2]).scores.astype(jnp.float32).sum()

    labels = jaxctc.forced_align(scores, [[1, 2]], [7], [2]).labels
    np.testing.assert_array_equal(jax.grad(total)(scores)[:, 0], jax.nn.one_hot(labels[0], 4))
