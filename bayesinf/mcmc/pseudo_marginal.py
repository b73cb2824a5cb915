"""Pseudo-marginal Metropolis-Hastings: a likelihood that is only estimated, and yet exact."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.state import Info, State, accept, strong
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


class Estimated(NamedTuple):
    """A point and the estimate that goes with it as long as the chain stays there."""

    value: PyTree
    log_estimate: Float[Array, ""]


@runtime_checkable
class Proposing(Protocol):
    """A Metropolis-Hastings kernel whose proposal does not look at the target."""

    def propose(self, key: Key, x: PyTree) -> PyTree:
        """Returns y ~ q(. | x)."""
        ...

    def log_prob(self, y: PyTree, x: PyTree) -> Float[Array, ""]:
        """Returns `log q(y|x)`, up to what is the same both ways."""
        ...


@law(invariant)
class PseudoMarginal(eqx.Module):
    """Metropolis-Hastings for the target times a likelihood that an unbiased estimate replaces.

    The estimate is a part of the position, an `Estimated`: it is made once, by `start` or at the
    proposal, and kept. To draw it anew at the current point would break the law.

    Law: invariant, on points and estimates together; the points then follow the target times the
    estimate's mean. Paper: Beaumont (2003); Andrieu and Roberts (2009); with a particle filter's
    estimate it is particle marginal Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010).

    Attributes:
        proposal: proposes the points: `Metropolis`, `RandomWalk`, `Independence`, or another kernel
            with their `propose` and `log_prob`. A proposal that looks at the target, as MALA's,
            would look at the prior alone.
        estimate: (key, x) to the log of a non-negative unbiased estimate of the likelihood.
    """

    proposal: Any  # in truth `Proposing`; whatever else comes is named below
    estimate: Callable[[Key, PyTree], Float[Array, ""]]

    def __check_init__(self):
        if not isinstance(self.proposal, Proposing):
            raise ValueError(
                f"proposal: {type(self.proposal).__name__} came, Metropolis, RandomWalk, "
                "Independence or another with propose(key, x) and log_prob(y, x) was expected"
            )

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
