"""A bootstrap particle filter for a robot's log (Gordon, Salmond and Smith 1993)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from bayesinf.fusion.robot import OFFSET
from bayesinf.linalg import triangularize
from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.types import Key

# Static calibration would die out in resampling; after each one it is shrunk to its mean and
# spread again, which keeps its first two moments (Liu and West 2001).
SHRINKAGE = 0.99


class Cloud(NamedTuple):
    """Weighted particles: n states and their normalised log weights."""

    states: Float[Array, "n d"]
    log_weights: Float[Array, " n"]


def systematic(key: Key, log_weights: Float[Array, " n"], num: int) -> Array:
    """Returns the ancestors of `num` particles by systematic resampling."""
    positions = (jnp.arange(num) + jax.random.uniform(key)) / num
    cumulative = jnp.cumsum(jnp.exp(log_weights))
    found = jnp.searchsorted(cumulative / cumulative[-1], positions)
    return jnp.minimum(found, log_weights.size - 1)


def resample(key: Key, cloud: Cloud, num: int) -> Cloud:
    """Returns `num` equally weighted particles, their calibration kept from dying out."""
    ancestor_key, spread_key = jax.random.split(key)
    weights = jnp.exp(cloud.log_weights)
    part = cloud.states[:, OFFSET:]
    mean = weights @ part
    sd = jnp.sqrt(jnp.maximum(weights @ (part - mean) ** 2, 0))
    states = cloud.states[systematic(ancestor_key, cloud.log_weights, num)]
    noise = jax.random.normal(spread_key, (num, part.shape[1]), states.dtype)
    kept = SHRINKAGE * states[:, OFFSET:] + (1 - SHRINKAGE) * mean
    spread = np.sqrt(1 - SHRINKAGE**2) * sd * noise
    states = states.at[:, OFFSET:].set(kept + spread)
    return Cloud(states, jnp.full(num, -np.log(num), states.dtype))


def step(key: Key, model: StateSpace, cloud: Cloud, frame: Frame) -> tuple[Cloud, Float[Array, ""]]:
    """Returns the particles after one frame and the log density of its readings given the past.

    Law: proper; the density's exponential is unbiased over the whole log but for the spread of the
    calibration.
    """
    resample_key, noise_key = jax.random.split(key)
    num = cloud.log_weights.size

    # resample, where fewer than half of the particles count
    ess = jnp.exp(-logsumexp(2 * cloud.log_weights))
    cloud = jax.lax.cond(
        ess < num / 2, lambda cloud: resample(resample_key, cloud, num), lambda c: c, cloud
    )

    # propagate
    noise = jax.random.normal(noise_key, (num, model.dynamics.noise_size), cloud.states.dtype)
    move = jax.vmap(model.dynamics, (0, 0, None, None))
    states = move(cloud.states, noise, frame.elapsed, frame.input)

    # reweight
    log_likelihoods = jax.vmap(model.log_likelihood, (0, None))(states, frame.readings)
    log_weights = cloud.log_weights + log_likelihoods
    log_evidence = logsumexp(log_weights)
    return Cloud(states, log_weights - log_evidence), log_evidence


def position(cloud: Cloud) -> tuple[Float[Array, "2"], Float[Array, "2 2"]]:
    """Returns mean and Cholesky factor of the weighted Gaussian of the position (m)."""
    weights = jnp.exp(cloud.log_weights)
    mean = weights @ cloud.states[:, :2]
    gaps = jnp.sqrt(weights)[:, None] * (cloud.states[:, :2] - mean)
    # Two equal particles have no density; a micrometre of jitter is below anything scored.
    return mean, triangularize(jnp.linalg.cholesky(gaps.T @ gaps + 1e-6 * jnp.eye(2)))
