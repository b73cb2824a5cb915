import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.linalg import (
    cholesky,
    half_log_det,
    posterior_factor,
    product,
    solve_lower,
    solve_upper,
    triangularize,
)


def check_triangle(factor, gram):
    assert np.abs(np.triu(factor, 1)).max() < 1e-12
    assert (np.diagonal(factor) > 0).all()
    np.testing.assert_allclose(factor @ factor.T, gram, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_oracle_triangularize_and_posterior_factor(x64, dim):
    a, b = jax.random.normal(jax.random.key(0), (2, dim, dim + 1))
    # Both sides of `UNROLLED`.
    check_triangle(jax.jit(triangularize)(a, b), a @ a.T + b @ b.T)
    information = a.T  # more rows than columns
    check_triangle(jax.jit(posterior_factor)(information), jnp.linalg.inv(jnp.eye(dim) + a @ a.T))
    few = a.T[:1]
    check_triangle(jax.jit(posterior_factor)(few), jnp.linalg.inv(jnp.eye(dim) + few.T @ few))
    with pytest.raises(AssertionError):  # negative control: one factor forgotten
        check_triangle(triangularize(a), a @ a.T + b @ b.T)


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_oracle_product(x64, dim):
    chol, b = jnp.tril(jax.random.normal(jax.random.key(0), (2, dim, dim)))
    np.testing.assert_allclose(jax.jit(product)(chol, b), chol @ b, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(product(chol, b[:, 0]), chol @ b[:, 0], rtol=1e-12, atol=1e-13)


def test_oracle_solve_and_determinant(x64):
    chol = jnp.tril(jax.random.normal(jax.random.key(0), (3, 3))) + 4 * jnp.eye(3)
    np.testing.assert_allclose(chol @ solve_lower(chol, jnp.eye(3)), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(2 * half_log_det(chol), jnp.linalg.slogdet(chol @ chol.T)[1])


def test_triangularize_keeps_single_precision_positive_definite():
    # In single precision the sum of squares of this factor is singular.
    factor = jnp.array([[1.0, 0.0], [1.0, 1e-5]])
    chol = triangularize(factor, jnp.zeros((2, 1)))
    np.testing.assert_allclose(chol, factor, rtol=1e-2, atol=1e-7)
    assert jnp.isnan(jnp.linalg.cholesky(factor @ factor.T)).any()


def test_oracle_a_row_of_zeros_stays_one_and_has_finite_gradients(x64):
    spread = jax.random.normal(jax.random.key(0), (4, 6))
    weights = jnp.arange(16.0).reshape(4, 4)

    def gradient(square_root):
        return jax.jit(jax.grad(lambda f: jnp.sum(weights * ((root := square_root(f)) @ root.T))))

    compiled, by_triangle = jax.jit(triangularize), gradient(triangularize)
    by_itself = gradient(lambda factor: factor)
    by_lapack = gradient(lambda factor: jnp.linalg.qr(factor.T, mode="r").T)
    for empty in range(4):
        factor = spread.at[empty].set(0)
        chol = compiled(factor)
        assert (chol[empty] == 0).all()
        np.testing.assert_allclose(chol @ chol.T, factor @ factor.T, rtol=1e-10, atol=1e-12)
        got = by_triangle(factor)
        assert jnp.isfinite(got).all()
        # The norm of the empty row itself has no slope at 0.
        others = np.arange(4) != empty
        expected = by_itself(factor)[others]
        np.testing.assert_allclose(got[others], expected, rtol=1e-8, atol=1e-10)
        # Negative control: LAPACK's triangle has no gradient here.
        assert not jnp.isfinite(by_lapack(factor)).all()


def test_too_few_columns_are_refused():
    with pytest.raises(ValueError, match=r"factors: .* 2 columns came for 3 rows"):
        triangularize(jnp.ones((3, 1)), jnp.ones((3, 1)))


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_oracle_cholesky(x64, dim):
    a = jax.random.normal(jax.random.key(0), (dim, dim + 1))
    gram = a @ a.T
    check_triangle(jax.jit(cholesky)(gram), gram)
    np.testing.assert_allclose(
        solve_upper(cholesky(gram), a), jnp.linalg.inv(cholesky(gram)).T @ a, rtol=1e-8
    )
    weights = jnp.arange(float(dim * dim)).reshape(dim, dim)
    ours, theirs = (
        jax.jit(jax.grad(lambda a, f=f: jnp.sum(weights * f(a @ a.T))))(a)
        for f in (cholesky, jnp.linalg.cholesky)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dim", [2, 12])
def test_cholesky_of_a_singular_matrix_is_finite(dim):
    column = jnp.arange(1.0, dim + 1)[:, None]
    for gram in (column @ column.T - 1e-5 * jnp.eye(dim), jnp.zeros((dim, dim))):
        chol = jax.jit(cholesky)(gram)
        np.testing.assert_allclose(chol @ chol.T, gram, atol=1e-3)
        assert jnp.isfinite(jax.jit(jax.grad(lambda g: jnp.sum(cholesky(g))))(gram)).all()
