"""What a network's outputs say of a datum: densities, their local quadratics, and predictions.

A likelihood sees the o outputs f of one row and its y. Beside the density it gives

- `local`: a factor L and a residual z with score `L z` and information `L L^T`, positive
  semi-definite: that of the generalised Gauss-Newton method, for all but the Student-t Fisher's;
- `log_marginal`, `moments`, `sample`: the prediction of y where f ~ N(mean, cov).

A family that knows `valid`, `log_prob`, `local`, `conditional` and `draw` has its predictions by
nodes; the Gaussian and Student-t override them by closed forms.
"""

import math
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import ArrayLike, Bool, Float, Shaped
from scipy.special import ndtri

from bayesinf.linalg import cholesky, half_log_det, posterior_factor, product, solve_lower
from bayesinf.types import Key, require

_LOG_TAU = math.log(2 * math.pi)
HERMITE = 32  # nodes for one output
LATTICE = 128  # and at least that many for more
# Whitened residuals beyond this say that one datum is impossible; its square stays finite.
RESIDUAL_BOUND = 1e12
# What an outlier's information is at least, as a share of its weight.
LEAST_INFORMATION = 0.05
# Beyond these a Poisson's log rate steps towards its count by 1 at a time, and does not overflow.
LOG_RATE_BOUND = 40.0


class Likelihood(eqx.Module):
    """A conditional density p(y | f) of a row's data given the network's o outputs there.

    Here are the predictions by nodes, exact in the limit; with one output by 32 Gauss-Hermite
    nodes, else by a rank-one lattice of at least 128 with exact first and second moments.
    """

    def row_size(self, num_outputs: int) -> int:
        """Returns how many numbers a row of y holds."""
        return num_outputs

    def valid(self, y: Shaped[Array, "..."], num_outputs: int) -> Bool[Array, ""]:
        """Returns whether a row of y is in the family's support."""
        raise NotImplementedError

    def log_prob(self, f: Float[Array, " o"], y: Shaped[Array, "..."]) -> Float[Array, ""]:
        """Returns the log density of a row."""
        raise NotImplementedError

    def local(
        self, f: Float[Array, " o"], y: Shaped[Array, "..."]
    ) -> tuple[Float[Array, "o o"], Float[Array, " o"]]:
        """Returns L and z, with the score `L z` and the information `L L^T` of f."""
        raise NotImplementedError

    def conditional(self, f: Float[Array, " o"]) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
        """Returns mean and covariance of y given f."""
        raise NotImplementedError

    def draw(self, key: Key, f: Float[Array, " o"]) -> Shaped[Array, "..."]:
        """Returns a draw of y given f."""
        raise NotImplementedError

    def quadratic(
        self, f: Float[Array, " o"], shift: Float[Array, " o"], y: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Returns the value at `f + shift` of the local quadratic of the log density at f."""
        factor, residual = self.local(f, y)
        step = factor.T @ shift
        return self.log_prob(f, y) + residual @ step - 0.5 * step @ step

    def log_marginal(
        self, mean: Float[Array, " o"], cov: Float[Array, "o o"], y: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """Returns the log density of y where f ~ N(mean, cov)."""
        log_weights, points = _nodes(mean, cov)
        return logsumexp(log_weights + jax.vmap(lambda f: self.log_prob(f, y))(points))

    def moments(
        self, mean: Float[Array, " o"], cov: Float[Array, "o o"]
    ) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
        """Returns mean and covariance of y where f ~ N(mean, cov)."""
        log_weights, points = _nodes(mean, cov)
        return mixed_moments(log_weights, *jax.vmap(self.conditional)(points))

    def sample(
        self, key: Key, mean: Float[Array, " o"], cov: Float[Array, "o o"]
    ) -> Shaped[Array, "..."]:
        """Returns a draw of y where f ~ N(mean, cov)."""
        f_key, y_key = jax.random.split(key)
        noise = jax.random.normal(f_key, mean.shape, mean.dtype)
        return self.draw(y_key, mean + product(cholesky(cov), noise))


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

    def valid(self, y, num_outputs):
        return jnp.all(jnp.isfinite(y))

    def log_prob(self, f, y):
        z = (_numbers(y, f) - f) / self.scale
        return -0.5 * z @ z - jnp.sum(jnp.broadcast_to(self.log_scale, f.shape) + 0.5 * _LOG_TAU)

    def local(self, f, y):
        return _diagonal(1 / self.scale, f), (_numbers(y, f) - f) / self.scale

    def conditional(self, f):
        return f, _diagonal(self.scale**2, f)

    def draw(self, key, f):
        return f + self.scale * jax.random.normal(key, f.shape, f.dtype)

    # The quadratic and the prediction are exact.

    def quadratic(self, f, shift, y):
        return self.log_prob(f + shift, y)

    def log_marginal(self, mean, cov, y):
        return _normal_log_prob(_numbers(y, mean) - mean, cov + _diagonal(self.scale**2, mean))

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

    def valid(self, y, num_outputs):
        return jnp.all(jnp.isfinite(y))

    def log_prob(self, f, y):
        df, z = self.df, (_numbers(y, f) - f) / self.scale
        normaliser = gammaln((df + f.size) / 2) - gammaln(df / 2)
        normaliser -= 0.5 * f.size * (jnp.log(df * math.pi) + 2 * self.log_scale)
        return normaliser - 0.5 * (df + f.size) * jnp.log1p(z @ z / df)

    def local(self, f, y):
        # The observed information, w (I - 2 z z^T / (df + |z|^2)) in units of the scale, which
        # along z is held above a small share of w: an outlier tells where it is not. The Fisher
        # information, an average over y, takes outliers for evidence like any other.
        df, z = self.df, (_numbers(y, f) - f) / self.scale
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

    def log_marginal(self, mean, cov, y):
        """Given the precision y is Gaussian; its integral is by the trapezoidal rule in the log."""
        half = self.df / 2
        tail = 24 / half  # where the density is down by exp(-24)
        low, high = -tail - 1, jnp.log1p(tail + jnp.sqrt(2 * tail))
        log_u = low + (high - low) * jnp.linspace(0, 1, 48, dtype=mean.dtype)
        log_weights = jax.nn.log_softmax(half * (log_u - jnp.exp(log_u)))
        residual, eye = _numbers(y, mean) - mean, _diagonal(self.scale**2, mean)
        given = jax.vmap(lambda t: _normal_log_prob(residual, cov + eye * jnp.exp(-t)))(log_u)
        return logsumexp(log_weights + given)

    def moments(self, mean, cov):
        return mean, cov + self.conditional(mean)[1]


class Categorical(Likelihood):
    """y is one of o classes with probabilities softmax(f); `mean` and `cov` are of its one-hot."""

    def row_size(self, num_outputs):
        return 1

    def valid(self, y, num_outputs):
        label = y.reshape(())
        return (label >= 0) & (label < num_outputs) & (label == jnp.floor(label))

    def log_prob(self, f, y):
        return jax.nn.log_softmax(f) @ _one_hot(y, f)

    def local(self, f, y):
        log_p = jax.nn.log_softmax(f)
        root = jnp.exp(0.5 * log_p)
        factor = jnp.diag(root) - jnp.exp(log_p)[:, None] * root
        residual = (_one_hot(y, f) - jnp.exp(log_p)) * jnp.exp(-0.5 * log_p)
        return factor, _bounded(residual)

    def conditional(self, f):
        p = jax.nn.softmax(f)
        return p, jnp.diag(p) - p[:, None] * p

    def draw(self, key, f):
        return jax.random.categorical(key, f)


class Bernoulli(Likelihood):
    """Each of the o outputs is the log odds of a y in {0, 1}."""

    def valid(self, y, num_outputs):
        return jnp.all((y == 0) | (y == 1))

    def log_prob(self, f, y):
        return jnp.sum(jax.nn.log_sigmoid(_sign(y, f) * f))

    def local(self, f, y):
        sign = _sign(y, f)
        root = jnp.exp(0.5 * (jax.nn.log_sigmoid(f) + jax.nn.log_sigmoid(-f)))
        return jnp.diag(root), _bounded(sign * jnp.exp(-0.5 * sign * f))

    def conditional(self, f):
        p = jax.nn.sigmoid(f)
        return p, jnp.diag(p * (1 - p))

    def draw(self, key, f):
        return jax.random.bernoulli(key, jax.nn.sigmoid(f)).astype(int)


class Poisson(Likelihood):
    """Each of the o outputs is the log rate of a count y."""

    def valid(self, y, num_outputs):
        return jnp.all((y >= 0) & (y == jnp.floor(y)) & jnp.isfinite(y))

    def log_prob(self, f, y):
        y = _numbers(y, f)
        return jnp.sum(y * f - jnp.exp(f) - gammaln(y + 1))

    def local(self, f, y):
        root = jnp.exp(0.5 * jnp.clip(f, -LOG_RATE_BOUND, LOG_RATE_BOUND))
        return jnp.diag(root), _numbers(y, f) / root - root

    def conditional(self, f):
        return jnp.exp(f), jnp.diag(jnp.exp(f))

    def draw(self, key, f):
        return jax.random.poisson(key, jnp.exp(f))

    def log_marginal(self, mean, cov, y):
        """The nodes stand around the mode: a large count is far narrower than a wide f."""
        y = _numbers(y, mean)
        chol = cholesky(cov)
        variance = jnp.maximum(jnp.diagonal(cov), jnp.finfo(mean.dtype).tiny ** 0.25)
        # The mode of one output, by Lambert's W: exp(u) + u = log v + m + v y, f = u - log v.
        target = jnp.log(variance) + mean + variance * y
        u = jnp.where(target > 1, jnp.log(jnp.maximum(target, 1)), target)
        for _ in range(6):
            u = u - (jnp.exp(u) + u - target) / (jnp.exp(u) + 1)
        z = solve_lower(chol, u - jnp.log(variance) - mean)
        for _ in range(1 if y.size == 1 else 4):
            f = mean + product(chol, z)
            factor, residual = self.local(f, y)
            information = product(factor, chol)
            posterior = posterior_factor(information)
            residual = residual + information @ z
            z = posterior @ (posterior.T @ (information.T @ residual))
        log_weights, nodes = normal_nodes(y.size)
        nodes = jnp.asarray(nodes, mean.dtype)
        around = z + nodes @ posterior.T
        log_prob = jax.vmap(lambda z: self.log_prob(mean + product(chol, z), y))(around)
        ratio = 0.5 * jnp.sum(nodes**2 - around**2, axis=1) + half_log_det(posterior)
        return logsumexp(jnp.asarray(log_weights, mean.dtype) + log_prob + ratio)

    def moments(self, mean, cov):
        rate = jnp.exp(mean + 0.5 * jnp.diagonal(cov))
        return rate, jnp.diag(rate) + rate[:, None] * rate * jnp.expm1(cov)


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


def mixed_moments(
    log_weights: Float[Array, " s"], means: Float[Array, "s o"], covs: Float[Array, "s o o"]
) -> tuple[Float[Array, " o"], Float[Array, "o o"]]:
    """Returns mean and covariance of a mixture."""
    weights = jnp.exp(log_weights)
    mean = weights @ means
    spread = means - mean
    return mean, jnp.einsum("s,sij->ij", weights, covs + spread[:, :, None] * spread[:, None])


def _nodes(mean: Float[Array, " o"], cov: Float[Array, "o o"]):
    log_weights, nodes = normal_nodes(mean.size)
    points = mean + jnp.asarray(nodes, mean.dtype) @ cholesky(cov).T
    return jnp.asarray(log_weights, mean.dtype), points


def _normal_log_prob(residual: Float[Array, " o"], cov: Float[Array, "o o"]) -> Float[Array, ""]:
    chol = cholesky(cov)
    z = solve_lower(chol, residual)
    return -0.5 * z @ z - half_log_det(chol) - 0.5 * z.size * _LOG_TAU


def _log(value: ArrayLike, name: str) -> Float[Array, "..."]:
    value = jnp.asarray(value, jnp.result_type(value, float))
    if not isinstance(value, Tracer):
        require((value > 0) & jnp.isfinite(value), f"{name}: {value} came, > 0 was expected")
    return jnp.log(value)


def _numbers(y: Array, f: Array) -> Array:
    return y.reshape(f.shape).astype(f.dtype)


def _sign(y: Array, f: Array) -> Array:
    return 2 * _numbers(y, f) - 1


def _one_hot(y: Array, f: Array) -> Array:
    return (jnp.arange(f.size) == y.reshape(())).astype(f.dtype)


def _diagonal(value: Array, f: Array) -> Array:
    return jnp.diag(jnp.broadcast_to(value, f.shape))


def _bounded(residual: Array) -> Array:
    return jnp.clip(jnp.nan_to_num(residual), -RESIDUAL_BOUND, RESIDUAL_BOUND)
