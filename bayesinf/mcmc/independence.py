"""The independence sampler: proposals that do not look at where the chain is."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from bayesinf.mcmc.state import Info, State, accept, init_state
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


@runtime_checkable
class Proposal(Protocol):
    """A normalised density to draw from: a mixture, a network's posterior, a NumPyro one."""

    def sample(self, key: Any, /) -> Any: ...

    def log_prob(self, x: Any, /) -> Any: ...


@law(invariant)
class Independence(eqx.Module):
    """Proposes y ~ q and accepts with `min(1, w(y) / w(x))`, `w = pi / q`.

    Law: invariant. Paper: Tierney (1994), section 2.3.3. It is as good as q, whose tails must not
    be lighter than the target's.

    Attributes:
        proposal: q, which has `sample(key)` and `log_prob(x)`.
    """

    proposal: Proposal

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        propose_key, accept_key = jax.random.split(key)
        x = state.position
        y = self.propose(propose_key, x)
        log_hastings = self.log_prob(x, y) - self.log_prob(y, x)
        return accept(accept_key, target, State(y, target.parts(y)), state, log_hastings)

    def propose(self, key: Key, x: PyTree) -> PyTree:
        del x
        return self.proposal.sample(key)

    def log_prob(self, y: PyTree, x: PyTree) -> Float[Array, ""]:
        """Returns `log q(y)`."""
        del x
        return self.proposal.log_prob(y)
