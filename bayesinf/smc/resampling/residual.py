"""Residual resampling: the whole offspring for sure, the rest by chance (Liu and Chen 1998)."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bayesinf.distributions.particles import relative_weights
from bayesinf.smc.resampling.fill import fill, running
from bayesinf.smc.resampling.multinomial import multinomial
from bayesinf.types import Key, law, preserves


@law(preserves)
def residual(key: Key, log_weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Returns `num` ancestors: `floor(num W_i)` times each, then draws from what is left.

    A particle without weight is never chosen; where no weight is positive all count alike.

    Law: preserves.
    Paper: Liu and Chen (1998), Sequential Monte Carlo methods for dynamic systems, section 3.2.
    """
    weights = relative_weights(log_weights)
    expected = weights * (num / jnp.sum(weights))
    whole = jnp.floor(expected)
    ends = running(jnp.add, whole.astype(int))
    sure = fill(whole, ends, num)
    # What is left for chance is drawn for every slot and used where no sure offspring stands.
    drawn = multinomial(key, jnp.log(expected - whole), num)
    return jnp.where(jnp.arange(num) < ends[-1], sure, drawn)
