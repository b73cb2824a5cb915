"""Families of labels and counts, their outputs log odds or log rates."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln, logsumexp

from bayesinf.linalg import cholesky, half_log_det, posterior_factor, product, solve_lower
from bayesinf.meta_niw.likelihoods import nodes
from bayesinf.meta_niw.likelihoods.base import Likelihood, local_quadratic, numbers

# Whitened residuals beyond this say that one datum is impossible; its square stays finite.
RESIDUAL_BOUND = 1e12
# Beyond these a Poisson's log rate steps towards its count by 1 at a time, and does not overflow.
LOG_RATE_BOUND = 40.0


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

    quadratic = local_quadratic
    log_marginal = nodes.log_marginal
    moments = nodes.moments


class Bernoulli(Likelihood):
    """Each of the o outputs is the log odds of a y in {0, 1}."""

    def row_size(self, num_outputs):
        return num_outputs

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

    quadratic = local_quadratic
    log_marginal = nodes.log_marginal
    moments = nodes.moments


class Poisson(Likelihood):
    """Each of the o outputs is the log rate of a count y."""

    def row_size(self, num_outputs):
        return num_outputs

    def valid(self, y, num_outputs):
        return jnp.all((y >= 0) & (y == jnp.floor(y)) & jnp.isfinite(y))

    def log_prob(self, f, y):
        y = numbers(y, f)
        return jnp.sum(y * f - jnp.exp(f) - gammaln(y + 1))

    def local(self, f, y):
        root = jnp.exp(0.5 * jnp.clip(f, -LOG_RATE_BOUND, LOG_RATE_BOUND))
        return jnp.diag(root), numbers(y, f) / root - root

    def conditional(self, f):
        return jnp.exp(f), jnp.diag(jnp.exp(f))

    def draw(self, key, f):
        return jax.random.poisson(key, jnp.exp(f))

    quadratic = local_quadratic

    def log_marginal(self, mean, cov, y):
        """The nodes stand around the mode: a large count is far narrower than a wide f."""
        y = numbers(y, mean)
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
        log_weights, normal = nodes.normal_nodes(y.size)
        normal = jnp.asarray(normal, mean.dtype)
        around = z + normal @ posterior.T
        log_prob = jax.vmap(lambda z: self.log_prob(mean + product(chol, z), y))(around)
        ratio = 0.5 * jnp.sum(normal**2 - around**2, axis=1) + half_log_det(posterior)
        return logsumexp(jnp.asarray(log_weights, mean.dtype) + log_prob + ratio)

    def moments(self, mean, cov):
        rate = jnp.exp(mean + 0.5 * jnp.diagonal(cov))
        return rate, jnp.diag(rate) + rate[:, None] * rate * jnp.expm1(cov)


def _sign(y: Array, f: Array) -> Array:
    return 2 * numbers(y, f) - 1


def _one_hot(y: Array, f: Array) -> Array:
    return (jnp.arange(f.size) == y.reshape(())).astype(f.dtype)


def _bounded(residual: Array) -> Array:
    return jnp.clip(jnp.nan_to_num(residual), -RESIDUAL_BOUND, RESIDUAL_BOUND)
