"""Predictions by nodes: integrals over outputs f ~ N(mean, cov), exact in the limit.

With one output 32 Gauss-Hermite nodes, else a rank-one lattice of at least 128 with exact first and
second moments. `log_marginal` and `moments` are methods that a family takes as they are.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float
from scipy.special import ndtri

from bayesinf.linalg import cholesky
from bayesinf.meta_niw.likelihoods.base import Likelihood

HERMITE = 32  # nodes for one output
LATTICE = 128  # and at least that many for more


def log_marginal(
    self: Likelihood, mean: Float[Array, " o"], cov: Float[Array, "o o"], y: Array
) -> Float[Array, ""]:
    """Returns the log density of y where f ~ N(mean, cov)."""
    log_weights, points = _at(mean, cov)
    return logsumexp(log_weights + jax.vmap(lambda f: self.log_prob(f, y))(points))


def moments(
    self: Likelihood, mean: Float[Array, " o"], cov: Float[Array, "o o"]
) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
    """Returns mean and covariance of y where f ~ N(mean, cov)."""
    log_weights, points = _at(mean, cov)
    return mixed_moments(log_weights, *jax.vmap(self.conditional)(points))


def mixed_moments(
    log_weights: Float[Array, " s"], means: Float[Array, "s o"], covs: Float[Array, "s o o"]
) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
    """Returns mean and covariance of a mixture."""
    weights = jnp.exp(log_weights)
    mean = weights @ means
    spread = means - mean
    return mean, jnp.einsum("s,sij->ij", weights, covs + spread[:, :, None] * spread[:, None])


@cache
def normal_nodes(dim: int) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "s {dim}"]]:
    """Returns log weights and nodes for integrals under N(0, I_dim).

    For one dimension Gauss-Hermite; else a lattice (Roberts' additive recurrence) through the
    normal's quantiles, with its mirror image, whitened so that second moments are exact.
    """
    if dim == 1:
        nodes, weights = np.polynomial.hermite_e.hermegauss(HERMITE)
        return np.log(weights / weights.sum()), nodes[:, None]
    half = max(LATTICE, 4 * dim) // 2
    ratio = 2.0
    for _ in range(60):  # the root of x^(dim + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (dim + 1))
    uniform = (0.5 + np.arange(1, half + 1)[:, None] * ratio ** -np.arange(1.0, dim + 1)) % 1
    nodes = ndtri(uniform)
    nodes = np.concatenate([nodes, -nodes])
    nodes = np.linalg.solve(np.linalg.cholesky(nodes.T @ nodes / len(nodes)), nodes.T).T
    return np.full(2 * half, -math.log(2 * half)), nodes


def _at(mean: Float[Array, " o"], cov: Float[Array, "o o"]):
    log_weights, nodes = normal_nodes(mean.size)
    points = mean + jnp.asarray(nodes, mean.dtype) @ cholesky(cov).T
    return jnp.asarray(log_weights, mean.dtype), points
