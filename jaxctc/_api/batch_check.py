"""Find the illegal row of a batch whose values cannot be checked before the program runs."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Bool

from jaxctc._inputs.arguments import canonical_batch
from jaxctc._lattice import lattices
from jaxctc._types import FloatsLike, IntegersLike


def check_batch(
    log_probs: FloatsLike,
    targets: IntegersLike,
    input_lengths: IntegersLike,
    target_lengths: IntegersLike,
    blank: int = 0,
    *,
    batch_first: bool = False,
    max_target_length: int | None = None,
) -> None:
    """Check the values of one batch under `jax.jit`, and name the row of the first illegal one.

    The losses look at values only where that costs no device synchronisation. Under `jax.jit` an illegal length or
    label gives a NaN loss instead, and this function reports the reason. It adds `jax.experimental.checkify.check`
    effects to the function that is traced, which `checkify.checkify` must therefore transform.

    Args:
        log_probs: Scores, (T, N, C) or (T, C). Only their shape matters, so that logits serve as well.
        targets: Labels, in any form that `ctc_loss` takes.
        input_lengths: Frames of each sequence.
        target_lengths: Labels of each target.
        blank: Index of the blank class.
        batch_first: `log_probs` is (N, T, C).
        max_target_length: A bound on the target lengths, known when tracing.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A shape is illegal, or a value that is known when tracing.

    Example:
        >>> import jax, jax.numpy as jnp, jaxctc
        >>> from jax.experimental import checkify
        >>> def loss(log_probs, targets, input_lengths, target_lengths):
        ...     jaxctc.check_batch(log_probs, targets, input_lengths, target_lengths)
        ...     return jaxctc.ctc_loss(log_probs, targets, input_lengths, target_lengths)
        >>> batch = jnp.zeros((4, 2, 3)), jnp.ones((2, 1), int), jnp.array([4, 5]), jnp.array([1, 1])
        >>> error, _ = jax.jit(checkify.checkify(loss))(*batch)
        >>> error.get().split(" (")[0]
        'input_lengths[1] is 5: an input length must lie in [0, 4]'
    """
    problem, request, _ = canonical_batch(
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        blank,
        batch_first=batch_first,
        max_target_length=max_target_length,
    )
    frames, classes = lattices.frames_of(problem.scores, request), problem.scores.shape[2]
    targets, input_lengths, target_lengths = (lattices.wide(x) for x in problem[1:])
    longest = targets.shape[1]

    def check(legal: Bool[Array, " N"], message: str, **values: Array) -> None:
        if legal.size == 0:
            return
        row = jnp.argmin(legal)
        at_row: dict[str, Any] = {name: value[row] for name, value in values.items()}
        checkify.check(legal.all(), message, row=row, **at_row)

    check(
        lattices.in_range(input_lengths, frames),
        f"input_lengths[{{row}}] is {{value}}: an input length must lie in [0, {frames}]",
        value=input_lengths,
    )
    check(
        lattices.in_range(target_lengths, longest),
        f"target_lengths[{{row}}] is {{value}}: a target length must lie in [0, {longest}], and end-to-end "
        "targets must be sum(target_lengths) long",
        value=target_lengths,
    )
    if longest == 0:
        return
    within_slots = lattices.legal_int32(target_lengths, lattices.in_range(target_lengths, longest))
    legal = lattices.legal_labels(targets, within_slots, request.blank, classes)
    position = jnp.argmin(legal, axis=1)
    check(
        legal.all(axis=1),
        f"label {{position}} of sequence {{row}} is {{value}}: a label must lie in [0, {classes}) and differ "
        f"from the blank, {request.blank}",
        position=position,
        value=jnp.take_along_axis(targets, position[:, None], axis=1)[:, 0],
    )
