"""Systematic resampling: one uniform for an even grid (Kitagawa 1996)."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bayesinf.distributions.particles import relative_weights
from bayesinf.smc.resampling.fill import expected_up_to, fill
from bayesinf.types import Key, law, preserves


@law(preserves)
def systematic(key: Key, log_weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Returns `num` ancestors in ascending order: the particles that the grid (j + u) / num hits.

    Each particle has the whole number below or above `num` times its weight. A particle without
    weight is never chosen; where no weight is positive all count alike.

    Law: preserves.
    Paper: Kitagawa (1996), Monte Carlo filter and smoother, appendix; Carpenter et al. (1999).
    """
    weights = relative_weights(log_weights)
    uniform = jax.random.uniform(key, dtype=weights.dtype)
    # The grid points below c are those with j < num c - u.
    ends = jnp.ceil(expected_up_to(weights, num) - uniform)
    return fill(weights, ends.astype(int), num)
