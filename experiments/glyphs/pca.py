"""The exact two-level Gaussian on principal components: the floor that learned features must pass.

Class means are N(mean, between), images of a class N(its mean, within); both covariances are
estimated on the classes to learn from, and a query's class is by Bayes, in closed form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COMPONENTS, ROWS = 60, 15_000


class Levels(NamedTuple):
    """The linear map to components and the two levels' Gaussians there."""

    centre: jax.Array
    axes: jax.Array
    mean: jax.Array
    between: jax.Array
    within: jax.Array


def two_level_on_components(images) -> Levels:
    """Returns the model of classes (c, n, 28, 28); the class level is shrunk to a scaled identity,
    as an inverse Wishart of as many degrees of freedom as components does."""
    num_classes, num = images.shape[:2]
    x = images.reshape(num_classes * num, -1).astype(np.float32) / 255
    centre = x.mean(0)
    rows = np.sort(np.random.default_rng(0).choice(len(x), min(ROWS, len(x)), replace=False))
    axes = np.linalg.svd(x[rows] - centre, full_matrices=False)[2][:COMPONENTS].T
    z = ((x - centre) @ axes).reshape(num_classes, num, -1)
    means = z.mean(1)
    gaps = (z - means[:, None]).reshape(-1, z.shape[-1])
    within = gaps.T @ gaps / (len(gaps) - num_classes)
    dim = len(within)
    within = within + 0.02 * np.trace(within) / dim * np.eye(dim)
    values, vectors = np.linalg.eigh(np.cov(means.T) - within / num)
    between = (vectors * np.maximum(values, 1e-6)) @ vectors.T
    share = num_classes / (num_classes + dim)
    between = share * between + (1 - share) * np.trace(between) / dim * np.eye(dim)
    return Levels(*map(jnp.asarray, (centre, axes, means.mean(0), between, within)))


def log_probs(levels: Levels, task):
    """Returns log probabilities (N, Q, N) of the classes of the queries."""
    centre, axes, mean, between, within = levels

    def project(images):
        return (images.reshape(*images.shape[:2], -1) - centre) @ axes

    support, query = map(project, task)
    shots = support.shape[1]
    gain = jnp.linalg.solve(between + within / shots, between).T
    means = mean + (support.mean(1) - mean) @ gain.T
    chol = jnp.linalg.cholesky(between - gain @ between + within)
    gaps = query[:, :, None] - means
    whitened = jax.scipy.linalg.solve_triangular(chol, gaps.reshape(-1, len(chol)).T, lower=True)
    return jax.nn.log_softmax(-0.5 * jnp.sum(whitened**2, 0).reshape(gaps.shape[:-1]))
