"""The family of a datum given a network's outputs: what all of them have."""

import abc

import equinox as eqx
import jax
from jax import Array
from jaxtyping import Bool, Float, Shaped

from bayesinf.linalg import cholesky, product
from bayesinf.types import Key


class Likelihood(eqx.Module):
    """A conditional density p(y | f) of a row's data given the network's o outputs there.

    A family of one's own defines what is abstract here. `local_quadratic`, and `log_marginal` and
    `moments` of `nodes.py`, are methods of that form for families that have no better.
    """

    @abc.abstractmethod
    def row_size(self, num_outputs: int) -> int:
        """Returns how many numbers a row of y holds."""

    @abc.abstractmethod
    def valid(self, y: Shaped[Array, "..."], num_outputs: int) -> Bool[Array, ""]:
        """Returns whether a row of y is in the family's support."""

    @abc.abstractmethod
    def log_prob(self, f: Float[Array, " o"], y: Shaped[Array, "..."]) -> Float[Array, ""]:
        """Returns the log density of a row."""

    @abc.abstractmethod
    def local(
        self, f: Float[Array, " o"], y: Shaped[Array, "..."]
    ) -> tuple[Float[Array, "o o"], Float[Array, " o"]]:
        """Returns a factor L and a residual z, with the score `L z` and the information `L L^T` of
        f, positive semi-definite: that of the generalised Gauss-Newton method."""

    @abc.abstractmethod
    def quadratic(
        self, f: Float[Array, " o"], shift: Float[Array, " o"], y: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Returns the value at `f + shift` of the local quadratic of the log density at f."""

    @abc.abstractmethod
    def conditional(self, f: Float[Array, " o"]) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
        """Returns mean and covariance of y given f."""

    @abc.abstractmethod
    def draw(self, key: Key, f: Float[Array, " o"]) -> Shaped[Array, "..."]:
        """Returns a draw of y given f."""

    @abc.abstractmethod
    def log_marginal(
        self, mean: Float[Array, " o"], cov: Float[Array, "o o"], y: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Returns the log density of y where f ~ N(mean, cov)."""

    @abc.abstractmethod
    def moments(
        self, mean: Float[Array, " o"], cov: Float[Array, "o o"]
    ) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
        """Returns mean and covariance of y where f ~ N(mean, cov)."""

    def sample(
        self, key: Key, mean: Float[Array, " o"], cov: Float[Array, "o o"]
    ) -> Shaped[Array, "..."]:
        """Returns a draw of y where f ~ N(mean, cov)."""
        f_key, y_key = jax.random.split(key)
        noise = jax.random.normal(f_key, mean.shape, mean.dtype)
        return self.draw(y_key, mean + product(cholesky(cov), noise))


def local_quadratic(
    self: Likelihood, f: Float[Array, " o"], shift: Float[Array, " o"], y: Array
) -> Float[Array, ""]:
    """Returns the quadratic with the family's value, score and information at f; a method."""
    factor, residual = self.local(f, y)
    step = factor.T @ shift
    return self.log_prob(f, y) + residual @ step - 0.5 * step @ step


def numbers(y: Array, f: Array) -> Array:
    """Returns a row of y as numbers like the outputs."""
    return y.reshape(f.shape).astype(f.dtype)
