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


def expected_up_to(weights: Float[Array, " n"], num: int) -> Float[Array, " n"]:
    """Returns how many of `num` offspring are expected of the particles up to each one."""
    sums = running_sum(weights)
    return sums * (num / sums[-1])


def fill(weights: Float[Array, " n"], ends: Int[Array, " n"], num: int) -> Int[Array, " num"]:
    """Returns the ancestors where the offspring of particle i take the slots from `ends[i - 1]` up
    to `ends[i]`, or up to `num` for the last one.

    A particle without weight has no slot, whatever the rounding of `ends`: it is not written, and a
    slot goes to the last one written at it or before.
    """
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    starts = jnp.where(weights > 0, starts, num)
    slots = jnp.zeros(num, starts.dtype).at[starts].max(jnp.arange(weights.size), mode="drop")
    first = jnp.argmax(weights > 0)
    return jax.lax.associative_scan(jnp.maximum, slots.at[:1].max(first))
