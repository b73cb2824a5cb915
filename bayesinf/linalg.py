"""Square-root linear algebra: everything the package needs on Cholesky factors.

A covariance is only ever held as a lower triangular factor with a positive diagonal. Sums and
conditionings are QR decompositions of stacked factors, so no difference of covariances is formed
and positive definiteness survives single precision.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float


def solve_lower(chol: Float[Array, "d d"], b: Float[Array, "d *n"]) -> Float[Array, "d *n"]:
    """Returns `inv(chol) b` for a lower triangular `chol`."""
    return solve_triangular(chol, b, lower=True)


def half_log_det(chol: Float[Array, "d d"]) -> Float[Array, ""]:
    """Returns `log det(chol)`, half the log determinant of the covariance `chol chol^T`."""
    return jnp.sum(jnp.log(jnp.diagonal(chol)))


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
    upper = jnp.linalg.qr(stacked.T, mode="r")
    return upper.T * _signs(upper)


def posterior_factor(information: Float[Array, "m d"]) -> Float[Array, "d d"]:
    """Returns the lower triangular C with `C C^T = inv(I + F^T F)` for the information factor F.

    The Cholesky factor of a standard normal prior after conditioning on m whitened readings with
    Jacobian F (Bierman 1977, square-root information filter). The columns are reversed before the
    QR, so that its triangle is lower and so is the inverse.
    """
    dim = information.shape[1]
    eye = jnp.eye(dim, dtype=information.dtype)
    upper = jnp.linalg.qr(jnp.concatenate([eye, information])[:, ::-1], mode="r")
    lower = (upper * _signs(upper)[:, None])[::-1, ::-1]
    return solve_lower(lower, eye)


def _signs(upper: Float[Array, "d d"]) -> Float[Array, " d"]:
    # jnp.sign gives 0 at 0, which would erase a row.
    return jnp.where(jnp.diagonal(upper) < 0, -1, 1).astype(upper.dtype)
