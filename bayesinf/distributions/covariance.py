"""Covariances with structure: diagonal, full, one block after another, low rank plus diagonal.

Beside what every `Covariance` has, these four have

- `factor_dim`, the size of the matrices that they are made of: 1 where they are diagonal;
- `nearest(operator)`, the member of the own structure nearest to any other operator;
- `moments(operator)` and `from_moments`, the same in two steps where the structure is closed under
  addition: the first is linear in the operator, so that sums of moments may be kept.

Stacks of them come by `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Float

from bayesinf import linalg
from bayesinf.distributions.operators import Operator, Restricted
from bayesinf.types import Key

STEPS = 20  # of EM towards the nearest of low rank
_OVERSAMPLING, _ITERATIONS = 4, 4  # columns beyond the rank, and products, to find a subspace
_SMALLEST = 1e-4  # the share of a variance that a factor leaves to the diagonal at least


@runtime_checkable
class Covariance(Operator, Protocol):
    """A positive definite operator that is solved with, drawn from and scaled."""

    @property
    def dim(self) -> int: ...

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]: ...

    def half_log_det(self) -> Float[Array, ""]: ...

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*s d"]: ...

    def scaled(self, c: Any) -> Any: ...

    def trace_solve(self, other: Operator) -> Float[Array, ""]: ...


class Diagonal(eqx.Module):
    """diag(v), d variances."""

    diag: Float[Array, " d"]

    def __init__(self, diag: ArrayLike):
        self.diag = _floats("diag", diag, 1)

    @property
    def dim(self) -> int:
        return self.diag.shape[-1]

    @property
    def factor_dim(self) -> int:
        return 1

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return _rows(self.diag, b) * b

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return b / _rows(self.diag, b)

    def half_log_det(self) -> Float[Array, ""]:
        return 0.5 * jnp.sum(jnp.log(self.diag))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*s d"]:
        noise = jax.random.normal(key, (*shape, self.dim), self.diag.dtype)
        return jnp.sqrt(self.diag) * noise

    def diagonal(self) -> Float[Array, " d"]:
        return self.diag

    def dense(self) -> Float[Array, "d d"]:
        return jnp.diag(self.diag)

    def scaled(self, c: Any) -> "Diagonal":
        return Diagonal(c * self.diag)

    def trace_solve(self, other: Operator) -> Float[Array, ""]:
        return jnp.sum(other.diagonal() / self.diag)

    def nearest(self, other: Operator) -> "Diagonal":
        return self.from_moments(self.moments(other))

    def moments(self, other: Operator) -> Float[Array, " d"]:
        return other.diagonal()

    def from_moments(self, moments: Float[Array, " d"]) -> "Diagonal":
        return Diagonal(moments)

    def check_values(self, name: str) -> None:
        _positive(f"{name}.diag", self.diag)


class Full(eqx.Module):
    """`chol chol^T`, chol lower triangular with a positive diagonal; see `full`."""

    chol: Float[Array, "d d"]

    def __init__(self, chol: ArrayLike):
        self.chol = _floats("chol", chol, 2)
        if self.chol.shape[0] != self.chol.shape[1]:
            raise ValueError(f"chol: shape {self.chol.shape} came, a square was expected")

    @property
    def dim(self) -> int:
        return self.chol.shape[-1]

    @property
    def factor_dim(self) -> int:
        return self.dim

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return jnp.tensordot(self.chol, jnp.tensordot(self.chol.T, b, 1), 1)

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return linalg.solve_upper(self.chol, linalg.solve_lower(self.chol, b))

    def half_log_det(self) -> Float[Array, ""]:
        return linalg.half_log_det(self.chol)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*s d"]:
        return jax.random.normal(key, (*shape, self.dim), self.chol.dtype) @ self.chol.T

    def diagonal(self) -> Float[Array, " d"]:
        return jnp.sum(self.chol**2, axis=1)

    def dense(self) -> Float[Array, "d d"]:
        return self.chol @ self.chol.T

    def scaled(self, c: Any) -> "Full":
        return Full(jnp.sqrt(c) * self.chol)

    def trace_solve(self, other: Operator) -> Float[Array, ""]:
        if isinstance(other, Full):
            return jnp.sum(linalg.solve_lower(self.chol, other.chol) ** 2)
        return jnp.trace(self.solve(other.dense()))

    def nearest(self, other: Operator) -> "Full":
        return self.from_moments(self.moments(other))

    def moments(self, other: Operator) -> Float[Array, "d d"]:
        return other.dense()

    def from_moments(self, moments: Float[Array, "d d"]) -> "Full":
        return Full(linalg.cholesky(moments))

    def check_values(self, name: str) -> None:
        chol = np.asarray(self.chol)
        if not np.isfinite(chol).all():
            raise ValueError(
                f"{name}.chol: NaN or infinite values came, finite was expected; a scale that is "
                "not positive definite has no Cholesky factor"
            )
        if np.abs(np.triu(chol, 1)).max() > 0:
            raise ValueError(f"{name}.chol: entries above the diagonal came, 0 was expected")
        _positive(f"{name}.chol: diagonal", np.diagonal(chol))


class Blocks(eqx.Module):
    """Blocks `Full` or `Diagonal` on consecutive coordinates, and zeros between them."""

    blocks: tuple[Full | Diagonal, ...]

    def __init__(self, blocks):
        self.blocks = tuple(blocks)
        if not self.blocks or not all(isinstance(each, Full | Diagonal) for each in self.blocks):
            came = [type(each).__name__ for each in self.blocks]
            raise ValueError(f"blocks: {came} came, at least one Full or Diagonal was expected")

    @property
    def dim(self) -> int:
        return sum(each.dim for each in self.blocks)

    @property
    def factor_dim(self) -> int:
        """The size of the largest block."""
        return max(each.factor_dim for each in self.blocks)

    def parts(self, x: Array) -> list[Array]:
        """Returns the rows of `x` that belong to each block."""
        return jnp.split(x, np.cumsum([each.dim for each in self.blocks])[:-1])

    def _map(self, f, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        pairs = zip(self.blocks, self.parts(b), strict=True)
        return jnp.concatenate([f(each, part) for each, part in pairs])

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return self._map(lambda each, part: each.matmul(part), b)

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return self._map(lambda each, part: each.solve(part), b)

    def half_log_det(self) -> Float[Array, ""]:
        return jnp.stack([each.half_log_det() for each in self.blocks]).sum()

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*s d"]:
        keys = jax.random.split(key, len(self.blocks))
        draws = [each.sample(k, shape) for k, each in zip(keys, self.blocks, strict=True)]
        return jnp.concatenate(draws, axis=-1)

    def diagonal(self) -> Float[Array, " d"]:
        return jnp.concatenate([each.diagonal() for each in self.blocks])

    def dense(self) -> Float[Array, "d d"]:
        return jax.scipy.linalg.block_diag(*(each.dense() for each in self.blocks))

    def scaled(self, c: Any) -> "Blocks":
        return Blocks(each.scaled(c) for each in self.blocks)

    def trace_solve(self, other: Operator) -> Float[Array, ""]:
        pairs = zip(self.blocks, self._restricted(other), strict=True)
        return jnp.stack([each.trace_solve(part) for each, part in pairs]).sum()

    def nearest(self, other: Operator) -> "Blocks":
        return self.from_moments(self.moments(other))

    def moments(self, other: Operator) -> tuple[Array, ...]:
        pairs = zip(self.blocks, self._restricted(other), strict=True)
        return tuple(each.moments(part) for each, part in pairs)

    def from_moments(self, moments: tuple[Array, ...]) -> "Blocks":
        pairs = zip(self.blocks, moments, strict=True)
        return Blocks(each.from_moments(moment) for each, moment in pairs)

    def check_values(self, name: str) -> None:
        for i, each in enumerate(self.blocks):
            each.check_values(f"{name}.blocks[{i}]")

    def _restricted(self, other: Operator) -> tuple[Any, ...]:
        sizes = [each.dim for each in self.blocks]
        if isinstance(other, Blocks) and [each.dim for each in other.blocks] == sizes:
            return other.blocks
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        return tuple(Restricted(other, *at) for at in zip(starts, sizes, strict=True))


class LowRank(eqx.Module):
    """`F F^T + diag(v)`, solved with by Woodbury's identity in the rank of F; never dense.

    Sums leave the structure: `nearest` takes the nearest of the same rank, and there are no
    `moments`.
    """

    factor: Float[Array, "d r"]
    diag: Float[Array, " d"]

    def __init__(self, factor: ArrayLike, diag: ArrayLike):
        self.factor, self.diag = _floats("factor", factor, 2), _floats("diag", diag, 1)
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
        return jnp.tensordot(self.factor, inner, 1) + _rows(self.diag, b) * b

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        chol, whitened = self._capacitance()
        plain = b / _rows(self.diag, b)
        inner = Full(chol).solve(jnp.tensordot(self.factor.T, plain, 1))
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
        inner = Full(chol).solve(whitened.T @ other.matmul(whitened))
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
            factor = Full(linalg.cholesky(0.5 * (spread + spread.T))).solve(image.T).T
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
        _positive(f"{name}.diag", self.diag)

    def _capacitance(self) -> tuple[Float[Array, "r r"], Float[Array, "d r"]]:
        """Returns the Cholesky factor of `I + F^T diag(v)^-1 F`, and `diag(v)^-1 F`."""
        whitened = self.factor / self.diag[:, None]
        inner = jnp.eye(self.factor.shape[1], dtype=self.diag.dtype) + self.factor.T @ whitened
        return linalg.cholesky(inner), whitened


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


def full(matrix: ArrayLike) -> Full:
    """Returns the covariance of a symmetric matrix; the door for one.

    Raises:
        ValueError: it is not symmetric, or not positive definite.
    """
    matrix = np.asarray(_floats("matrix", matrix, 2))
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: shape {matrix.shape} came, a square was expected")
    if not np.isfinite(matrix).all():
        raise ValueError("matrix: NaN or infinite values came, finite was expected")
    tolerance = 1e3 * np.finfo(matrix.dtype).eps * np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > tolerance:
        raise ValueError("matrix: it differs from its transpose, a symmetric one was expected")
    smallest = np.linalg.eigvalsh(matrix)[0]
    if smallest <= 0:
        raise ValueError(
            f"matrix: its smallest eigenvalue is {smallest}, a positive definite one was expected"
        )
    return Full(np.linalg.cholesky(matrix))


def low_rank(diag: ArrayLike, rank: int) -> LowRank:
    """Returns the diagonal covariance with room for a factor of `rank` columns, which are zero."""
    diag = _floats("diag", diag, 1)
    if not 0 < rank <= len(diag):
        raise ValueError(f"rank: {rank} came, between 1 and {len(diag)} was expected")
    return LowRank(jnp.zeros((len(diag), rank), diag.dtype), diag)


Structure = Diagonal | Full | Blocks | LowRank


def each(scale: Any, f: Callable[[Any], Any]) -> Any:
    """Returns `f(scale)`, or the blocks of which `f` was taken one by one."""
    return Blocks(map(f, scale.blocks)) if isinstance(scale, Blocks) else f(scale)


def _rows(diag: Float[Array, " d"], b: Float[Array, "d *n"]) -> Array:
    return diag.reshape(-1, *(1,) * (b.ndim - 1))


def _floats(name: str, x: ArrayLike, ndim: int) -> Array:
    x = jnp.asarray(x)
    if x.ndim != ndim or 0 in x.shape[:1]:
        raise ValueError(f"{name}: shape {x.shape} came, {ndim} axes were expected, none empty")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def _positive(name: str, values: ArrayLike) -> None:
    values = np.asarray(values)
    if not np.isfinite(values).all() or values.min() <= 0:
        raise ValueError(f"{name}: {values.min()} came, finite and > 0 was expected")
