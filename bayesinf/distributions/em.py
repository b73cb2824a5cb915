"""Expectation maximisation for a mixture, in coordinates whitened by the data."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.linalg import triangularize

FLOOR = 1e-6  # added to a component's covariance, in units of the data's


class FitInfo(NamedTuple):
    """How good a fit is.

    Attributes:
        kl: estimate of KL(target || mixture) in nats; an estimate near 0 may come out negative.
        standard_error: of `kl`, in nats.
        ess: effective sample size, `1 / sum_i W_i^2`, of the weighted samples behind `kl`.
        valid: whether all values are finite; False only under a trace, where nothing can be raised.
    """

    kl: Float[Array, ""]
    standard_error: Float[Array, ""]
    ess: Float[Array, ""]
    valid: Bool[Array, ""]


def frame(samples, weights):
    """Returns the weighted mean, the factor of the covariance, and whether that has full rank."""
    # From one of the samples, so that what does not vary has a spread of exactly 0.
    mean = samples[0] + weights @ (samples - samples[0])
    chol = triangularize((jnp.sqrt(weights)[:, None] * (samples - mean)).T)
    scale = jnp.linalg.norm(chol, axis=1) + jnp.abs(mean)
    full_rank = jnp.all(jnp.diagonal(chol) > 10 * jnp.finfo(chol.dtype).eps * scale)
    return mean, chol, full_rank


def initial(key, samples, weights, num_components) -> GaussianMixture:
    """Returns equal round components at centres drawn by greedy k-means++."""
    first_key, key = jax.random.split(key)
    num_trials = 2 + int(math.log(num_components))

    def distances(centre):
        return jnp.sum((samples - centre) ** 2, axis=-1)

    def add(nearest, key):
        trials = jax.random.categorical(key, jnp.log(weights * nearest), shape=(num_trials,))
        candidates = jnp.minimum(nearest, jax.vmap(distances)(samples[trials]))
        best = jnp.argmin(candidates @ weights)
        return candidates[best], samples[trials[best]]

    first = samples[jax.random.categorical(first_key, jnp.log(weights))]
    nearest, others = jax.lax.scan(add, distances(first), jax.random.split(key, num_components - 1))
    dim = samples.shape[1]
    scale = jnp.sqrt(jnp.maximum(nearest @ weights / dim, FLOOR))
    return GaussianMixture(
        jnp.full(num_components, -math.log(num_components), samples.dtype),
        jnp.concatenate([first[None], others]),
        jnp.tile(scale * jnp.eye(dim, dtype=samples.dtype), (num_components, 1, 1)),
    )


def em(mixture, samples, weights, num_steps) -> GaussianMixture:
    def step(mixture, _):
        log_joint = mixture.log_weights + jax.vmap(mixture.component_log_probs)(samples)
        shares = weights[:, None] * jax.nn.softmax(log_joint, axis=-1)
        totals = jnp.sum(shares, axis=0)
        empty = totals <= 0
        shares = shares / jnp.where(empty, 1, totals)
        means = jnp.where(empty[:, None], mixture.means, shares.T @ samples)

        def bounded_chol(mean, share):
            centred = jnp.sqrt(share)[:, None] * (samples - mean)
            least = math.sqrt(FLOOR) * jnp.eye(samples.shape[1], dtype=samples.dtype)
            return triangularize(centred.T, least)

        chols = jax.vmap(bounded_chol)(means, shares.T)
        chols = jnp.where(empty[:, None, None], mixture.chols, chols)
        log_weights = jnp.log(totals / jnp.sum(totals))
        return GaussianMixture(log_weights, means, chols), None

    return jax.lax.scan(step, mixture, length=num_steps)[0]


def is_finite(mixture: GaussianMixture):
    log_weights = jnp.where(jnp.isneginf(mixture.log_weights), 0, mixture.log_weights)
    leaves = (log_weights, mixture.means, mixture.chols)
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def is_known(*arrays) -> bool:
    return not any(isinstance(x, Tracer) for x in arrays)
