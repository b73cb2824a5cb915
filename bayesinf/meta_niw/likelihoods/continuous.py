"""Families of real outputs: predictions in closed form, or by one integral."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import ArrayLike, Float

from bayesinf.distributions.gmm import gaussian
from bayesinf.linalg import cholesky
from bayesinf.meta_niw.likelihoods.base import Likelihood, local_quadratic, numbers
from bayesinf.types import require

_LOG_TAU = math.log(2 * math.pi)
# What an outlier's information is at least, as a share of its weight.
LEAST_INFORMATION = 0.05


class Gaussian(Likelihood):
    """y = f + noise, the noise independent N(0, scale^2), one scale or one for each output.

    `log_scale` is a leaf, so noise is learned where a training reaches it.
    """

    log_scale: Float[Array, "..."]

    def __init__(self, scale: ArrayLike):
        self.log_scale = _log(scale, "scale")

    @property
    def scale(self) -> Float[Array, "..."]:
        return jnp.exp(self.log_scale)

    def row_size(self, num_outputs):
        return num_outputs

    def valid(self, y, num_outputs):
        return jnp.all(jnp.isfinite(y))

    def log_prob(self, f, y):
        z = (numbers(y, f) - f) / self.scale
        return -0.5 * z @ z - jnp.sum(jnp.broadcast_to(self.log_scale, f.shape) + 0.5 * _LOG_TAU)

    def local(self, f, y):
        return _diagonal(1 / self.scale, f), (numbers(y, f) - f) / self.scale

    def conditional(self, f):
        return f, _diagonal(self.scale**2, f)

    def draw(self, key, f):
        return f + self.scale * jax.random.normal(key, f.shape, f.dtype)

    def quadratic(self, f, shift, y):
        return self.log_prob(f + shift, y)

    def log_marginal(self, mean, cov, y):
        cov = cov + _diagonal(self.scale**2, mean)
        return gaussian(mean, cholesky(cov)).log_prob(numbers(y, mean))

    def moments(self, mean, cov):
        return mean, cov + _diagonal(self.scale**2, mean)


class StudentT(Likelihood):
    """y = f + noise, the noise multivariate Student-t with `df` degrees and `scale^2 I`.

    One outlying output casts doubt on its row's other outputs: they share one precision, drawn from
    Gamma(df / 2, df / 2). `log_df` and `log_scale` are leaves.
    """

    log_df: Float[Array, ""]
    log_scale: Float[Array, ""]

    def __init__(self, df: ArrayLike, scale: ArrayLike):
        self.log_df, self.log_scale = _log(df, "df"), _log(scale, "scale")
        for name, leaf in (("df", self.log_df), ("scale", self.log_scale)):
            if leaf.ndim:
                raise ValueError(f"{name}: shape {leaf.shape} came, a scalar was expected")

    @property
    def df(self) -> Float[Array, ""]:
        return jnp.exp(self.log_df)

    @property
    def scale(self) -> Float[Array, ""]:
        return jnp.exp(self.log_scale)

    def row_size(self, num_outputs):
        return num_outputs

    def valid(self, y, num_outputs):
        return jnp.all(jnp.isfinite(y))

    def log_prob(self, f, y):
        df, z = self.df, (numbers(y, f) - f) / self.scale
        normaliser = gammaln((df + f.size) / 2) - gammaln(df / 2)
        normaliser -= 0.5 * f.size * (jnp.log(df * math.pi) + 2 * self.log_scale)
        return normaliser - 0.5 * (df + f.size) * jnp.log1p(z @ z / df)

    def local(self, f, y):
        # The observed information, w (I - 2 z z^T / (df + |z|^2)) in units of the scale, which
        # along z is held above a small share of w: an outlier tells where it is not. The Fisher
        # information, an average over y, takes outliers for evidence like any other.
        df, z = self.df, (numbers(y, f) - f) / self.scale
        square = z @ z
        root = jnp.sqrt((df + f.size) / (df + square))
        along = jnp.sqrt(jnp.maximum(1 - 2 * square / (df + square), LEAST_INFORMATION))
        bend = jnp.minimum(
            2 / (df + square), (1 - LEAST_INFORMATION) / jnp.maximum(square, 0.5 * df)
        ) / (1 + along)
        factor = root / self.scale * (jnp.eye(f.size, dtype=f.dtype) - bend * z[:, None] * z)
        return factor, root / along * z

    def conditional(self, f):
        df = self.df
        spread = jnp.where(df > 2, df / jnp.where(df > 2, df - 2, 1), jnp.inf)
        return f, _diagonal(self.scale**2 * spread, f)

    def draw(self, key, f):
        noise_key, precision_key = jax.random.split(key)
        precision = jax.random.gamma(precision_key, self.df / 2, dtype=f.dtype) / (self.df / 2)
        noise = jax.random.normal(noise_key, f.shape, f.dtype)
        return f + self.scale * noise / jnp.sqrt(precision)

    quadratic = local_quadratic

    def log_marginal(self, mean, cov, y):
        """Given the precision y is Gaussian; its integral is by the trapezoidal rule in the log."""
        half = self.df / 2
        tail = 24 / half  # where the density is down by exp(-24)
        low, high = -tail - 1, jnp.log1p(tail + jnp.sqrt(2 * tail))
        log_u = low + (high - low) * jnp.linspace(0, 1, 48, dtype=mean.dtype)
        log_weights = jax.nn.log_softmax(half * (log_u - jnp.exp(log_u)))
        noise = _diagonal(self.scale**2, mean)

        def given(log_u):
            chol = cholesky(cov + jnp.exp(-log_u) * noise)
            return gaussian(mean, chol).log_prob(numbers(y, mean))

        return logsumexp(log_weights + jax.vmap(given)(log_u))

    def moments(self, mean, cov):
        return mean, cov + self.conditional(mean)[1]


def _log(value: ArrayLike, name: str) -> Float[Array, "..."]:
    value = jnp.asarray(value, jnp.result_type(value, float))
    if not isinstance(value, Tracer):
        require((value > 0) & jnp.isfinite(value), f"{name}: {value} came, > 0 was expected")
    return jnp.log(value)


def _diagonal(value: Array, f: Array) -> Array:
    return jnp.diag(jnp.broadcast_to(value, f.shape))
