"""The normal-inverse-Wishart: a distribution over means and covariances, conjugate to Gaussians."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, multigammaln
from jaxtyping import ArrayLike, Float, PyTree

from bayesinf import linalg
from bayesinf.distributions.covariance import (
    Blocks,
    Diagonal,
    Full,
    LowRank,
    Structure,
    each,
)
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.operators import Outer, Sum
from bayesinf.distributions.student_t import StudentT
from bayesinf.types import Key

_LOG_TAU = math.log(2 * math.pi)


class Natural(NamedTuple):
    """What adds up over observations: `(l, l m, n, V + l m m^T)`, the last by the structure."""

    strength: Float[Array, ""]
    weighted_loc: Float[Array, " d"]
    df: Float[Array, ""]
    second: PyTree


class NormalInverseWishart(eqx.Module):
    """NIW(m, l, n, V): Sigma ~ IW(n, V) and mu | Sigma ~ N(m, Sigma / l).

    The inverse Wishart has density `|Sigma|^(-(n + d + 1) / 2) exp(-tr(V Sigma^-1) / 2)` up to its
    constant, so that E[Sigma^-1] = n V^-1.

    With a `Diagonal` scale it is the product of d one-dimensional NIWs, and with `Blocks` that of
    one a block: `n` has then the reading of each factor, which is proper for n > (its size) - 1.

    Attributes:
        loc: m.
        strength: l > 0, how many observations `loc` is worth.
        df: n, degrees of freedom.
        scale: V.
    """

    loc: Float[Array, " d"]
    strength: Float[Array, ""]
    df: Float[Array, ""]
    scale: Any

    def __init__(self, loc: ArrayLike, strength: ArrayLike, df: ArrayLike, scale: Any):
        if not isinstance(scale, Structure):
            raise ValueError(
                f"scale: {type(scale).__name__} came, a covariance was expected: Diagonal, Full, "
                "Blocks or LowRank"
            )
        loc = jnp.asarray(loc)
        if loc.shape != (scale.dim,):
            raise ValueError(f"loc: shape {loc.shape} came, ({scale.dim},) was expected")
        dtype = jnp.result_type(loc, scale.diagonal())
        self.loc = loc.astype(dtype)
        self.strength, self.df = jnp.asarray(strength, dtype), jnp.asarray(df, dtype)
        for name, leaf in (("strength", self.strength), ("df", self.df)):
            if leaf.shape != ():
                raise ValueError(f"{name}: shape {leaf.shape} came, a number was expected")
        self.scale = scale

    @property
    def dim(self) -> int:
        return self.loc.shape[-1]

    def check_values(self, name: str) -> None:
        """Raises `ValueError` for values that are no NIW; `bayesinf.types.checked` asks."""
        if not np.isfinite(self.loc).all():
            raise ValueError(f"{name}.loc: NaN or infinite values came, finite was expected")
        # As NumPy's, so that values that are known can be looked at within a trace of others.
        strength, df = np.asarray(self.strength), np.asarray(self.df)
        if not (np.isfinite(strength) and strength > 0):
            raise ValueError(f"{name}.strength: {strength} came, > 0 was expected")
        smallest = self.scale.factor_dim - 1
        if not (np.isfinite(df) and df > smallest):
            raise ValueError(
                f"{name}.df: {df} came, > {smallest} was expected: a scale made of matrices "
                f"of size {smallest + 1} has no proper inverse Wishart below"
            )
        self.scale.check_values(f"{name}.scale")

    # Natural parameters

    def natural(self) -> Natural:
        """Returns what adds up; `from_natural` is the way back."""
        scatter = Outer(jnp.sqrt(self.strength) * self.loc[:, None])
        second = _closed(self.scale).moments(Sum([1, 1], [self.scale, scatter]))
        return Natural(self.strength, self.strength * self.loc, self.df, second)

    def from_natural(self, natural: Natural) -> "NormalInverseWishart":
        """Returns the NIW of natural parameters, its scale of the structure of this one's."""
        strength, weighted, df, second = natural
        loc = weighted / strength
        scatter = self.scale.moments(Outer((weighted / jnp.sqrt(strength))[:, None]))
        scale = jax.tree.map(jnp.subtract, second, scatter)
        return NormalInverseWishart(loc, strength, df, self.scale.from_moments(scale))

    # Densities

    def log_norm(self) -> Float[Array, ""]:
        """Returns the log of the integral of `|Sigma|^(-(n + d + 2) / 2) exp(...)`."""
        total = [
            num
            * (
                0.5 * size * (_LOG_TAU - jnp.log(self.strength) + self.df * math.log(2))
                + multigammaln(0.5 * self.df, size)
            )
            for num, size in self._factors()
        ]
        return sum(total) - self.df * self.scale.half_log_det()

    def log_prob(self, phi: tuple[Float[Array, " d"], Any]) -> Float[Array, ""]:
        """Returns the log density of `(mu, Sigma)`, Sigma a covariance of the scale's structure."""
        mu, cov = phi
        residual = mu - self.loc
        # The power of a determinant depends on the size of its factor.
        power = sum((self.df + part.factor_dim + 2) * part.half_log_det() for part in _parts(cov))
        quadratic = cov.trace_solve(self.scale) + self.strength * residual @ cov.solve(residual)
        return -power - 0.5 * quadratic - self.log_norm()

    def sample(self, key: Key) -> tuple[Float[Array, " d"], Any]:
        """Returns one draw `(mu, Sigma)`; Sigma is `Full` where the scale is `LowRank`."""
        cov_key, mu_key = jax.random.split(key)
        cov = inverse_wishart(cov_key, self.df, self.scale)
        return self.loc + cov.sample(mu_key) / jnp.sqrt(self.strength), cov

    def kl(self, other: "NormalInverseWishart") -> Float[Array, ""]:
        """Returns KL(self || other) in nats, in closed form."""
        residual = self.loc - other.loc
        quadratic = self.df * residual @ self.scale.solve(residual)
        trace = self.df * self.scale.trace_solve(other.scale)
        return (
            other.log_norm()
            - self.log_norm()
            - 0.5 * (self.df - other.df) * self.expected_log_det()
            + 0.5 * (trace - self.df * self.dim)
            + 0.5 * other.strength * (self.dim / self.strength + quadratic)
            - 0.5 * self.dim
        )

    def expected_log_det(self) -> Float[Array, ""]:
        """Returns E[log |Sigma|]."""
        psi = [num * multidigamma(0.5 * self.df, size) for num, size in self._factors()]
        return 2 * self.scale.half_log_det() - self.dim * math.log(2) - sum(psi)

    # Observations

    def observe(self, thetas: Float[Array, "n d"]) -> "NormalInverseWishart":
        """Returns the posterior after n draws of N(mu, Sigma) were seen.

        Law: reweight by their likelihood, normalised. A `LowRank` scale grows by a column for each.
        """
        num = thetas.shape[0]
        strength = self.strength + num
        loc = (self.strength * self.loc + jnp.sum(thetas, axis=0)) / strength
        # Squares about the new mean: no difference of large numbers.
        before = jnp.sqrt(self.strength) * (self.loc - loc)
        columns = jnp.concatenate([before[None], thetas - loc]).T
        return NormalInverseWishart(loc, strength, self.df + num, add_outer(self.scale, columns))

    def log_evidence(self, thetas: Float[Array, "n d"]) -> Float[Array, ""]:
        """Returns the log density of n draws of N(mu, Sigma), mu and Sigma integrated out.

        It equals the sum of the log densities of each under the `marginal` given those before.
        """
        constant = 0.5 * thetas.size * _LOG_TAU
        return self.observe(thetas).log_norm() - self.log_norm() - constant

    def marginal(self) -> StudentT:
        """Returns the law of the next draw of N(mu, Sigma): a multivariate Student-t with n - d + 1
        degrees of freedom, d the size of each factor (a product of these, for a product)."""
        spread = 1 + 1 / self.strength
        scale = each(self.scale, lambda part: part.scaled(spread / (self.df - part.factor_dim + 1)))
        return StudentT(self.loc, scale, each_df(self.scale, self.df))

    # Covariances that stand for Sigma

    def mean_covariance(self) -> Any:
        """Returns E[Sigma] = V / (n - d - 1); it is infinite for n <= d + 1, and NaN here."""

        def mean(part):
            left = self.df - part.factor_dim - 1
            return part.scaled(jnp.where(left > 0, 1 / jnp.where(left > 0, left, 1), jnp.nan))

        return each(self.scale, mean)

    def mode_covariance(self) -> Any:
        """Returns the Sigma of the joint mode, V / (n + d + 2)."""
        return each(self.scale, lambda part: part.scaled(1 / (self.df + part.factor_dim + 2)))

    def expected_precision(self) -> Any:
        """Returns V / n, the covariance whose inverse is E[Sigma^-1]."""
        return self.scale.scaled(1 / self.df)

    def to_mixture(self, num_nodes: int = 8) -> GaussianMixture:
        """Returns the `marginal` as a mixture of Gaussians of one mean; see `StudentT.nodes`."""
        return self.marginal().to_mixture(num_nodes)

    def _factors(self) -> list[tuple[int, int]]:
        """Returns the number and the size of the factors of each part of the scale."""
        return [(part.dim // part.factor_dim, part.factor_dim) for part in _parts(self.scale)]


def inverse_wishart(key: Key, df: Float[Array, ""], scale: Any) -> Any:
    """Returns one draw of IW(df, scale), the product over the factors of the scale's structure.

    `Full` where the scale is `LowRank`, and dense then. Bartlett's decomposition, turned so that
    the draw's Cholesky factor is one triangular solve (Bartlett 1933; Smith and Hocking 1972).
    """
    if isinstance(scale, Blocks):
        keys = jax.random.split(key, len(scale.blocks))
        draws = map(inverse_wishart, keys, [df] * len(keys), scale.blocks)
        return Blocks(draws)
    gamma_key, normal_key = jax.random.split(key)
    if isinstance(scale, Diagonal):
        chi_square = 2 * jax.random.gamma(gamma_key, 0.5 * df, (scale.dim,), scale.diag.dtype)
        return Diagonal(scale.diag / chi_square)
    chol = scale.chol if isinstance(scale, Full) else jnp.linalg.cholesky(scale.dense())
    dim = chol.shape[0]
    shapes = 0.5 * (df - dim + 1 + jnp.arange(dim, dtype=chol.dtype))
    diagonal = jnp.sqrt(2 * jax.random.gamma(gamma_key, shapes, dtype=chol.dtype))
    normal = jax.random.normal(normal_key, (dim, dim), chol.dtype)
    bartlett = jnp.tril(normal, -1) + jnp.diag(diagonal)
    return Full(jnp.tril(linalg.solve_upper(bartlett, chol.T).T))


def add_outer(scale: Any, columns: Float[Array, "d k"]) -> Any:
    """Returns `V + A A^T` for the columns of A, exactly: a `LowRank` scale takes them into its
    factor."""
    if isinstance(scale, LowRank):
        return LowRank(jnp.concatenate([scale.factor, columns], axis=1), scale.diag)
    if isinstance(scale, Full):
        return Full(linalg.triangularize(scale.chol, columns))
    if isinstance(scale, Blocks):
        return Blocks(map(add_outer, scale.blocks, scale.parts(columns)))
    return scale.nearest(Sum([1, 1], [scale, Outer(columns)]))


def multidigamma(a: ArrayLike, dim: int) -> Float[Array, ""]:
    """Returns `sum_j digamma(a + (1 - j) / 2)` for j = 1..dim, the slope of `multigammaln`."""
    return jnp.sum(digamma(a - 0.5 * jnp.arange(dim)))


def each_df(scale: Any, df: Float[Array, ""]) -> Float[Array, "..."]:
    """Returns the degrees of freedom of the marginal: a number, or one a block."""
    if isinstance(scale, Blocks):
        return jnp.stack([df - part.factor_dim + 1 for part in scale.blocks])
    return df - scale.factor_dim + 1


def _parts(scale: Any) -> tuple[Any, ...]:
    return scale.blocks if isinstance(scale, Blocks) else (scale,)


def _closed(scale: Any) -> Any:
    if isinstance(scale, LowRank):
        raise ValueError(
            "scale: LowRank came, a structure closed under addition was expected: Diagonal, Full "
            "or Blocks"
        )
    return scale
