"""Square-root linear algebra: everything the package needs on Cholesky factors.

A covariance is only ever held as a lower triangular factor with a positive diagonal. Sums and
conditionings are QR decompositions of stacked factors, so no difference of covariances is formed
and positive definiteness survives single precision.

Matrices of up to `UNROLLED` columns are reduced by unrolled loops, which XLA fuses over a batch.
LAPACK, called once a matrix, is slower there, and on few cores XLA's CPU client (jaxlib 0.10) can
lock up when a large program calls it from within its own thread pool. The barriers keep XLA from
fusing a recurrence into each of its uses, which would compute, and compile, every step many times.
"""

import jax.numpy as jnp
from jax import Array
from jax.lax import optimization_barrier
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float

UNROLLED = 8


def solve_lower(chol: Float[Array, "d d"], b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
    """Returns `inv(chol) b` for a lower triangular `chol`."""
    dim = chol.shape[0]
    if dim > UNROLLED:
        return solve_triangular(chol, b, lower=True)
    diagonal = jnp.diagonal(chol)[:, None]
    unit, scaled = chol / diagonal, b.reshape(dim, -1) / diagonal
    solved = scaled[:1]
    for i in range(1, dim):
        row = scaled[i] - unit[i, :i] @ solved
        solved = optimization_barrier(jnp.concatenate([solved, row[None]]))
    return solved.reshape(b.shape)


def solve_upper(chol: Float[Array, "d d"], b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
    """Returns `inv(chol^T) b` for a lower triangular `chol`."""
    return solve_lower(chol.T[::-1, ::-1], b[::-1])[::-1]


def product(chol: Float[Array, "d d"], b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
    """Returns `chol b`."""
    dim = chol.shape[0]
    if dim > UNROLLED:
        return chol @ b
    rows = b.reshape(dim, -1)
    total = chol[:, :1] * rows[0]
    for i in range(1, dim):
        total = total + chol[:, i : i + 1] * rows[i]
    return total.reshape(b.shape)


def half_log_det(chol: Float[Array, "d d"]) -> Float[Array, ""]:
    """Returns `log det(chol)`, half the log determinant of the covariance `chol chol^T`."""
    return jnp.sum(jnp.log(jnp.diagonal(chol)))


def cholesky(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Returns the lower triangular L with a positive diagonal and `L L^T = matrix`, symmetric.

    For matrices that are positive semi-definite but for rounding, such as differences: pivots below
    what rounding can say are lifted to it, so the factor and its gradient are finite.
    """
    dim = matrix.shape[0]
    smallest = jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix) + jnp.finfo(matrix.dtype).tiny
    if dim > UNROLLED:
        lift = dim * jnp.maximum(jnp.max(smallest), 0)
        return jnp.linalg.cholesky(matrix + lift * jnp.eye(dim, dtype=matrix.dtype))
    columns = []
    for i in range(dim):
        pivot = jnp.sqrt(jnp.maximum(matrix[0, 0], jnp.abs(smallest[i])))
        column = matrix[:, 0].at[0].set(pivot**2) / pivot
        columns.append(jnp.concatenate([jnp.zeros(i, matrix.dtype), column]))
        matrix = optimization_barrier(matrix[1:, 1:] - column[1:, None] * column[1:])
    return jnp.stack(columns, axis=1)


def triangularize(*factors: Float[Array, "d _"]) -> Float[Array, "d d"]:
    """Returns the lower triangular L with positive diagonal and `L L^T = sum_i A_i A_i^T`.

    Errors: the stacked factors must have at least d columns, else the sum is singular.
    """
    stacked = jnp.concatenate(factors, axis=1)
    dim, columns = stacked.shape
    if columns < dim:
        raise ValueError(
            f"factors: the sum of their squares is singular, {columns} columns came for "
            f"{dim} rows; at least {dim} are needed"
        )
    return _upper(stacked.T).T


def posterior_factor(information: Float[Array, "m d"]) -> Float[Array, "d d"]:
    """Returns the lower triangular C with `C C^T = inv(I + F^T F)` for the information factor F.

    The Cholesky factor of a standard normal prior after conditioning on m whitened readings with
    Jacobian F (Bierman 1977, square-root information filter). The columns are reversed before the
    QR, so that its triangle is lower and so is the inverse.
    """
    eye = jnp.eye(information.shape[1], dtype=information.dtype)
    lower = _upper(jnp.concatenate([eye, information])[:, ::-1])[::-1, ::-1]
    return solve_lower(lower, eye)


def _upper(matrix: Float[Array, "m d"]) -> Float[Array, "d d"]:
    """Returns the triangle R of the QR decomposition with a positive diagonal, m >= d.

    Up to `UNROLLED` columns a column of zeros stays one, diagonal too, and gradients stay finite.
    """
    dim = matrix.shape[1]
    if dim > UNROLLED:
        upper = jnp.linalg.qr(matrix, mode="r")
        # jnp.sign gives 0 at 0, which would erase a row.
        return upper * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[:, None].astype(upper.dtype)
    rows = []
    for i in range(dim):
        # Householder: reflect the first column onto its first axis, then drop row and column.
        column, rest = matrix[:, 0], matrix[:, 1:]
        square = jnp.sum(column**2)
        empty = square < jnp.finfo(matrix.dtype).tiny  # nothing to reflect, and no slope at 0
        norm = jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, square)))
        sign = jnp.where(column[0] < 0, -1, 1).astype(matrix.dtype)
        reflector = jnp.concatenate([column[:1] + sign * norm, column[1:]])
        half_square = jnp.where(empty, 1, norm * (norm + jnp.abs(column[0])))
        rest = rest - reflector[:, None] * (reflector @ rest / half_square)
        rows.append(jnp.concatenate([jnp.zeros(i, matrix.dtype), norm[None], -sign * rest[0]]))
        matrix = optimization_barrier(rest[1:])
    return jnp.stack(rows)
