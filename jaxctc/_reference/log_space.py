"""Add probabilities that are kept as logarithms.

Inside the recursion log 0 is a large finite number, `LOG_ZERO`, so that no difference of two logarithms is NaN. Code
that reads a result takes everything below `LOG_ZERO / 2` as probability zero.

| a        | b        | log(e^a + e^b)        | derivative in a | derivative in b |
| -------- | -------- | --------------------- | --------------- | --------------- |
| finite   | finite   | between max and +ln 2 | e^(a - .)       | e^(b - .)       |
| finite   | LOG_ZERO | a                     | 1               | 0               |
| LOG_ZERO | finite   | b                     | 0               | 1               |
| LOG_ZERO | LOG_ZERO | LOG_ZERO              | 1/2             | 1/2             |

The derivatives are the fractions of the sum that a and b contribute. Those of the last row have no effect: the gradient
that arrives at a sum of probability zero is zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def logaddexp(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return log(e^a + e^b), which JAX itself can differentiate to every order, also where a equals b.

    The result does not depend on the peak that is subtracted from both operands, so that the derivative is right while
    the peak is held fixed. Without `stop_gradient` second derivatives would see the kink of `maximum` at a == b. (A
    `custom_jvp` would not help: a scan that is differentiated twice loses it.)
    """
    peak = jax.lax.stop_gradient(jnp.maximum(a, b))
    return peak + jnp.log(jnp.exp(a - peak) + jnp.exp(b - peak))
