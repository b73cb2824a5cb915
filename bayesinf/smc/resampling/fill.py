"""What the resamplers share: weights of logs, running sums, and slots filled from starts."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def relative_weights(log_weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns weights in proportion to `exp(log_weights)`, the largest 1; where none is finite and
    positive they are all 1, so that every resampler has a defined result."""
    best = jnp.max(log_weights)
    return jnp.where(jnp.isfinite(best), jnp.exp(log_weights - best), 1)


def running_sum(x: Array) -> Array:
    """Returns the inclusive running sums; in logarithmic depth, which rounds less than one after
    another and is two to four times as fast as `jnp.cumsum` on a CPU."""
    return jax.lax.associative_scan(jnp.add, x)


def expected_before(weights: Float[Array, " n"], num: int) -> Float[Array, " n"]:
    """Returns how many of `num` offspring are expected of the particles before each one."""
    sums = running_sum(weights)
    before = jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]])
    return before * (num / sums[-1])


def fill(weights: Float[Array, " n"], starts: Int[Array, " n"], num: int) -> Int[Array, " num"]:
    """Returns the ancestors where the offspring of particle i begin at slot `starts[i]` and end
    where those of the next begin; the first start is 0.

    A particle without weight has no slot, whatever the rounding of `starts`: it is not written, and
    a slot goes to the last one written at it or before.
    """
    n = weights.shape[0]
    starts = jnp.where(weights > 0, starts, num)
    first = jnp.argmax(weights > 0)
    slots = jnp.zeros(num, starts.dtype).at[starts].max(jnp.arange(n), mode="drop")
    return jax.lax.associative_scan(jnp.maximum, slots.at[:1].max(first))
