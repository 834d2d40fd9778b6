"""Store the labels of prefixes so that a search can extend prefixes, and drop them, without moving their labels.

Whenever a prefix is extended, a node of a tree stores the new label and a pointer to the prefix before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

PADDING = -1
"""What stands after the last label of a prefix."""


class Tree(NamedTuple):
    """Hold every prefix that was ever in the beam: frame t adds the nodes t K to t K + K - 1, one for each place.

    A node is used if the prefix in its place was extended at this frame.
    """

    parent: Int[Array, "T K"]
    """The node of the prefix without its last label."""
    label: Int[Array, "T K"]

    def add(self, frame: Int[Array, ""], parent: Int[Array, " K"], label: Int[Array, " K"]) -> "Tree":
        return Tree(*(x.at[frame].set(y) for x, y in zip(self, (parent, label), strict=True)))

    def up(self, node: Int[Array, "*X"], steps: Int[Array, "*X"]) -> Int[Array, "*X"]:
        """Return the node that is so many steps above each node."""

        def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            node, left = carry
            return jnp.where(left > 0, self._at(self.parent, node), node), left - 1

        return jax.lax.while_loop(lambda carry: (carry[1] > 0).any(), step, (node, steps))[0]

    def labels(self, node: Int[Array, " K"], lengths: Int[Array, " K"], frames: int) -> Int[Array, "K T"]:
        """Return all labels of the prefixes of these nodes, and -1 after the last."""

        def read(node: Array, place: Array) -> tuple[Array, Array]:
            inside = place < lengths
            label = jnp.where(inside, self.last(node), PADDING)
            return jnp.where(inside, self._at(self.parent, node), node), label

        return jax.lax.scan(read, node, jnp.arange(frames, dtype=jnp.int32), reverse=True)[1].T

    def last(self, node: Int[Array, "*X"]) -> Int[Array, "*X"]:
        return self._at(self.label, node)

    @staticmethod
    def _at(x: Int[Array, "T K"], node: Int[Array, "*X"]) -> Int[Array, "*X"]:
        return x.at[node // x.shape[1], node % x.shape[1]].get(mode="promise_in_bounds")
