"""Particle Gibbs: a path as one block of a larger position, moved by conditional SMC."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from bayesinf.mcmc.blocks import rest_of
from bayesinf.mcmc.state import State, init_state, select
from bayesinf.programs.feynman_kac import FeynmanKac
from bayesinf.programs.target import Target
from bayesinf.smc.conditional import ConditionalSMC, Info
from bayesinf.types import Key, invariant, law

Rest = dict[str, PyTree]
"""The other entries of the position, the parameters among them."""


@law(invariant)
class ParticleGibbs(eqx.Module):
    """Moves a path given the rest of the position; `particle_gibbs` makes one.

    Law: invariant, for a target in which the path, given the rest, has the density of `model(rest)`
    up to a factor.

    Attributes:
        model: from the rest to the Feynman-Kac model of the path.
        kernel: from the rest to the kernel of the path.

    Errors: outside of `blocks` there is no rest, and `step` raises `ValueError`.
    """

    model: Callable[[Rest], FeynmanKac]
    kernel: Callable[[Rest], ConditionalSMC]

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        rest = rest_of(target, "particle_gibbs(model, kernel)")
        fk, kernel = self.model(rest), self.kernel(rest)
        path, info = kernel.step(key, fk, kernel.init(fk, state.position))
        moved = State(path.position, target.parts(path.position))
        invalid = jnp.isnan(target.combine(moved.parts))
        acceptance = jnp.where(invalid, 0, info.acceptance)
        return select(invalid, state, moved), Info(acceptance, info.invalid | invalid)


@law(invariant)
def particle_gibbs(
    model: Callable[[Rest], FeynmanKac], kernel: Callable[[Rest], ConditionalSMC]
) -> ParticleGibbs:
    """Returns the kernel that moves a path by conditional SMC given the rest, for use in `blocks`.

    Both functions are given the other entries of the position:

    ```python
    path = particle_gibbs(lambda rest: model(rest["theta"]), lambda rest: conditional_smc(16))
    kernel = mcmc.blocks({"path": path, "theta": mcmc.RandomWalk(scale)})
    ```

    The path has leading axis T + 1, from before the first input on. The target is the joint density
    of path and parameters, which the other blocks need; `model` must agree with it.

    Law: invariant, for any number of particles, at the temperature that `model` is of: at another
    the conditional is another.
    Paper: Andrieu, Doucet and Holenstein (2010), Particle Markov chain Monte Carlo methods,
    section 4.5.
    """
    return ParticleGibbs(model, kernel)
