"""What a user writes, with the types that a checker must see. It is read by type checkers, and never run."""

from typing import assert_type

import jax
import numpy as np
import torch
from torch.nn import functional

import bridge
import jaxctc

x: jax.Array = jax.numpy.zeros((5, 2, 4))
t: torch.Tensor = torch.zeros(5, 2, 4)
reduction: str = "sum"

# Arrays of every kind, sequences and numbers are taken.
assert_type(jaxctc.ctc_loss(x, [[1, 2], [3, 0]], [5, 4], [2, 1]), jax.Array)
assert_type(jaxctc.ctc_loss_with_logits(np.zeros((5, 2, 4)), np.array([[1], [2]]), 5, np.int32(1)), jax.Array)
jaxctc.ctc_loss([[0.1, 0.9], [0.5, 0.5]], [1], 2, 1)
jaxctc.variants.focal_ctc_loss(x, [[1], [2]], [5, 5], [1, 1], gamma=2.0)
jax.jit(jaxctc.ctc_loss)(x, np.array([[1], [2]]), np.array([5, 5]), np.array([1, 1]))

labels, scores = jaxctc.forced_align(x, [[1], [2]], [5, 5], [1, 1])
assert_type(labels, jax.Array)
assert_type(jaxctc.merge_tokens(labels, scores), list[jaxctc.TokenSpan] | list[list[jaxctc.TokenSpan]])
assert_type(jaxctc.ctc_posteriors(x, [[1], [2]], [5, 5], [1, 1]).classes, jax.Array)
assert_type(jaxctc.diagnose(x, [[1], [2]], [5, 5], [1, 1]).ok, bool)

# What would fail when it runs is refused before.
jaxctc.ctc_loss("x", [1], 2, 1)  # type: ignore[arg-type]
jaxctc.ctc_loss(x, [[1], [2]], [50.5, 3.0], [1, 1])  # type: ignore[arg-type]
jaxctc.ctc_loss(x, "ab", [5, 5], [1, 1])  # type: ignore[arg-type]
jaxctc.ctc_loss(x, [[1], [2]], [5, 5], [1, 1], reduction="average")  # type: ignore[arg-type]
jaxctc.ctc_loss(x, [[1], [2]], [5, 5], [1, 1], implementation="fast")  # type: ignore[arg-type]
jaxctc.ctc_loss(x, [[1], [2]], [5, 5], None)  # type: ignore[arg-type]

# The bridge takes what PyTorch takes, and can stand in its place.
assert_type(bridge.ctc_loss(t, torch.ones(2, 1), [5, 5], (1, 1), reduction=reduction), torch.Tensor)
assert_type(bridge.ctc_loss(t, torch.ones(2, 1), torch.tensor([5, 5]), torch.tensor([1, 1])), torch.Tensor)
criterion: torch.nn.Module = bridge.CTCLoss(blank=3, reduction=reduction, zero_infinity=True)
functional.ctc_loss = bridge.ctc_loss
bridge.ctc_loss(x, torch.ones(2, 1), [5, 5], [1, 1])  # type: ignore[arg-type]
