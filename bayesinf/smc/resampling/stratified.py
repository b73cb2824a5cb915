"""Stratified resampling: one uniform in each of `num` equal strata (Kitagawa 1996)."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bayesinf.distributions.particles import relative_weights
from bayesinf.smc.resampling.fill import expected_up_to, fill
from bayesinf.types import Key, law, preserves


@law(preserves)
def stratified(key: Key, log_weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Returns `num` ancestors in ascending order: the particles that (j + u_j) / num hit.

    A particle without weight is never chosen; where no weight is positive all count alike.

    Law: preserves.
    Paper: Kitagawa (1996), Monte Carlo filter and smoother, appendix.
    """
    weights = relative_weights(log_weights)
    uniforms = jax.random.uniform(key, (num,), weights.dtype)
    up_to = expected_up_to(weights, num)
    # Of the points below c all strata that end below it have one, and its own if u_j lies below.
    stratum = jnp.clip(up_to.astype(int), 0, num - 1)
    ends = stratum + (uniforms[stratum] < up_to - stratum)
    return fill(weights, ends, num)
