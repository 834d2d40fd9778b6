"""Adding probabilities that are kept as logarithms.

Inside the recursion log 0 is a large finite number, `LOG_ZERO`, so that no difference of two
logarithms is ever NaN; whoever reads a result turns what is below `LOG_ZERO / 2` back into a true zero.

| a        | b        | log(e^a + e^b)        | share of a | share of b |
| -------- | -------- | --------------------- | ---------- | ---------- |
| finite   | finite   | between max and +ln 2 | e^(a - .)  | e^(b - .)  |
| finite   | LOG_ZERO | a                     | 1          | 0          |
| LOG_ZERO | finite   | b                     | 0          | 1          |
| LOG_ZERO | LOG_ZERO | LOG_ZERO              | 1/2        | 1/2        |

The shares are the derivatives. Those of the last row are never seen: whatever flows into two
impossible states is itself zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def logaddexp(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(e^a + e^b), differentiable to every order by JAX itself, also where a equals b.

    The sum does not depend on what is taken out of both, so that nothing is lost by holding it fixed;
    the kinks of `maximum` and `abs` at a == b, of which second derivatives would know, are gone. (A
    `custom_jvp` does not do: a scan that is differentiated twice forgets it.)
    """
    peak = jax.lax.stop_gradient(jnp.maximum(a, b))
    return peak + jnp.log(jnp.exp(a - peak) + jnp.exp(b - peak))
