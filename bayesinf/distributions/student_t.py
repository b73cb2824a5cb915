"""The multivariate Student-t, and its form as a Gaussian of random scale."""

import math
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammainc, gammaincc, gammaln, log_ndtr, ndtri
from jaxtyping import Float

from bayesinf.distributions.covariance import Blocks, Diagonal
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.types import Key

_NEWTON_STEPS = 4
_LARGE_DF = 200.0  # from here on the start is right to 1e-6, and the incomplete gamma is not


class StudentT(eqx.Module):
    """t(loc, scale, df): theta = loc + e / sqrt(u), e ~ N(0, scale), u ~ Gamma(df/2, rate df/2).

    With a `Diagonal` scale it is the product of d one-dimensional t's, and with `Blocks` that of
    one a block, each with its own `df`.

    Attributes:
        loc: its centre.
        scale: a covariance; the law's own is `df / (df - 2)` times it.
        df: degrees of freedom, one a block where the scale is `Blocks`.
    """

    loc: Float[Array, " d"]
    scale: Any
    df: Float[Array, "..."]

    def log_prob(self, x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Returns the log density at `x`, over any leading axes."""

        def one(x: Float[Array, " d"]) -> Float[Array, ""]:
            return jnp.stack([_log_density(*each) for each in self._pieces(x - self.loc)]).sum()

        return jnp.vectorize(one, signature="(d)->()")(x)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Returns independent draws."""
        normal_key, gamma_key = jax.random.split(key)
        noise = self.scale.sample(normal_key, shape)
        # One scale a coordinate, or one a block, or one for the whole vector.
        size = len(self.loc) if isinstance(self.scale, Diagonal) else self.df.size
        half = 0.5 * self.df.reshape(-1)
        u = jax.random.gamma(gamma_key, half, (*shape, size), noise.dtype) / half
        return self.loc + noise / jnp.sqrt(self._by_coordinate(u))

    def nodes(self, num_nodes: int = 8) -> tuple[Float[Array, " q"], Any]:
        """Returns log weights and stacked covariances of Gaussians at `loc` whose mixture is the t.

        Gauss-Hermite nodes of a standard normal z, at each of which the scale is the quantile of
        u at the level of z. Where the law is a product all factors share z: each factor's marginal
        is its own t, but their scales rise and fall together, where those of the product are
        independent.
        """
        z, log_weights = _hermite(num_nodes)
        z = jnp.asarray(z, self.loc.dtype)

        def covariance(z):
            if isinstance(self.scale, Blocks):
                u = [gamma_quantile(z, df) for df in self.df]
                pairs = zip(self.scale.blocks, u, strict=True)
                return Blocks(part.scaled(1 / c) for part, c in pairs)
            return self.scale.scaled(1 / gamma_quantile(z, self.df))

        return jnp.asarray(log_weights, self.loc.dtype), jax.vmap(covariance)(z)

    def to_mixture(self, num_nodes: int = 8) -> GaussianMixture:
        """Returns the mixture of `nodes`, with dense Cholesky factors."""
        log_weights, covs = self.nodes(num_nodes)
        chols = jnp.linalg.cholesky(jax.vmap(lambda cov: cov.dense())(covs))
        means = jnp.broadcast_to(self.loc, (num_nodes, *self.loc.shape))
        return GaussianMixture(log_weights, means, chols)

    def to_numpyro(self):
        """Returns the same distribution in NumPyro, to use as a prior."""
        from bayesinf.distributions.numpyro import student_t_to_numpyro

        return student_t_to_numpyro(self)

    def _pieces(self, residual: Float[Array, " d"]) -> list[tuple[Any, Array, Array]]:
        if isinstance(self.scale, Blocks):
            return list(zip(self.scale.blocks, self.df, self.scale.parts(residual), strict=True))
        return [(self.scale, self.df, residual)]

    def _by_coordinate(self, values: Float[Array, "*n b"]) -> Float[Array, "*n d"]:
        """Returns values of each factor, or one for all, at its coordinates."""
        if isinstance(self.scale, Blocks):
            sizes = np.array([part.dim for part in self.scale.blocks])
            return jnp.repeat(values, sizes, axis=-1, total_repeat_length=int(sizes.sum()))
        return values


def gamma_quantile(z: Float[Array, ""], df: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the quantile of Gamma(df/2, rate df/2) at the level of a standard normal z.

    Newton steps in log u on the normal scores, from Wilson and Hilferty (1931) or, in the lower
    tail of few degrees of freedom, from the leading power of u.
    """
    a = 0.5 * jnp.minimum(df, _LARGE_DF)

    def wilson_hilferty(df):
        spread = 2 / (9 * df)
        return 1 - spread + z * jnp.sqrt(spread)

    def step(log_u, _):
        u = jnp.exp(log_u)
        # Each tail by its own probability: the other one's is 1 to rounding.
        score = jnp.where(z < 0, ndtri(gammainc(a, a * u)), -ndtri(gammaincc(a, a * u)))
        log_slope = a * (jnp.log(a) + log_u - u) - gammaln(a)
        slope = jnp.exp(log_slope + 0.5 * score**2) * math.sqrt(2 * math.pi)
        move = (z - score) / slope
        return log_u + jnp.where(jnp.isfinite(move), jnp.clip(move, -2, 2), 0), None

    cube_root = wilson_hilferty(2 * a)
    tail = (log_ndtr(z) + gammaln(a + 1)) / a - jnp.log(a)
    start = jnp.where(cube_root > 0.3, 3 * jnp.log(jnp.maximum(cube_root, 0.3)), tail)
    exact, _ = jax.lax.scan(step, start, None, length=_NEWTON_STEPS)
    return jnp.where(df < _LARGE_DF, jnp.exp(exact), wilson_hilferty(df) ** 3)


def _log_density(
    scale: Any, df: Float[Array, ""], residual: Float[Array, " d"]
) -> Float[Array, ""]:
    if isinstance(scale, Diagonal):
        squares, size = residual**2 / scale.diag, 1
    else:
        squares, size = (residual @ scale.solve(residual))[None], scale.dim
    half = 0.5 * (df + size)
    constant = gammaln(half) - gammaln(0.5 * df) - 0.5 * size * jnp.log(df * math.pi)
    return jnp.sum(constant - half * jnp.log1p(squares / df)) - scale.half_log_det()


@cache
def _hermite(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns Gauss-Hermite nodes of a standard normal and their log weights."""
    if num < 1:
        raise ValueError(f"num_nodes: {num} came, at least 1 was expected")
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return nodes, np.log(weights / weights.sum())
