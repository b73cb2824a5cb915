"""Pseudo-marginal Metropolis-Hastings: a likelihood that is only estimated, and yet exact."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.metropolis import Metropolis
from bayesinf.mcmc.state import Info, State, accept, strong
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


class Estimated(NamedTuple):
    """A point and the estimate that goes with it as long as the chain stays there."""

    value: PyTree
    log_estimate: Float[Array, ""]


@law(invariant)
class PseudoMarginal(eqx.Module):
    """Metropolis-Hastings for the target times a likelihood that an unbiased estimate replaces.

    The estimate is a part of the position, an `Estimated`: it is made once, by `start` or at the
    proposal, and kept. To draw it anew at the current point would break the law.

    Law: invariant, on points and estimates together; the points then follow the target times the
    estimate's mean. Paper: Beaumont (2003); Andrieu and Roberts (2009); with a particle filter's
    estimate it is particle marginal Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010).

    Attributes:
        proposal: proposes the points.
        estimate: (key, x) to the log of a non-negative unbiased estimate of the likelihood.
    """

    proposal: Metropolis
    estimate: Callable[[Key, PyTree], Float[Array, ""]]

    def start(self, key: Key, value: PyTree) -> Estimated:
        """Returns the position of a chain that starts at this point."""
        value = strong(value)
        return Estimated(value, self.estimate(key, value))

    def init(self, target: Target, position: PyTree) -> State:
        if not isinstance(position, Estimated):
            raise ValueError(
                f"position: {type(position).__name__} came, an Estimated was expected, as made by "
                "PseudoMarginal.start(key, value)"
            )
        return State(strong(position), target.parts(position.value))

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        propose_key, estimate_key, accept_key = jax.random.split(key, 3)
        x, old = state.position
        y = self.proposal.propose(propose_key, x)
        new = self.estimate(estimate_key, y)
        log_hastings = self.proposal.log_prob(x, y) - self.proposal.log_prob(y, x)
        # An estimate of zero is never moved to, also not from another.
        rise = jnp.where(new == -jnp.inf, -jnp.inf, new - old)
        proposed = State(Estimated(y, new), target.parts(y))
        return accept(accept_key, target, proposed, state, log_hastings + rise)
