"""The paper's objective: what it equals, and its two faults, kept by tests as documentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import digamma

from bayesinf import meta_niw
from bayesinf.distributions import Diagonal, NormalInverseWishart, full
from bayesinf.meta_niw.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT = meta_niw.Laplace(1)
DIM, NOISE, STRENGTH = 3, 0.5, 4.0


def linear(weights, x):
    return x @ weights


def problem(num=5, rows=4, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(DIM, DIM))
    x, y = rng.normal(size=(num, rows, DIM)), 2 * rng.normal(size=(num, rows))
    episodes = meta_niw.Episode(jnp.asarray(x), jnp.asarray(y), jnp.ones((num, rows), bool))
    return episodes, rng.normal(size=DIM), a @ a.T / DIM + 0.3 * np.eye(DIM)


def at(loc, sigma, df):
    """The state whose V / n is sigma."""
    niw = NormalInverseWishart(loc, STRENGTH, df, full(df * sigma))
    return meta_niw.init(niw, linear, jnp.zeros(DIM), Gaussian(NOISE))


def constant(df):
    psi = digamma((df - np.arange(DIM)) / 2).sum()
    return 0.5 * (DIM * np.log(df / 2) - psi) + 0.5 * DIM / STRENGTH


@pytest.mark.parametrize("df", [2.0 * DIM, 1e2, 1e6])
def test_oracle_it_is_type_two_maximum_likelihood_and_a_constant_in_n(x64, df):
    episodes, loc, sigma = problem()
    found = meta_niw.objective(at(loc, sigma, df), episodes, EXACT)
    evidence = [
        stats.multivariate_normal(x @ loc, x @ sigma @ x.T + NOISE**2 * np.eye(len(y))).logpdf(y)
        for x, y in zip(np.asarray(episodes.x), np.asarray(episodes.y), strict=True)
    ]
    residual = np.asarray(found) + evidence - constant(df)
    assert np.abs(residual).max() < 1e-9
    # The control: one n in the place of another.
    assert np.abs(residual + constant(df) - constant(df + 1)).max() > (1e-13 if df > 1e5 else 1e-5)


def test_oracle_a_learned_n_runs_away_and_the_kept_kl_holds_it(x64):
    episodes, loc, sigma = problem()
    prior = at(loc, sigma, DIM + 2.0)
    chol = full(sigma).chol

    def state(log_df):
        df = jnp.exp(log_df)
        scale = type(prior.prior.scale)(jnp.sqrt(df) * chol)
        return prior._replace(posterior=NormalInverseWishart(loc, STRENGTH, df, scale))

    @jax.jit
    @jax.value_and_grad
    def paper(log_df):
        return jnp.mean(meta_niw.objective(state(log_df), episodes, EXACT))

    @jax.jit
    @jax.value_and_grad
    def bound(log_df):
        return -meta_niw.elbo(state(log_df), episodes, EXACT)

    grid = np.log(np.geomspace(DIM + 0.5, 1e5, 12))
    values, slopes = map(np.array, zip(*map(paper, grid), strict=True))
    assert np.all(slopes < 0)
    assert np.all(np.diff(values) < 0)
    # Its gradient descent never stops.
    log_df, path = grid[2], []
    for _ in range(30):
        log_df = log_df - 5 * paper(log_df)[1]
        path.append(log_df)
    assert np.all(np.diff(path) > 0)
    # With KL(q(phi) || p(phi)) there is a best n, and it counts episodes.
    slopes = np.array([bound(each)[1] for each in grid])
    assert slopes[0] < 0 < slopes[-1]
    best = np.exp(np.interp(0, slopes, grid))
    assert DIM + 2 < best < DIM + 2 + 3 * len(episodes.y)


def test_oracle_training_and_the_papers_test_use_different_scales(x64):
    for dim, df, ratio in ((1, 1.0, 0.25), (3, 9.0, 9 / 14)):
        niw = NormalInverseWishart(np.zeros(dim), 1.0, df, full(np.eye(dim)))
        training, test = niw.expected_precision().diagonal(), niw.mode_covariance().diagonal()
        np.testing.assert_allclose(test / training, ratio, rtol=1e-12)
    # As a product of one-dimensional laws, every n > 0 is proper, and the ratio that of d = 1.
    niw = NormalInverseWishart(np.zeros(3), 1.0, 1.0, Diagonal(np.ones(3)))
    np.testing.assert_allclose(niw.mode_covariance().diagonal(), 0.25)
