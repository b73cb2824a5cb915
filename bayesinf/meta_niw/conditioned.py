"""A Gaussian conditioned on linear data, and an episode's posterior, which has this form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.covariance import Covariance, normal_log_prob
from bayesinf.distributions.operators import Operator
from bayesinf.linalg import half_log_det, solve_lower, solve_upper
from bayesinf.types import Key


class Conditioned(eqx.Module):
    """The covariance `S - S W^T (I + W S W^T)^-1 W S`, the inverse of `S^-1 + W^T W`, implicitly.

    Attributes:
        prior: S.
        factor: W, the rows of the information.
        chol: lower Cholesky factor of `I + W S W^T`.
    """

    prior: Any  # a covariance, which may itself be conditioned
    factor: Float[Array, "r d"]
    chol: Float[Array, "r r"]

    @property
    def dim(self) -> int:
        return self.factor.shape[-1]

    def _whiten(self, b: Float[Array, "d *n"]) -> Float[Array, "r *n"]:
        return solve_lower(self.chol, self.factor @ b)

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        """Returns `cov b`."""
        prior = self.prior.matmul(b)
        dual = solve_upper(self.chol, self._whiten(prior))
        return prior - self.prior.matmul(self.factor.T @ dual)

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        """Returns `inv(cov) b`."""
        return self.prior.solve(b) + self.factor.T @ (self.factor @ b)

    def half_log_det(self) -> Float[Array, ""]:
        return self.prior.half_log_det() - half_log_det(self.chol)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Returns zero-mean draws: of the prior, corrected by noisy data (Matheron's rule)."""
        prior_key, noise_key = jax.random.split(key)
        draws = self.prior.sample(prior_key, shape)
        noise = jax.random.normal(noise_key, (*shape, self.factor.shape[0]), draws.dtype)
        residual = (noise - draws @ self.factor.T).reshape(-1, self.factor.shape[0]).T
        dual = solve_upper(self.chol, solve_lower(self.chol, residual))
        return draws + self.prior.matmul(self.factor.T @ dual).T.reshape(draws.shape)

    def diagonal(self) -> Float[Array, " d"]:
        gain = solve_lower(self.chol, self.prior.matmul(self.factor.T).T)
        return self.prior.diagonal() - jnp.sum(gain**2, axis=0)

    def dense(self) -> Float[Array, "d d"]:
        gain = solve_lower(self.chol, self.prior.matmul(self.factor.T).T)
        return self.prior.dense() - gain.T @ gain

    def scaled(self, c: Float[Array, ""] | float) -> "Conditioned":
        """Returns `c cov`."""
        return Conditioned(self.prior.scaled(c), self.factor / jnp.sqrt(c), self.chol)

    def covariance_of(self, rows: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """Returns `rows cov rows^T`."""
        back = self.prior.matmul(rows.T)
        gain = self._whiten(back)
        return rows @ back - gain.T @ gain

    def trace_solve(self, other: Operator) -> Float[Array, ""]:
        """Returns the trace of `inv(cov) other`."""
        within = jnp.sum(self.factor.T * other.matmul(self.factor.T))
        return self.prior.trace_solve(other) + within


Spread = Covariance | Conditioned


class LocalPosterior(eqx.Module):
    """A Gaussian over one episode's weights, and the evidence of its data.

    Attributes:
        mean: the mean; for a Laplace fit the mode.
        cov: the covariance, a structure that need not be dense.
        log_evidence: log of the data's density under the prior, as the fit sees it.
        decrement: the squared Newton decrement at the last linearisation: twice what the fit, in
            nats, still gained by its last step, so near 0 where it has converged.
    """

    mean: Float[Array, " d"]
    cov: Spread
    log_evidence: Float[Array, ""]
    decrement: Float[Array, ""]

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        """Returns the log density at `theta`."""
        return normal_log_prob(theta - self.mean, self.cov)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Returns independent draws with the given leading shape."""
        return self.mean + self.cov.sample(key, shape)

    def diagonal(self) -> Float[Array, " d"]:
        """Returns the variances."""
        return self.cov.diagonal()

    def dense(self) -> Float[Array, "d d"]:
        """Returns the covariance as a matrix."""
        return self.cov.dense()

    def covariance_of(self, rows: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """Returns the covariance of `rows theta`."""
        if isinstance(self.cov, Conditioned):
            return self.cov.covariance_of(rows)
        return rows @ self.cov.matmul(rows.T)
