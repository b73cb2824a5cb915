"""The Metropolis-adjusted Langevin algorithm."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.state import (
    GradState,
    Info,
    accept,
    flatten,
    init_grad_state,
    real,
    scaled,
    scaled_transposed,
)
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


@law(invariant)
class MALA(eqx.Module):
    """Proposes `y = x + S (e^2/2 S^T grad log pi(x) + e z)`, z ~ N(0, I), and accepts.

    Law: invariant. Paper: Roberts and Tweedie (1996).

    Attributes:
        step_size: e.
        scale: S, as in `RandomWalk`; `S S^T` near the target's covariance is best.
    """

    step_size: Float[Array, ""] = eqx.field(converter=real, default=1.0)
    scale: PyTree = eqx.field(converter=real, default=1.0)
    target_acceptance: ClassVar[float] = 0.574

    def init(self, target: Target, position: PyTree) -> GradState:
        return init_grad_state(target, position)

    def step(self, key: Key, target: Target, state: GradState) -> tuple[GradState, Info]:
        propose_key, accept_key = jax.random.split(key)
        x, unflatten = flatten(state.position)
        noise = jax.random.normal(propose_key, x.shape, x.dtype)
        half = self.step_size / 2
        pull = half * scaled_transposed(self.scale, target.combine_grads(state.grads))
        y = unflatten(x + scaled(self.scale, self.step_size * (pull + noise)))
        proposed = GradState(y, *target.parts_and_grads(y))
        pull_back = half * scaled_transposed(self.scale, target.combine_grads(proposed.grads))
        # The noise that would lead back from y to x.
        noise_back = -(noise + pull + pull_back)
        log_hastings = (jnp.sum(noise**2) - jnp.sum(noise_back**2)) / 2
        return accept(accept_key, target, proposed, state, log_hastings)
