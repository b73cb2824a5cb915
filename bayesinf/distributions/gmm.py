"""The Gaussian mixture, the closed-form representation that every pillar reads and writes."""

import math
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import ArrayLike, Float, Int

from bayesinf.linalg import half_log_det, posterior_factor, solve_lower, triangularize
from bayesinf.types import Key, checked

_LOG_TAU = math.log(2 * math.pi)  # a Python float, which leaves single precision single


@runtime_checkable
class HasLogProb(Protocol):
    """Anything with a log density over leading axes, a NumPyro distribution among them."""

    def log_prob(self, x: Any, /) -> Array: ...


class GaussianMixture(eqx.Module):
    """A mixture of k Gaussians on R^d, `sum_i w_i N(mean_i, chol_i chol_i^T)`.

    Attributes:
        log_weights: normalised; `-inf` marks an empty slot, so that a fixed k holds fewer
            components.
        means: component means.
        chols: lower triangular Cholesky factors of the covariances, with positive diagonals.

    One mixture is unbatched; batches come by `jax.vmap`. A Gaussian is a mixture with k = 1
    (`gaussian`).
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    chols: Float[Array, "k d d"]

    def __init__(self, log_weights: ArrayLike, means: ArrayLike, chols: ArrayLike):
        log_weights, means, chols = map(jnp.asarray, (log_weights, means, chols))
        if log_weights.ndim != 1 or log_weights.shape[0] == 0:
            raise ValueError(f"log_weights: shape {log_weights.shape} came, (k,) was expected")
        if means.ndim != 2 or means.shape[0] != log_weights.shape[0] or means.shape[1] == 0:
            raise ValueError(
                f"means: shape {means.shape} came, ({log_weights.shape[0]}, d) was expected"
            )
        if chols.shape != (*means.shape, means.shape[1]):
            expected = (*means.shape, means.shape[1])
            raise ValueError(f"chols: shape {chols.shape} came, {expected} was expected")
        for name, leaf in (("log_weights", log_weights), ("means", means), ("chols", chols)):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(f"{name}: dtype {leaf.dtype} came, a float was expected")
        self.log_weights, self.means, self.chols = log_weights, means, chols

    @property
    def num_components(self) -> int:
        return self.means.shape[-2]

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    def check_values(self, name: str) -> None:
        """Raises `ValueError` for values that are no mixture; `bayesinf.types.checked` asks."""
        log_weights, means, chols = map(np.asarray, (self.log_weights, self.means, self.chols))
        if np.isnan(log_weights).any() or (log_weights == np.inf).any():
            raise ValueError(f"{name}.log_weights: NaN or +inf came, finite or -inf was expected")
        total = np.exp(log_weights).sum(-1)
        if np.abs(total - 1).max() > 1e-3:
            raise ValueError(f"{name}.log_weights: weights sum to {total}, 1 was expected")
        if not np.isfinite(means).all():
            raise ValueError(f"{name}.means: NaN or infinite values came, finite was expected")
        if not np.isfinite(chols).all():
            raise ValueError(f"{name}.chols: NaN or infinite values came, finite was expected")
        if np.abs(np.triu(chols, 1)).max() > 0:
            raise ValueError(f"{name}.chols: entries above the diagonal came, 0 was expected")
        smallest = np.diagonal(chols, axis1=-2, axis2=-1).min()
        if smallest <= 0:
            raise ValueError(f"{name}.chols: diagonal entry {smallest} came, > 0 was expected")

    # Density and draws

    def component_log_probs(self, x: Float[Array, " d"]) -> Float[Array, " k"]:
        """Returns `log N(x; mean_i, chol_i chol_i^T)` of every component, without its weight."""
        whitened = jax.vmap(solve_lower)(self.chols, x - self.means)
        log_norm = jax.vmap(half_log_det)(self.chols) + 0.5 * self.dim * _LOG_TAU
        return -0.5 * jnp.sum(whitened**2, axis=-1) - log_norm

    def log_prob(self, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Returns the log density at `x`, over any leading axes of `x`."""
        if jnp.shape(x)[-1:] != (self.dim,):
            raise ValueError(f"x: shape {jnp.shape(x)} came, (..., {self.dim}) was expected")

        def one(x: Float[Array, " d"]) -> Float[Array, ""]:
            return logsumexp(self.log_weights + self.component_log_probs(x))

        return jnp.vectorize(one, signature="(d)->()")(x)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Returns independent draws with the given leading shape."""
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, self.log_weights, shape=shape)
        noise = jax.random.normal(noise_key, (*shape, self.dim), self.means.dtype)
        return self.means[component] + jnp.einsum("...ij,...j->...i", self.chols[component], noise)

    def mean(self) -> Float[Array, " d"]:
        """Returns the mean of the mixture."""
        return jnp.exp(self.log_weights) @ self.means

    def chol(self) -> Float[Array, "d d"]:
        """Returns the Cholesky factor of the covariance of the mixture."""
        root = jnp.exp(0.5 * self.log_weights)
        spread = root[:, None] * (self.means - self.mean())
        within = root[:, None, None] * self.chols
        return triangularize(*within, spread.T)

    def covariance(self) -> Float[Array, "d d"]:
        """Returns the covariance of the mixture, within plus between components."""
        chol = self.chol()
        return chol @ chol.T

    # Exact maps: Law: preserves (the measure, or its image under the stated map)

    def marginal(
        self, indices: Int[Array, " m"] | list[int] | tuple[int, ...]
    ) -> "GaussianMixture":
        """Returns the mixture of the coordinates `indices`, in that order.

        Law: preserves; the image of the mixture under the projection.
        """
        rows = self._coordinates(indices)
        chols = jax.vmap(lambda chol: triangularize(chol[rows]))(self.chols)
        return GaussianMixture(self.log_weights, self.means[:, rows], chols)

    def condition(
        self, indices: list[int] | tuple[int, ...], value: Float[Array, " m"]
    ) -> tuple["GaussianMixture", Float[Array, ""]]:
        """Returns the mixture of the other coordinates given `x[indices] = value`, and the log
        density of `value`, the evidence.

        Law: preserves; evidence times posterior is the joint density.
        """
        known = self._coordinates(indices)
        _expect("value", value, (known.size,))
        free = np.setdiff1d(np.arange(self.dim), known)
        if free.size == 0:
            raise ValueError(f"indices: all {self.dim} coordinates came, at least one must be free")

        def one(mean: Float[Array, " d"], chol: Float[Array, "d d"]):
            ordered = triangularize(chol[np.concatenate([known, free])])
            m = known.size
            residual = solve_lower(ordered[:m, :m], value - mean[known])
            log_prob = -0.5 * residual @ residual - half_log_det(ordered[:m, :m])
            return mean[free] + ordered[m:, :m] @ residual, ordered[m:, m:], log_prob

        means, chols, log_probs = jax.vmap(one)(self.means, self.chols)
        return self._reweighted(log_probs - 0.5 * known.size * _LOG_TAU, means, chols)

    def push(
        self,
        matrix: Float[Array, "m d"],
        offset: Float[Array, " m"],
        noise_factor: Float[Array, "m n"],
    ) -> "GaussianMixture":
        """Returns the mixture of `matrix x + offset + noise_factor e`, e standard normal.

        `noise_factor` may have any number of columns (singular noise), also none, as long as the
        image has a density.

        Law: preserves; the image of the mixture under the stochastic map.
        """
        _expect("matrix", matrix, (len(offset), self.dim))
        _expect("noise_factor", noise_factor[:, :0], (len(offset), 0))
        chols = jax.vmap(lambda chol: triangularize(matrix @ chol, noise_factor))(self.chols)
        return GaussianMixture(self.log_weights, self.means @ matrix.T + offset, chols)

    def update(
        self,
        matrix: Float[Array, "m d"],
        value: Float[Array, " m"],
        noise_chol: Float[Array, "m m"],
    ) -> tuple["GaussianMixture", Float[Array, ""]]:
        """Returns the posterior given `value = matrix x + noise_chol e`, and the log evidence.

        Law: reweight by the Gaussian likelihood, normalised; exact for every component.
        """
        _expect("matrix", matrix, (len(value), self.dim))
        _expect("noise_chol", noise_chol, (len(value), len(value)))

        def one(mean: Float[Array, " d"], chol: Float[Array, "d d"]):
            jacobian = solve_lower(noise_chol, matrix @ chol)
            residual = solve_lower(noise_chol, value - matrix @ mean)
            posterior = posterior_factor(jacobian)
            shift = posterior @ (posterior.T @ (jacobian.T @ residual))
            innovation = triangularize(jacobian, jnp.eye(value.size, dtype=value.dtype))
            whitened = solve_lower(innovation, residual)
            log_prob = -0.5 * whitened @ whitened - half_log_det(innovation)
            return mean + chol @ shift, chol @ posterior, log_prob

        means, chols, log_probs = jax.vmap(one)(self.means, self.chols)
        constant = half_log_det(noise_chol) + 0.5 * value.size * _LOG_TAU
        return self._reweighted(log_probs - constant, means, chols)

    def _reweighted(
        self, log_likelihoods, means, chols
    ) -> tuple["GaussianMixture", Float[Array, ""]]:
        log_weights = self.log_weights + log_likelihoods
        log_evidence = logsumexp(log_weights)
        return GaussianMixture(log_weights - log_evidence, means, chols), log_evidence

    def _coordinates(self, indices) -> np.ndarray:
        # A traced index clamps in silence where it is out of range, so the range is looked at here.
        rows = np.asarray(indices)
        valid = rows.ndim == 1 and rows.size > 0 and np.issubdtype(rows.dtype, np.integer)
        if valid:
            valid = -self.dim <= rows.min() and rows.max() < self.dim
            rows = rows % self.dim
        if not valid or np.unique(rows).size != rows.size:
            raise ValueError(
                f"indices: {indices} came, different coordinates out of {self.dim} were expected"
            )
        return rows

    # Distances

    def kl(
        self, key: Key, other: HasLogProb, num_samples: int = 10_000
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns a Monte Carlo estimate of KL(self || other) in nats and its standard error.

        Law: unbiased; `other` is anything with a `log_prob`.
        """
        if num_samples < 2:
            raise ValueError(f"num_samples: {num_samples} came, at least 2 was expected")
        x = self.sample(key, (num_samples,))
        gaps = self.log_prob(x) - other.log_prob(x)
        return jnp.mean(gaps), jnp.std(gaps, ddof=1) / math.sqrt(num_samples)

    # NumPyro, imported only when asked for

    def to_numpyro(self):
        """Returns the same distribution as a NumPyro `MixtureSameFamily`, to use as a prior."""
        from bayesinf.distributions.numpyro import mixture_to_numpyro

        return mixture_to_numpyro(self)

    @classmethod
    def from_numpyro(cls, distribution) -> "GaussianMixture":
        """Returns the mixture that a NumPyro distribution denotes; see `mixture_from_numpyro`.

        Raises:
            ValueError: the distribution is no mixture of Gaussians, or its values are none.
        """
        from bayesinf.distributions.numpyro import mixture_from_numpyro

        return checked(mixture_from_numpyro(distribution), "distribution")


def _expect(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if jnp.shape(x) != shape:
        raise ValueError(f"{name}: shape {jnp.shape(x)} came, {shape} was expected")


def gaussian(mean: ArrayLike, chol: ArrayLike) -> GaussianMixture:
    """Returns the Gaussian N(mean, chol chol^T) as a mixture of one component."""
    mean, chol = jnp.asarray(mean), jnp.asarray(chol)
    return GaussianMixture(jnp.zeros(1, mean.dtype), mean[None], chol[None])
