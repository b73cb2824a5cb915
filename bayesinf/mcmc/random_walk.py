"""The random walk with normal steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesinf.mcmc.state import Info, State, accept, flatten, init_state, real, scaled
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


@law(invariant)
class RandomWalk(eqx.Module):
    """Proposes `y = x + S z`, z ~ N(0, I), and accepts with `min(1, pi(y) / pi(x))`.

    Law: invariant. Paper: Metropolis et al. (1953); in d dimensions a scale of `2.4 / sqrt(d)`
    standard deviations is about best (Roberts, Gelman and Gilks 1997).

    Attributes:
        scale: S: a number, a vector or a pytree like the position, or a lower triangular factor in
            flattened coordinates.
    """

    scale: PyTree = eqx.field(converter=real)

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        propose_key, accept_key = jax.random.split(key)
        y = self.propose(propose_key, state.position)
        return accept(accept_key, target, State(y, target.parts(y)), state)

    def propose(self, key: Key, x: PyTree) -> PyTree:
        x, unflatten = flatten(x)
        return unflatten(x + scaled(self.scale, jax.random.normal(key, x.shape, x.dtype)))

    def log_prob(self, y: PyTree, x: PyTree) -> Float[Array, ""]:
        """Returns `log q(y|x)` up to what is the same both ways: 0."""
        del y, x
        return jnp.zeros(())
