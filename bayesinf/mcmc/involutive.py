"""Involutive moves: Metropolis-Hastings-Green with the Jacobian by differentiation."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

from bayesinf.mcmc.state import Info, State, accept, init_state
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law, no_law


@law(invariant)
class Involutive(eqx.Module):
    """Draws u ~ q(. | x), maps (x, u) to (y, v) by a map that is its own inverse, and accepts with
    `min(1, pi(y) q(v|y) / (pi(x) q(u|x)) |det d(y, v)/d(x, u)|)`.

    The determinant is over the leaves of floats; the others (which model, which component) count
    points. Jumps between dimensions live in a padded position: what a smaller model lacks is
    mapped to u and back, or left as it is.

    Law: invariant, if the map is an involution, which `check_involution` tries out, and does not
    shift mass between dimensions. Paper: Green (1995); Neklyudov et al. (2020), algorithm 1;
    Cusumano-Towner et al. (2020).

    Attributes:
        sample: (key, x) to u, a pytree.
        log_prob: (u, x) to `log q(u|x)`.
        involution: (x, u) to (y, v), of the same structure, shapes and dtypes.
    """

    sample: Callable[[Key, PyTree], PyTree]
    log_prob: Callable[[PyTree, PyTree], Float[Array, ""]]
    involution: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        sample_key, accept_key = jax.random.split(key)
        x = state.position
        u = self.sample(sample_key, x)
        y, v = self.involution(x, u)
        log_ratio = self.log_prob(v, y) - self.log_prob(u, x) + self.log_det(x, u)
        return accept(accept_key, target, State(y, target.parts(y)), state, log_ratio)

    def log_det(self, x: PyTree, u: PyTree) -> Float[Array, ""]:
        """Returns `log |det d(y, v)/d(x, u)|`, 0 where nothing is a float."""
        moving, fixed = eqx.partition((x, u), eqx.is_inexact_array)
        flat, unflatten = ravel_pytree(moving)
        if flat.size == 0:
            return jnp.zeros(())

        def mapped(flat):
            image = self.involution(*eqx.combine(unflatten(flat), fixed))
            return ravel_pytree(eqx.filter(image, eqx.is_inexact_array))[0]

        return jnp.linalg.slogdet(jax.jacfwd(mapped)(flat))[1]


@no_law("a check, which returns nothing")
def check_involution(key: Key, kernel: Involutive, position: PyTree) -> None:
    """Draws u once and maps (x, u) there and back.

    Raises:
        ValueError: the map does not come back, and by how much it misses which leaf; or it changes
            structure, shapes or dtypes.
    """
    start = (position, kernel.sample(key, position))
    there = kernel.involution(*start)
    if _kinds(there) != _kinds(start):
        raise ValueError(
            f"involution: it makes {_kinds(there)}, {_kinds(start)} was expected, what it was given"
        )
    back = kernel.involution(*there)
    paths = jax.tree_util.tree_leaves_with_path(start)
    for (path, before), after in zip(paths, jax.tree.leaves(back), strict=True):
        before, after = np.asarray(before), np.asarray(after)
        gap = np.abs(after.astype(float) - before.astype(float))
        # Rounding, twice through a map of moderate condition.
        inexact = np.issubdtype(before.dtype, np.inexact)
        room = np.sqrt(np.finfo(before.dtype).eps) * (1 + np.abs(before)) if inexact else 0
        if not np.all(gap <= room):
            raise ValueError(
                f"involution: twice it takes (x, u){jax.tree_util.keystr(path)} from {before} to "
                f"{after}, the same was expected"
            )


def _kinds(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", tree)
