"""The Metropolis-Hastings kernel with any proposal."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bayesinf.mcmc.state import Info, State, accept, init_state
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


@law(invariant)
class Metropolis(eqx.Module):
    """Proposes y ~ q(. | x) and accepts with `min(1, pi(y) q(x|y) / (pi(x) q(y|x)))`.

    Law: invariant. Paper: Hastings (1970).

    Attributes:
        propose: (key, x) to y, of the same shapes and dtypes.
        log_prob: (y, x) to `log q(y|x)`.
    """

    propose: Callable[[Key, PyTree], PyTree]
    log_prob: Callable[[PyTree, PyTree], Float[Array, ""]]

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        propose_key, accept_key = jax.random.split(key)
        x = state.position
        y = self.propose(propose_key, x)
        log_hastings = self.log_prob(x, y) - self.log_prob(y, x)
        return accept(accept_key, target, State(y, target.parts(y)), state, log_hastings)


@law(invariant)
def symmetric(propose: Callable[[Key, PyTree], PyTree]) -> Metropolis:
    """Returns the kernel of a symmetric proposal, `q(y|x) = q(x|y)`.

    Law: invariant. Paper: Metropolis et al. (1953).
    """
    return Metropolis(propose, _even)


def _even(y: PyTree, x: PyTree) -> Float[Array, ""]:
    del y, x
    return jnp.zeros(())
