"""EM, coordinate ascent, Gibbs and the evidence, each against another way to the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import invgamma, norm

from bayesinf import mcmc, meta_niw
from bayesinf.distributions import Diagonal, NormalInverseWishart, full, low_rank
from bayesinf.meta_niw.gibbs import LocalMoves, Shared, Tasks
from bayesinf.meta_niw.learner import fit_locals
from bayesinf.meta_niw.likelihoods import Bernoulli, Gaussian, Poisson
from bayesinf.validation import geweke, sbc

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT = meta_niw.Laplace(1)
NOISE = 0.7


def linear(weights, x):
    return x @ weights


def family(num, rows, dim, seed=0):
    rng = np.random.default_rng(seed)
    theta = 1 + rng.normal(size=(num, dim))
    x = rng.normal(size=(num, rows, dim))
    y = np.einsum("nkd,nd->nk", x, theta) + NOISE * rng.normal(size=(num, rows))
    mask = np.arange(rows) < rng.integers(2, rows + 1, size=(num, 1))
    return meta_niw.Episode(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))


def learner(dim=1, strength=0.2, scale=None, likelihood=None):
    scale = full(np.eye(dim)) if scale is None else scale
    prior = NormalInverseWishart(np.zeros(dim), strength, dim + 2.0, scale)
    return meta_niw.init(prior, linear, jnp.zeros(dim), likelihood or Gaussian(NOISE))


# Maximum likelihood


def test_oracle_em_is_monotone_and_direct_maximum_likelihood(x64):
    dim, episodes = 2, family(30, 4, 2)
    fitted = meta_niw.em(learner(dim), episodes, 150, meta_niw.gaussian_noise, EXACT)
    assert np.diff(fitted.log_likelihood).min() > -1e-9

    @jax.jit
    @jax.value_and_grad
    def loss(point):
        chol = jnp.array([[jnp.exp(point[2]), 0], [point[3], jnp.exp(point[4])]])
        network = eqx.tree_at(lambda m: m.likelihood.log_scale, fitted.model, point[5])

        def one(x, y, mask):
            root = jnp.where(mask[:, None], x @ chol, 0)
            noise = jnp.where(mask, jnp.exp(2 * network.likelihood.log_scale), 1.0)
            cov = root @ root.T + jnp.diag(noise)
            gap = jnp.where(mask, y - x @ point[:2], 0)
            square = gap @ jnp.linalg.solve(cov, gap) + jnp.sum(mask) * jnp.log(2 * jnp.pi)
            return 0.5 * (square + jnp.linalg.slogdet(cov)[1])

        return jnp.sum(jax.vmap(one)(*episodes))

    direct = minimize(loss, np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-7})
    assert abs(fitted.log_likelihood[-1] + direct.fun) < 1e-4
    np.testing.assert_allclose(fitted.loc, direct.x[:2], atol=1e-4)
    np.testing.assert_allclose(fitted.model.likelihood.log_scale, direct.x[5], atol=1e-4)
    # The control: the noise as it was.
    held = meta_niw.em(learner(dim, likelihood=Gaussian(2.0)), episodes, 150, local=EXACT)
    assert held.log_likelihood[-1] < fitted.log_likelihood[-1] - 1


def test_a_likelihood_without_gaussian_noise_is_named():
    with pytest.raises(ValueError, match="a Poisson likelihood came"):
        meta_niw.em(learner(likelihood=Poisson()), counts(), 1, meta_niw.gaussian_noise)


# The bound


@eqx.filter_jit
def parts_of_the_bound(state, episodes):
    q, cov = state.posterior, state.posterior.expected_precision()
    found = fit_locals(state.model, q.loc, cov, episodes, EXACT)
    covs = jax.vmap(lambda cov: cov.dense())(found.cov)
    return q.kl(state.prior), cov.dense(), q.expected_log_det(), found.mean, covs


def explicit_bound(state, episodes):
    """The bound from its definition: every expectation written out, dense."""
    q, dim = state.posterior, state.model.dim
    kl, cov, log_det, means, covs = map(np.asarray, parts_of_the_bound(state, episodes))
    total, precision = -kl, np.linalg.inv(cov)
    columns = zip(*map(np.asarray, (*episodes, means, covs)), strict=True)
    for x, y, mask, mean, cov in columns:
        x, y = x[mask], y[mask]
        fit = np.sum((y - x @ mean) ** 2) + np.trace(x @ cov @ x.T)
        total -= 0.5 * (fit / NOISE**2 + len(y) * np.log(2 * np.pi * NOISE**2))
        gap = mean - np.asarray(q.loc)
        quadratic = np.trace(precision @ cov) + gap @ precision @ gap + dim / float(q.strength)
        log_dets = log_det - np.linalg.slogdet(cov)[1]
        total -= 0.5 * (log_dets + quadratic - dim)
    return total


def test_oracle_coordinate_ascent_climbs_to_a_fixed_point(x64):
    episodes = family(20, 4, 2)
    state, bounds = meta_niw.cavi(learner(2), episodes, 60, EXACT)
    assert np.diff(bounds).min() > -1e-9
    again, _ = meta_niw.cavi(state, episodes, 1, EXACT)
    np.testing.assert_allclose(again.posterior.scale.chol, state.posterior.scale.chol, rtol=1e-8)
    np.testing.assert_allclose(state.posterior.df, state.prior.df + 20)
    bound = float(meta_niw.elbo(state, episodes, EXACT))
    np.testing.assert_allclose(bound, explicit_bound(state, episodes), rtol=1e-11)
    # The control: any other posterior has a lower one.
    other = state._replace(posterior=eqx.tree_at(lambda q: q.df, state.posterior, 30.0))
    assert meta_niw.elbo(other, episodes, EXACT) < bound - 0.01


def test_low_rank_and_diagonal_scales_have_bounds_below_the_full_one(x64):
    episodes = family(20, 4, 2)
    best = {
        name: float(meta_niw.cavi(learner(2, scale=scale), episodes, 40, EXACT)[1][-1])
        for name, scale in {
            "full": full(np.eye(2)),
            "diagonal": Diagonal(np.ones(2)),
            "low rank": low_rank(np.ones(2), 1),
        }.items()
    }
    # A rank of one and a diagonal hold any two by two matrix.
    assert abs(best["low rank"] - best["full"]) < 1e-3
    assert np.isfinite(best["diagonal"])


# The integrated evidence


def dense_evidence(episodes, num=300):
    """A grid of its own in (mu, log Sigma), from the rows' sufficient statistics, in NumPy."""
    log_s, step_s = np.linspace(-7, 6, num, retstep=True)
    mu, step_mu = np.linspace(-15, 15, 4 * num, retstep=True)
    s, mu = np.exp(log_s)[:, None], mu[None]
    total = invgamma(1.5, scale=0.5).logpdf(s) + norm(0, np.sqrt(s / 0.2)).logpdf(mu) + np.log(s)
    for x, y, mask in zip(*map(np.asarray, episodes), strict=True):
        x, y = x[mask, 0], y[mask]
        a, b = x @ x / NOISE**2, x @ y / NOISE**2
        v = 1 / (a + 1 / s)
        m = v * (b + mu / s)
        constant = len(y) * np.log(2 * np.pi * NOISE**2) + y @ y / NOISE**2
        total = total - 0.5 * (constant + np.log(s / v) + mu**2 / s - m**2 / v)
    return logsumexp(total) + np.log(step_s * step_mu)


def test_oracle_quadrature_chib_and_the_bound(x64, key):
    state, episodes = learner(), family(12, 3, 1)
    exact = dense_evidence(episodes)
    np.testing.assert_allclose(
        meta_niw.log_evidence_1d(state, episodes, 80, EXACT), exact, atol=1e-6
    )
    # Four chains of 3,000 draws: .05 nats are 4 standard errors.
    draws = meta_niw.gibbs(
        key, state, episodes, num_warmup=0, num_samples=3000, local=EXACT, progress=False
    )
    np.testing.assert_allclose(draws.info.each[0].acceptance, 1, atol=1e-9)
    found = meta_niw.chib(state, episodes, draws, EXACT)
    assert abs(found.log_evidence - exact) < 0.05
    assert found.standard_error < 0.0125
    best, bounds = meta_niw.cavi(state, episodes, 60, EXACT)
    gap = exact - float(bounds[-1])
    assert 0 <= gap < 2
    # The control: without KL(q(phi) || p(phi)) it bounds nothing.
    kl, *_ = parts_of_the_bound(best, episodes)
    assert float(bounds[-1]) + float(kl) > exact + 1


def test_quadrature_is_for_one_weight():
    with pytest.raises(ValueError, match="2 weights a task came, 1 was expected"):
        meta_niw.log_evidence_1d(learner(2), family(3, 3, 2))


# The exact posterior


def counts(num=4, rows=3):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, size=(num, rows, 1))
    mask = jnp.asarray(np.arange(rows) < np.arange(2, num + 2)[:, None])
    return meta_niw.Episode(jnp.asarray(x), jnp.asarray(rng.poisson(1.5, (num, rows))), mask)


class Still(eqx.Module):
    """A local move that forgets the spread of the local posterior."""

    moves: LocalMoves

    def init(self, target, position):
        return self.moves.init(target, position)

    def step(self, key, target, state):
        mu, cov = target.terms.rest["mu"], target.terms.rest["cov"]
        theta = fit_locals(self.moves.tasks.model, mu, cov, self.moves.tasks.episodes, EXACT).mean
        return mcmc.State(theta, target.parts(theta)), mcmc.Info(jnp.ones(()), jnp.zeros((), bool))


def calibration(key, broken=False):
    num, rows, draws, thin = 8, 3, 51, 8
    state = learner()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(num, rows, 1)), jnp.float32)

    def simulate(key, phi):
        theta_key, noise_key = jax.random.split(key)
        theta = phi[0] + phi[1].sample(theta_key, (num,))
        y = jnp.einsum("nkd,nd->nk", x, theta)
        return y + NOISE * jax.random.normal(noise_key, y.shape)

    def posterior(key, y):
        start_key, run_key = jax.random.split(key)
        tasks = Tasks(state.model, state.prior, meta_niw.Episode(x, y, jnp.ones((num, rows), bool)))
        moves = LocalMoves(tasks, EXACT)
        kernel = mcmc.blocks(
            {
                "theta": Still(moves) if broken else moves,
                ("mu", "cov"): mcmc.Gibbs(Shared(state.prior)),
            }
        )
        target = tasks.target()
        begin = kernel.init(target, tasks.sample(start_key))
        _, (positions, _) = mcmc.run(run_key, target, kernel, begin, 60 + draws * thin)
        kept = jax.tree.map(lambda leaf: leaf[60 + thin - 1 :: thin], positions)
        return kept["mu"], kept["cov"]

    def statistics(phi, y):
        mu, cov = phi
        return jnp.stack([mu[0], cov.half_log_det()])

    return sbc(key, state.prior.sample, simulate, posterior, statistics, num_runs=200)


def test_stat_gibbs_is_calibrated(key):
    # 200 data sets, 10 bins: chi-square below 21.7 in mu and in Sigma, 1 % of false alarms each.
    assert np.all(calibration(key).p_values(num_bins=10) > 0.01)
    # The control: a step that forgets the spread of the local posterior.
    assert np.min(calibration(key, broken=True).p_values(num_bins=10)) < 1e-6


def test_stat_local_moves_are_exact_where_the_local_fit_is_not(key):
    state, episodes = (
        learner(likelihood=Poisson(), strength=4.0, scale=full(np.eye(1) * 0.3)),
        counts(),
    )

    def simulate(key, position):
        rates = jnp.exp(jnp.einsum("nkd,nd->nk", episodes.x, position["theta"]))
        return jax.random.poisson(key, rates)

    def tasks(y):
        return Tasks(state.model, state.prior, episodes._replace(y=y))

    def move(accepts):
        def step(key, position, y):
            now = tasks(y)
            local = meta_niw.Laplace(2)
            target = now.target()
            if accepts:
                kernel = mcmc.blocks({"theta": LocalMoves(now, local)})
                return kernel.step(key, target, kernel.init(target, position))[0].position
            found = fit_locals(now.model, position["mu"], position["cov"], now.episodes, local)
            keys = jax.random.split(key, len(y))
            return {**position, "theta": jax.vmap(lambda one, key: one.sample(key))(found, keys)}

        return step

    def statistics(position, y):
        theta = position["theta"][:, 0]
        return jnp.stack([jnp.mean(theta), jnp.mean(theta**2), jnp.mean(jnp.tanh(theta - 1))])

    def check(accepts):
        return geweke(
            key, tasks(episodes.y).sample, simulate, move(accepts), statistics, 2, 4096, 4
        )

    assert check(True).holds
    # The control: every proposal accepted, Laplace's fit taken for the posterior.
    assert not check(False).holds


def test_gibbs_accepts_some_where_the_fit_is_not_exact(key):
    draws = meta_niw.gibbs(
        *(key, learner(likelihood=Bernoulli())),
        family(6, 4, 1)._replace(y=jnp.ones((6, 4), int)),
        num_chains=2,
        num_warmup=0,
        num_samples=60,
        local=meta_niw.Laplace(2),
        progress=False,
    )
    assert draws.positions["theta"].shape == (2, 60, 6, 1)
    assert 0.5 < np.mean(draws.info.each[0].acceptance) < 0.999
    assert draws.num_invalid == 0
