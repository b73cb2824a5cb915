"""A bootstrap particle filter for a robot's log, whose calibration does not die out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesinf import smc
from bayesinf.distributions.particles import Particles
from bayesinf.fusion.robot import OFFSET
from bayesinf.linalg import triangularize
from bayesinf.smc.resampling.policy import Policy, Resampling
from bayesinf.types import Key, consistent, law

# Static calibration would die out in resampling; after each one it is shrunk to its mean and
# spread again, which keeps its first two moments (Liu and West 2001).
SHRINKAGE = 0.99


@law(consistent)
class Spread(eqx.Module):
    """Resamples as `policy` does, and spreads the calibration of what was resampled.

    Law: consistent; the first two moments are kept, the measure is not.
    Paper: Liu and West (2001), Combined parameter and state estimation in simulation-based
    filtering, section 10.3.
    """

    policy: Policy

    def __call__(self, key: Key, particles: Particles) -> tuple[Particles, Resampling]:
        resample_key, spread_key = jax.random.split(key)
        chosen, resampling = self.policy(resample_key, particles)
        values = jnp.where(
            resampling.resampled, spread(spread_key, particles, chosen.values), chosen.values
        )
        return eqx.tree_at(lambda each: each.values, chosen, values), resampling


def spread(key: Key, particles: Particles, states: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """Returns states that were drawn from the particles, their calibration spread about them."""
    part = particles.values[:, OFFSET:]
    mean = particles.weights @ part
    sd = jnp.sqrt(jnp.maximum(particles.weights @ (part - mean) ** 2, 0))
    noise = jax.random.normal(key, (states.shape[0], part.shape[1]), states.dtype)
    kept = SHRINKAGE * states[:, OFFSET:] + (1 - SHRINKAGE) * mean
    return states.at[:, OFFSET:].set(kept + np.sqrt(1 - SHRINKAGE**2) * sd * noise)


def thinned(key: Key, particles: Particles, num: int) -> Particles:
    """Returns `num` equally weighted particles, their calibration spread."""
    resample_key, spread_key = jax.random.split(key)
    chosen = smc.resample(resample_key, particles, smc.systematic, num)
    values = spread(spread_key, particles, chosen.values)
    return eqx.tree_at(lambda each: each.values, chosen, values)


POLICY = Spread(smc.adaptive(smc.systematic))


def position(particles: Particles) -> tuple[Float[Array, "2"], Float[Array, "2 2"]]:
    """Returns mean and Cholesky factor of the weighted Gaussian of the position (m)."""
    mean = particles.weights @ particles.values[:, :2]
    gaps = jnp.sqrt(particles.weights)[:, None] * (particles.values[:, :2] - mean)
    # Two equal particles have no density; a micrometre of jitter is below anything scored.
    return mean, triangularize(jnp.linalg.cholesky(gaps.T @ gaps + 1e-6 * jnp.eye(2)))
