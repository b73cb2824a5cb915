"""When to resample: at every step, or where the weights are uneven."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import optimization_barrier
from jaxtyping import Bool, Float, Int

from bayesinf.distributions.particles import Particles
from bayesinf.smc.transform import Resampler, offspring
from bayesinf.types import Key, law, preserves


class Resampling(NamedTuple):
    """What a policy says beside the particles.

    Attributes:
        ancestors: the member of the old population that each new one is a copy of.
        ess: effective sample size of the population that came.
        resampled: whether it was resampled.
    """

    ancestors: Int[Array, " n"]
    ess: Float[Array, ""]
    resampled: Bool[Array, ""]


Policy = Callable[[Key, Particles], tuple[Particles, Resampling]]


@law(preserves)
class Always(eqx.Module):
    """Resamples every time. Law: preserves."""

    resampler: Resampler

    def __call__(self, key: Key, particles: Particles) -> tuple[Particles, Resampling]:
        ancestors = self.resampler(key, particles.log_weights, particles.num_particles)
        chosen = Resampling(ancestors, particles.ess(), jnp.asarray(True))
        # Without the barrier XLA computes the next potentials, and so the noise of the move, anew
        # at each of their uses: two to three times the cost of a step.
        return optimization_barrier(offspring(particles, ancestors)), chosen


@law(preserves)
class Adaptive(eqx.Module):
    """Resamples where the effective sample size is below `threshold` times n. Law: preserves.

    Either branch preserves the measure given the particles that came, so the choice between them
    may look at these.
    """

    resampler: Resampler
    threshold: Float[Array, ""] | float

    def __call__(self, key: Key, particles: Particles) -> tuple[Particles, Resampling]:
        num = particles.num_particles

        def yes(particles):
            ancestors = self.resampler(key, particles.log_weights, num)
            return offspring(particles, ancestors), ancestors

        def no(particles):
            return particles, jnp.arange(num)

        ess = particles.ess()
        low = ess < self.threshold * num
        particles, ancestors = jax.lax.cond(low, yes, no, particles)
        return particles, Resampling(ancestors, ess, low)


@law(preserves)
def always(resampler: Resampler) -> Always:
    """Returns the policy that resamples every time. Law: preserves."""
    return Always(resampler)


@law(preserves)
def adaptive(resampler: Resampler, threshold: float = 0.5) -> Adaptive:
    """Returns the policy that resamples where the effective sample size is below a share of n.

    Law: preserves.
    Paper: Liu and Chen (1995), Blind deconvolution via sequential imputations, section 4.

    Raises:
        ValueError: the threshold is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: {threshold} came, a number in [0, 1] was expected")
    return Adaptive(resampler, threshold)
