"""Structured covariances against dense algebra, and the nearest member of each structure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.distributions import Blocks, Diagonal, Full, LowRank, full, low_rank
from bayesinf.distributions.low_rank import _principal
from bayesinf.distributions.operators import Outer, Restricted, Stacked, Sum
from bayesinf.types import checked
from bayesinf.validation import unbiased

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIM = 5


def structure(kind, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(DIM, DIM))
    if kind == "full":
        return full(a @ a.T / DIM + 0.3 * np.eye(DIM))
    if kind == "diagonal":
        return Diagonal(rng.uniform(0.3, 2, DIM))
    if kind == "blocks":
        return Blocks([full(a[:3] @ a[:3].T + np.eye(3)), Diagonal(rng.uniform(0.3, 2, 2))])
    return LowRank(a[:, :2], rng.uniform(0.3, 2, DIM))


KINDS = ["full", "diagonal", "blocks", "low rank"]


@eqx.filter_jit
def answers(cov, other, b):
    return {
        "matmul": cov.matmul(b),
        "vector": cov.matmul(b[:, 0]),
        "solve": cov.solve(b),
        "solve vector": cov.solve(b[:, 0]),
        "half_log_det": cov.half_log_det(),
        "diagonal": cov.diagonal(),
        "scaled": cov.scaled(0.7).dense(),
        "trace_solve": cov.trace_solve(other),
        "own trace_solve": cov.trace_solve(cov),
        "nearest": cov.nearest(cov.scaled(3.0)).dense(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_structures_equal_dense_algebra(x64, kind):
    rng = np.random.default_rng(1)
    cov, other = structure(kind), Outer(jnp.asarray(rng.normal(size=(DIM, 3))))
    dense, b = np.asarray(cov.dense()), rng.normal(size=(DIM, 2))
    inverse = np.linalg.inv(dense)
    expected = {
        "matmul": dense @ b,
        "vector": dense @ b[:, 0],
        "solve": inverse @ b,
        "solve vector": inverse @ b[:, 0],
        "half_log_det": 0.5 * np.linalg.slogdet(dense)[1],
        "diagonal": np.diag(dense),
        "scaled": 0.7 * dense,
        "trace_solve": np.trace(inverse @ np.asarray(other.dense())),
        "own trace_solve": DIM,
        "nearest": 3 * dense,
    }
    found = answers(cov, other, jnp.asarray(b))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-10, err_msg=name)
    assert np.all(np.linalg.eigvalsh(dense) > 0)
    assert cov.dim == DIM
    checked(cov, "cov")


def test_oracle_operators_equal_dense_sums(x64):
    rng = np.random.default_rng(2)
    cov = structure("low rank")
    stack = jax.vmap(lambda c: cov.scaled(c))(jnp.array([1.0, 2.0, 5.0]))
    weights = jnp.array([0.2, 0.0, 1.0])
    outer = Outer(jnp.asarray(rng.normal(size=(DIM, 2))))
    total = Sum([2.0, -0.5], [Stacked(weights, stack), outer])
    dense = 2 * 5.2 * np.asarray(cov.dense()) - 0.5 * np.asarray(outer.columns @ outer.columns.T)
    part = Restricted(total, 1, 3)
    b = rng.normal(size=(DIM, 2))
    np.testing.assert_allclose(total.dense(), dense, atol=1e-12)
    np.testing.assert_allclose(total.diagonal(), np.diag(dense), atol=1e-12)
    np.testing.assert_allclose(total.matmul(jnp.asarray(b)), dense @ b, atol=1e-12)
    np.testing.assert_allclose(part.dense(), dense[1:4, 1:4], atol=1e-12)
    np.testing.assert_allclose(part.diagonal(), np.diag(dense)[1:4], atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "diagonal", "blocks"])
def test_oracle_moments_add_up(x64, kind):
    # The nearest member of a sum is the sum of moments, and keeps what the structure holds.
    cov, other = structure(kind), structure("full", seed=3)
    both = cov.nearest(Sum([0.5, 2.0], [cov, other])).dense()
    moments = jax.tree.map(lambda a, b: 0.5 * a + 2 * b, cov.moments(cov), cov.moments(other))
    np.testing.assert_allclose(both, cov.from_moments(moments).dense(), atol=1e-12)
    held = np.asarray(cov.dense()) != 0
    dense = 0.5 * np.asarray(cov.dense()) + 2 * np.asarray(other.dense())
    np.testing.assert_allclose(both, np.where(held, dense, 0), atol=1e-12)


def kl(exact, cov):
    """KL(N(0, exact) || N(0, cov)) of dense matrices."""
    ratio = np.linalg.solve(np.asarray(cov), np.asarray(exact))
    return 0.5 * (np.trace(ratio) - len(ratio) - np.linalg.slogdet(ratio)[1])


@eqx.filter_jit
def nearest(cov, other):
    return cov.nearest(other)


def test_oracle_low_rank_finds_a_matrix_of_its_structure_and_keeps_any_diagonal(x64):
    rng = np.random.default_rng(0)
    exact = LowRank(rng.normal(size=(30, 2)), rng.uniform(0.2, 1.2, 30))
    now, gaps = low_rank(np.ones(30), 2), []
    for _ in range(4):
        now = nearest(now, exact)
        gaps.append(kl(exact.dense(), now.dense()))
        np.testing.assert_allclose(now.diagonal(), exact.diagonal(), rtol=1e-12)
    assert np.all(np.diff(gaps) < 0)
    assert gaps[-1] < 1e-3
    # The control: without EM, principal components take the unequal diagonal for structure.
    components = _principal(exact, exact.diagonal(), 2)
    assert kl(exact.dense(), components.dense()) > 10 * gaps[0]


def test_oracle_low_rank_nears_a_full_matrix_step_by_step(x64):
    exact = structure("full")
    now = low_rank(np.ones(DIM), 2)
    gaps = [kl(exact.dense(), np.diag(exact.diagonal()))]
    for _ in range(3):
        now = nearest(now, exact)
        gaps.append(kl(exact.dense(), now.dense()))
        np.testing.assert_allclose(now.diagonal(), exact.diagonal(), rtol=1e-12)
        checked(now, "now")
    assert np.all(np.diff(gaps) < 0)


def without_its_diagonal(cov, key):
    return LowRank(cov.factor, 1e-12 * cov.diag).sample(key)


@pytest.mark.parametrize("kind", KINDS)
def test_stat_draws_have_the_covariance(key, kind):
    cov = structure(kind)

    def second_moments(draw):
        return lambda key: jnp.outer(*[draw(cov, key)] * 2)

    exact = np.asarray(cov.dense())
    draws = second_moments(lambda cov, key: cov.sample(key))
    assert unbiased(key, draws, exact, num_tests=5).holds
    if kind == "low rank":
        assert not unbiased(key, second_moments(without_its_diagonal), exact, num_tests=5).holds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: full(np.diag([1.0, -1.0])), "smallest eigenvalue is -1"),
        (lambda: full(np.array([[1.0, 2.0], [0.0, 1.0]])), "differs from its transpose"),
        (lambda: full(np.full((2, 2), np.nan)), "NaN or infinite"),
        (lambda: full(np.ones((2, 3))), "a square was expected"),
        (lambda: Full(np.ones((2, 3))), "a square was expected"),
        (lambda: Diagonal(1.0), "1 axes were expected"),
        (lambda: Blocks([]), "at least one Full or Diagonal"),
        (lambda: Blocks([low_rank(np.ones(2), 1)]), "LowRank"),
        (lambda: LowRank(np.ones((3, 1)), np.ones(2)), r"\(2, r\) was expected"),
        (lambda: low_rank(np.ones(2), 3), "between 1 and 2"),
        (lambda: checked(Diagonal(np.array([1.0, 0.0])), "cov"), r"cov.diag: 0.0 came"),
        (lambda: checked(Full(-np.eye(2)), "cov"), r"cov.chol: diagonal: -1.0 came"),
        (lambda: checked(Full(np.full((2, 2), np.nan)), "cov"), "not positive definite"),
        (lambda: checked(Full(np.ones((2, 2))), "cov"), "above the diagonal"),
        (lambda: checked(low_rank(np.array([1.0, -1.0]), 1), "cov"), r"cov.diag: -1.0 came"),
        (lambda: checked(Blocks([Diagonal(np.array([-1.0]))]), "cov"), r"cov.blocks\[0\].diag"),
    ],
)
def test_what_is_no_covariance_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
