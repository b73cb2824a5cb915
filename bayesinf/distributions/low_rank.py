"""Low rank plus diagonal: a covariance of very many coordinates, solved with in its rank."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float

from bayesinf import linalg
from bayesinf.distributions.operators import Operator, floats, positive, rows
from bayesinf.types import Key

STEPS = 20  # of EM towards the nearest of low rank
_OVERSAMPLING, _ITERATIONS = 4, 4  # columns beyond the rank, and products, to find a subspace
_SMALLEST = 1e-4  # the share of a variance that a factor leaves to the diagonal at least


class LowRank(eqx.Module):
    """`F F^T + diag(v)`, solved with by Woodbury's identity in the rank of F; never dense.

    Sums leave the structure: `nearest` takes the nearest of the same rank, and there are no
    `moments`.
    """

    factor: Float[Array, "d r"]
    diag: Float[Array, " d"]

    def __init__(self, factor: ArrayLike, diag: ArrayLike):
        self.factor, self.diag = floats("factor", factor, 2), floats("diag", diag, 1)
        if self.factor.shape[0] != self.diag.shape[0]:
            raise ValueError(
                f"factor: shape {self.factor.shape} came, ({self.diag.shape[0]}, r) was expected"
            )

    @property
    def dim(self) -> int:
        return self.diag.shape[-1]

    @property
    def factor_dim(self) -> int:
        return self.dim

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        inner = jnp.tensordot(self.factor.T, b, 1)
        return jnp.tensordot(self.factor, inner, 1) + rows(self.diag, b) * b

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        chol, whitened = self._capacitance()
        plain = b / rows(self.diag, b)
        inner = _solve(chol, jnp.tensordot(self.factor.T, plain, 1))
        return plain - jnp.tensordot(whitened, inner, 1)

    def half_log_det(self) -> Float[Array, ""]:
        chol, _ = self._capacitance()
        return linalg.half_log_det(chol) + 0.5 * jnp.sum(jnp.log(self.diag))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*s d"]:
        size = self.dim + self.factor.shape[-1]
        noise = jax.random.normal(key, (*shape, size), self.diag.dtype)
        own, shared = noise[..., : self.dim], noise[..., self.dim :]
        return shared @ self.factor.T + jnp.sqrt(self.diag) * own

    def diagonal(self) -> Float[Array, " d"]:
        return jnp.sum(self.factor**2, axis=1) + self.diag

    def dense(self) -> Float[Array, "d d"]:
        return self.factor @ self.factor.T + jnp.diag(self.diag)

    def scaled(self, c: Any) -> "LowRank":
        return LowRank(jnp.sqrt(c) * self.factor, c * self.diag)

    def trace_solve(self, other: Operator) -> Float[Array, ""]:
        chol, whitened = self._capacitance()
        inner = _solve(chol, whitened.T @ other.matmul(whitened))
        return jnp.sum(other.diagonal() / self.diag) - jnp.trace(inner)

    def nearest(self, other: Operator) -> "LowRank":
        """Returns the nearest of the same rank, with the diagonal of `other` to the digit.

        Nearest in KL(N(0, other) || N(0, .)): `STEPS` of the EM algorithm of factor analysis
        (Rubin and Thayer 1982), each a product of `other` with a column for each of the rank, from
        the own value or from principal components, whichever is nearer. What has the structure
        already, up to a scale of its own, maps to itself.
        """
        total = other.diagonal()
        share = total / self.diagonal()
        own = LowRank(jnp.sqrt(share)[:, None] * self.factor, share * self.diag)
        components = _principal(other, total, self.factor.shape[1])
        nearer = _excess(own, other) < _excess(components, other)
        start = jax.tree.map(lambda a, b: jnp.where(nearer, a, b), own, components)

        def step(_, now: LowRank) -> LowRank:
            gain = now.solve(now.factor)
            image = other.matmul(gain)
            spread = jnp.eye(gain.shape[1], dtype=gain.dtype) - gain.T @ (now.factor - image)
            factor = _solve(linalg.cholesky(0.5 * (spread + spread.T)), image.T).T
            left = total - jnp.sum(factor * image, axis=1)
            return LowRank(factor, jnp.maximum(left, _SMALLEST * total))

        found = jax.lax.fori_loop(0, STEPS, step, start)
        # The diagonal of a maximum is exact; on the way to it, the residual makes it so.
        claimed = jnp.maximum(jnp.sum(found.factor**2, axis=1) / total, _SMALLEST)
        shrink = jnp.sqrt(jnp.minimum(1, (1 - _SMALLEST) / claimed))
        factor = shrink[:, None] * found.factor
        return LowRank(factor, total - jnp.sum(factor**2, axis=1))

    def check_values(self, name: str) -> None:
        if not np.isfinite(self.factor).all():
            raise ValueError(f"{name}.factor: NaN or infinite values came, finite was expected")
        positive(f"{name}.diag", self.diag)

    def _capacitance(self) -> tuple[Float[Array, "r r"], Float[Array, "d r"]]:
        """Returns the Cholesky factor of `I + F^T diag(v)^-1 F`, and `diag(v)^-1 F`."""
        whitened = self.factor / self.diag[:, None]
        inner = jnp.eye(self.factor.shape[1], dtype=self.diag.dtype) + self.factor.T @ whitened
        return linalg.cholesky(inner), whitened


def low_rank(diag: ArrayLike, rank: int) -> LowRank:
    """Returns the diagonal covariance with room for a factor of `rank` columns, which are zero."""
    diag = floats("diag", diag, 1)
    if not 0 < rank <= len(diag):
        raise ValueError(f"rank: {rank} came, between 1 and {len(diag)} was expected")
    return LowRank(jnp.zeros((len(diag), rank), diag.dtype), diag)


def _principal(other: Operator, total: Float[Array, " d"], rank: int) -> LowRank:
    """Returns the leading principal components of a matrix scaled to a unit diagonal, by subspace
    iteration (Tipping and Bishop 1999, eq. 7; Halko, Martinsson and Tropp 2011)."""
    dim = total.shape[0]
    root = jnp.sqrt(total)[:, None]
    # A fixed start: the iteration forgets it, and the result depends on no key.
    size = min(rank + _OVERSAMPLING, dim)
    image = jax.random.normal(jax.random.key(0), (dim, size), total.dtype)
    basis, core = image, jnp.eye(size, dtype=total.dtype)
    for _ in range(_ITERATIONS):
        basis, _ = jnp.linalg.qr(image)
        image = other.matmul(basis / root) / root
        core = basis.T @ image
    values, vectors = jnp.linalg.eigh(0.5 * (core + core.T))
    values, vectors = values[::-1][:rank], basis @ vectors[:, ::-1][:, :rank]
    noise = jnp.maximum(dim - jnp.sum(values), dim * _SMALLEST) / max(dim - rank, 1)
    factor = vectors * jnp.sqrt(jnp.maximum(values - noise, 0))
    left = jnp.maximum(1 - jnp.sum(factor**2, axis=1), _SMALLEST)
    return LowRank(root * factor, total * left)


def _excess(cov: LowRank, other: Operator) -> Float[Array, ""]:
    """Returns KL(N(0, other) || N(0, cov)) up to what does not depend on `cov`."""
    return 0.5 * cov.trace_solve(other) + cov.half_log_det()


def _solve(chol: Float[Array, "r r"], b: Float[Array, "r *n"]) -> Float[Array, "r *n"]:
    return linalg.solve_upper(chol, linalg.solve_lower(chol, b))
