"""Multinomial resampling: independent draws (Gordon, Salmond and Smith 1993)."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bayesinf.distributions.particles import relative_weights
from bayesinf.smc.resampling.fill import running
from bayesinf.types import Key, law, preserves


@law(preserves)
def multinomial(key: Key, log_weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Returns `num` independent ancestors, each particle with the probability of its weight.

    A particle without weight is never chosen; where no weight is positive all count alike.

    Law: preserves.
    Paper: Gordon, Salmond and Smith (1993), section 3.
    """
    weights = relative_weights(log_weights)
    # Sums that never fall and do not rise at a particle without weight, whatever the rounding.
    sums = jnp.where(weights > 0, running(jnp.add, weights), 0)
    sums = running(jnp.maximum, sums)
    thresholds = sums[-1] * jax.random.uniform(key, (num,), weights.dtype)
    found = jnp.searchsorted(sums, thresholds, side="right")
    last = weights.shape[0] - 1 - jnp.argmax(weights[::-1] > 0)
    return jnp.minimum(found, last)
