"""Exact proportional sampling from millions of priorities, inside `jit`: a sum tree in one array.

Node 1 is the root, node i has the children 2i and 2i+1, and the last half of the array are the leaves. `draw` walks
down the tree and `write` updates the path up. Both touch log2(n) nodes per row, so the array is updated in place when
it is donated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Tree = Float[Array, " twice_leaves"]


def size(rows: int) -> int:
    """Return the leaves of a tree over `rows` priorities: the next power of two."""
    return 1 << max(rows - 1, 1).bit_length()


def build(leaves: Float[Array, " n"]) -> Tree:
    """Build a tree over n priorities >= 0 (padded with zeros to a power of two)."""
    level = jnp.zeros(size(len(leaves)), jnp.float32).at[: len(leaves)].set(leaves)
    levels = [level]
    while len(level) > 1:
        level = level.reshape(-1, 2).sum(-1)
        levels.append(level)
    return jnp.concatenate([jnp.zeros(1, jnp.float32), *reversed(levels)])


def grown(tree: Tree, rows: int) -> Float[Array, " more"]:
    """Build a tree over more rows than before: those that are new have priority 0."""
    leaves = tree[len(tree) // 2 :][:rows]
    return build(jnp.zeros(rows).at[: len(leaves)].set(leaves))


def depth(tree: Tree) -> int:
    """Return the number of levels below the root."""
    return (len(tree) // 2).bit_length() - 1


def write(tree: Tree, index: Int[Array, " batch"], priority: Float[Array, " batch"]) -> Tree:
    """Set the priorities at `index`. Where an index occurs twice, its priorities must be equal."""
    node = index + len(tree) // 2
    tree = tree.at[node].set(priority)
    for _ in range(depth(tree)):
        node = node // 2
        tree = tree.at[node].set(tree[2 * node] + tree[2 * node + 1])
    return tree


def draw(tree: Tree, count: int, key: PRNGKeyArray) -> Int[Array, " count"]:
    """Draw `count` independent leaves, each with probability priority / total.

    Every level has its own random number: one uniform number for all levels has 2^23 values, too few for exact
    probabilities of a million rows. A child of weight zero is never entered, so a row of priority zero is never drawn.
    """

    def down(node: Int[Array, " count"], coin: Float[Array, " count"]) -> tuple[Int[Array, " count"], None]:
        left, right = tree[2 * node], tree[2 * node + 1]
        goes_right = (right > 0) & (coin * (left + right) >= left)
        return 2 * node + goes_right.astype(node.dtype), None

    node, _ = jax.lax.scan(down, jnp.ones(count, jnp.int32), jax.random.uniform(key, (depth(tree), count)))
    return node - len(tree) // 2
