"""Hamiltonian Monte Carlo with trajectories of a fixed or a random number of steps."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bayesinf.mcmc.state import (
    GradState,
    HamiltonianInfo,
    accept,
    flatten,
    init_grad_state,
    real,
    scaled,
    scaled_transposed,
)
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law

# A rise of the energy after which the integrator has left the level set for good; Stan's choice.
DIVERGENCE = 1000


class Point(NamedTuple):
    """A point of a trajectory. The momentum is whitened: it is N(0, I) whatever the scale."""

    x: Float[Array, " d"]
    momentum: Float[Array, " d"]
    parts: Float[Array, " n"]
    grads: Float[Array, "n d"]

    def energy(self, target: Target) -> Float[Array, ""]:
        return jnp.sum(self.momentum**2) / 2 - target.combine(self.parts)


def leapfrog(target: Target, unflatten, step_size, scale, point: Point) -> Point:
    """Returns the next point; volume and, run backwards, every point is preserved.

    With the momentum p = S^-T r and the mass `(S S^T)^-1` this is the usual leapfrog for (x, p).
    """

    def kick(momentum, grads):
        return momentum + step_size / 2 * scaled_transposed(scale, target.combine_grads(grads))

    momentum = kick(point.momentum, point.grads)
    x = point.x + step_size * scaled(scale, momentum)
    parts, grads = target.parts_and_grads(unflatten(x))
    return Point(x, kick(momentum, grads), parts, grads)


@law(invariant)
class HMC(eqx.Module):
    """Follows a trajectory of `num_steps` leapfrog steps from a fresh momentum, and accepts.

    Law: invariant. Paper: Duane et al. (1987); Neal (2011), figure 2.

    Attributes:
        step_size: of the leapfrog.
        num_steps: how many of them.
        scale: S, as in `RandomWalk`: the mass is `(S S^T)^-1`.
    """

    step_size: Float[Array, ""] = eqx.field(converter=real)
    num_steps: Int[Array, ""] = eqx.field(converter=jnp.asarray)
    scale: PyTree = eqx.field(converter=real, default=1.0)
    target_acceptance: ClassVar[float] = 0.8

    def init(self, target: Target, position: PyTree) -> GradState:
        return init_grad_state(target, position)

    def step(self, key: Key, target: Target, state: GradState) -> tuple[GradState, HamiltonianInfo]:
        momentum_key, accept_key = jax.random.split(key)
        x, unflatten = flatten(state.position)
        momentum = jax.random.normal(momentum_key, x.shape, x.dtype)
        start = Point(x, momentum, state.parts, state.grads)

        def follow(_, point: Point) -> Point:
            return leapfrog(target, unflatten, self.step_size, self.scale, point)

        end = jax.lax.fori_loop(0, self.num_steps, follow, start)
        log_hastings = (jnp.sum(start.momentum**2) - jnp.sum(end.momentum**2)) / 2
        proposed = GradState(unflatten(end.x), end.parts, end.grads)
        state, info = accept(accept_key, target, proposed, state, log_hastings)
        diverged = ~(end.energy(target) - start.energy(target) < DIVERGENCE)
        return state, HamiltonianInfo(*info, diverged, self.num_steps)


@law(invariant)
class JitteredHMC(eqx.Module):
    """Follows a trajectory whose number of steps is uniform on 1 to `max_steps`, and accepts.

    The random length keeps a trajectory from coming back to its start again and again.

    Law: invariant, as a mixture of `HMC`. Paper: Mackenzie (1989); Neal (2011), section 3.2.
    """

    step_size: Float[Array, ""] = eqx.field(converter=real)
    max_steps: Int[Array, ""] = eqx.field(converter=jnp.asarray)
    scale: PyTree = eqx.field(converter=real, default=1.0)
    target_acceptance: ClassVar[float] = 0.8

    def init(self, target: Target, position: PyTree) -> GradState:
        return init_grad_state(target, position)

    def step(self, key: Key, target: Target, state: GradState) -> tuple[GradState, HamiltonianInfo]:
        length_key, move_key = jax.random.split(key)
        num_steps = jax.random.randint(length_key, (), 1, self.max_steps + 1)
        return HMC(self.step_size, num_steps, self.scale).step(move_key, target, state)
