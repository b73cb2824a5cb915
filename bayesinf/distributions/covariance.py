"""Covariances with structure: diagonal, full, and one block after another; `low_rank.py` the other.

Beside what every `Covariance` has, these four have

- `factor_dim`, the size of the matrices that they are made of: 1 where they are diagonal;
- `nearest(operator)`, the member of the own structure nearest to any other operator;
- `moments(operator)` and `from_moments`, the same in two steps where the structure is closed under
  addition: the first is linear in the operator, so that sums of moments may be kept.

Stacks of them come by `jax.vmap`.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import ArrayLike, Float

from bayesinf import linalg
from bayesinf.distributions.low_rank import LowRank
from bayesinf.distributions.operators import Operator, Restricted, floats, positive, rows
from bayesinf.types import Key

_LOG_TAU = math.log(2 * math.pi)


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
        self.diag = floats("diag", diag, 1)

    @property
    def dim(self) -> int:
        return self.diag.shape[-1]

    @property
    def factor_dim(self) -> int:
        return 1

    def matmul(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return rows(self.diag, b) * b

    def solve(self, b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
        return b / rows(self.diag, b)

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
        positive(f"{name}.diag", self.diag)


class Full(eqx.Module):
    """`chol chol^T`, chol lower triangular with a positive diagonal; see `full`."""

    chol: Float[Array, "d d"]

    def __init__(self, chol: ArrayLike):
        self.chol = floats("chol", chol, 2)
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
        positive(f"{name}.chol: diagonal", np.diagonal(chol))


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


Structure = Diagonal | Full | Blocks | LowRank


def full(matrix: ArrayLike) -> Full:
    """Returns the covariance of a symmetric matrix; the door for one, unless it is traced.

    Raises:
        ValueError: it is not symmetric, or not positive definite.
    """
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"matrix: shape {shape} came, a square was expected")
    if isinstance(matrix, Tracer):
        return Full(linalg.cholesky(matrix))
    matrix = np.asarray(matrix, jnp.result_type(matrix, float))
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


def normal_log_prob(residual: Float[Array, " d"], cov: Covariance) -> Float[Array, ""]:
    """Returns the log density of N(0, cov) at a residual."""
    square = residual @ cov.solve(residual)
    return -0.5 * (square + residual.size * _LOG_TAU) - cov.half_log_det()


def each(scale: Any, f: Callable[[Any], Any]) -> Any:
    """Returns `f(scale)`, or the blocks of which `f` was taken one by one."""
    return Blocks(map(f, scale.blocks)) if isinstance(scale, Blocks) else f(scale)
