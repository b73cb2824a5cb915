"""The normal-inverse-Wishart and its Student-t against SciPy, each other, and their own draws."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from bayesinf.distributions import (
    Blocks,
    Diagonal,
    Full,
    LowRank,
    NormalInverseWishart,
    StudentT,
    full,
)
from bayesinf.distributions.numpyro import sample_niw
from bayesinf.distributions.student_t import gamma_quantile
from bayesinf.types import checked
from bayesinf.validation.statistical import judge

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIM = 3
KINDS = ["full", "diagonal", "blocks", "low rank"]


def make(kind, df=7.5, strength=2.5, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(DIM, DIM))
    scale = {
        "full": lambda: full(a @ a.T + np.eye(DIM)),
        "diagonal": lambda: Diagonal(rng.uniform(0.5, 2, DIM)),
        "blocks": lambda: Blocks([full(a[:2] @ a[:2].T + np.eye(2)), Diagonal(np.array([0.8]))]),
        "low rank": lambda: LowRank(a[:, :1], rng.uniform(0.5, 2, DIM)),
    }[kind]()
    return NormalInverseWishart(rng.normal(size=DIM), strength, df, scale)


def factors(niw):
    """The factors of a product, each with a `Full` scale and its coordinates."""
    scale = niw.scale
    parts = scale.blocks if isinstance(scale, Blocks) else [scale]
    dense = np.asarray(scale.dense())
    found, start = [], 0
    for part in parts:
        size = part.factor_dim
        for at in range(start, start + part.dim, size):
            rows = slice(at, at + size)
            found.append((rows, np.asarray(niw.loc)[rows], dense[rows, rows]))
        start += part.dim
    return found


class Case(NamedTuple):
    """A law, a point of it, and draws of N(mu, Sigma)."""

    niw: NormalInverseWishart
    mu: np.ndarray
    cov: object
    thetas: np.ndarray


@eqx.filter_jit
def _answers(niw, mu, cov, thetas):
    """Everything that the tests below ask of a law in double precision: compiled once a kind."""
    marginal, whole = niw.marginal(), niw.observe(thetas)
    found = {
        "log_prob": niw.log_prob((mu, cov)),
        "marginal": marginal.log_prob(thetas),
        "evidence": niw.log_evidence(thetas),
        "whole": (whole.loc, whole.scale.dense()),
        "nodes": marginal.to_mixture(16),
        "marginal law": (marginal.df, jnp.sqrt(marginal.scale.diagonal())),
    }
    now, sequence, plug_in = niw, jnp.zeros(()), jnp.zeros(())
    for theta in thetas:
        sequence += now.marginal().log_prob(theta)
        mode, residual = now.mode_covariance(), theta - now.loc
        square = residual @ mode.solve(residual) + theta.size * jnp.log(2 * jnp.pi)
        plug_in -= 0.5 * square + mode.half_log_det()
        now = now.observe(theta[None])
    found |= {"sequence": sequence, "plug-in": plug_in, "last": (now.loc, now.scale.dense())}
    if not isinstance(niw.scale, LowRank):
        prior = niw.natural()
        gains = [
            jax.tree.map(jnp.subtract, niw.observe(part).natural(), prior)
            for part in (thetas[:1], thetas[1:])
        ]
        total = niw.from_natural(jax.tree.map(lambda *leaves: sum(leaves), prior, *gains))
        found |= {"back": niw.from_natural(prior), "total": (total.loc, total.scale.dense())}
    if not isinstance(niw.scale, Blocks):
        found["numpyro marginal"] = marginal.to_numpyro().log_prob(thetas)
    if isinstance(niw.scale, Full | Diagonal):
        value = cov.diag if isinstance(cov, Diagonal) else cov.dense()
        found["numpyro sites"] = _density_of_sites(niw, {"task_cov": value, "task_loc": mu})
    return found


def _density_of_sites(niw, values):
    def model():
        loc, chol = sample_niw("task", niw)
        numpyro.sample("theta", dist.MultivariateNormal(loc, scale_tril=chol), obs=jnp.zeros(DIM))

    found, trace = numpyro.infer.util.log_density(model, (), {}, values)
    return found, trace["theta"]["fn"].covariance_matrix


@functools.cache
def answers(kind):
    """Returns a case and what the package says of it; asked for in double precision."""
    rng = np.random.default_rng(1)
    cov = make(kind, seed=4).scale
    cov = full(np.asarray(cov.dense())) if kind == "low rank" else cov
    case = Case(make(kind), rng.normal(size=DIM), cov, rng.normal(size=(3, DIM)))
    return case, _answers(case.niw, jnp.asarray(case.mu), cov, jnp.asarray(case.thetas))


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_density_is_scipys(x64, kind):
    (niw, mu, cov, _), found = answers(kind)
    dense, expected, broken = np.asarray(cov.dense()), 0.0, 0.0
    for rows, loc, scale in factors(niw):
        block = dense[rows, rows]
        given = stats.multivariate_normal(loc, block / float(niw.strength)).logpdf(mu[rows])
        expected += stats.invwishart(float(niw.df), scale).logpdf(block) + given
        broken += stats.invwishart(float(niw.df) + 1, scale).logpdf(block) + given
    np.testing.assert_allclose(found["log_prob"], expected, rtol=1e-11)
    assert abs(found["log_prob"] - broken) > 1e-3  # the control: one degree of freedom more


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_marginal_is_scipys_student_t(x64, kind):
    (niw, _, _, x), found = answers(kind)

    def density(more):
        total = 0.0
        for rows, loc, scale in factors(niw):
            df = float(niw.df) - len(loc) + 1
            shape = scale * float((niw.strength + 1) / (niw.strength * df))
            total = total + stats.multivariate_t(loc, shape, df=df + more).logpdf(x[:, rows])
        return total

    np.testing.assert_allclose(found["marginal"], density(0), rtol=1e-11)
    # The control: the degrees of freedom n - d + 2.
    assert np.abs(found["marginal"] - density(1)).min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_evidence_is_the_sequence_of_student_ts(x64, kind):
    _, found = answers(kind)
    assert abs(found["evidence"] - found["sequence"]) < 1e-9
    for one_by_one, at_once in zip(found["last"], found["whole"], strict=True):
        np.testing.assert_allclose(one_by_one, at_once, atol=1e-10)
    # The control: the Gaussian of the mode in the place of the t.
    assert abs(found["evidence"] - found["plug-in"]) > 0.1


@pytest.mark.parametrize("kind", ["full", "diagonal", "blocks"])
def test_oracle_natural_parameters_add_up(x64, kind):
    (niw, *_), found = answers(kind)
    for ours, theirs in zip(jax.tree.leaves(found["back"]), jax.tree.leaves(niw), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    for ours, theirs in zip(found["total"], found["whole"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


# Against its own draws


@functools.cache
def draws(kind, num=4096):
    """Returns statistics of independent draws, and their exact means, by name."""
    a = make(kind, df=12.0)
    b = NormalInverseWishart(a.loc + 0.3, 1.2, 9.0, a.scale.scaled(1.4))

    @jax.jit
    @jax.vmap
    def one(key):
        key, theta_key = jax.random.split(key)
        mu, cov = a.sample(key)
        residual = mu - a.loc
        away = a.marginal().sample(theta_key) - a.loc
        return {
            "log ratio": a.log_prob((mu, cov)) - b.log_prob((mu, cov)),
            "precision": cov.solve(jnp.eye(DIM)),
            "log det": 2 * cov.half_log_det(),
            "square": residual @ cov.solve(residual),
            "covariance": cov.dense(),
            "marginal": jnp.outer(away, away),
        }

    @jax.jit
    def means():
        mean = a.mean_covariance().dense()
        precisions = (a.expected_precision().solve, a.mode_covariance().solve)
        precision, of_mode = (solve(jnp.eye(DIM)) for solve in precisions)
        exact = {
            "log ratio": a.kl(b),
            "precision": precision,
            "log det": a.expected_log_det(),
            "square": DIM / a.strength,
            "covariance": mean,
            "marginal": mean * (1 + 1 / a.strength),
        }
        # Broken: the KL without what the uncertainty of mu brings, and the mode for the mean.
        broken = {"log ratio": a.kl(b) - 0.5 * DIM * b.strength / a.strength, "precision": of_mode}
        return exact, broken, a.kl(a)

    samples = one(jax.random.split(jax.random.key(0), num))
    return samples, *means()


@pytest.mark.parametrize("kind", KINDS)
def test_stat_draws_have_the_closed_moments_and_divergence(kind):
    samples, exact, broken, own = draws(kind)

    def holds(name, value):
        flat = np.asarray(samples[name], float).reshape(len(samples[name]), -1)
        return judge(flat, np.ravel(np.asarray(value, float)), num_tests=24).holds

    for name, value in exact.items():
        assert holds(name, value), name
    for name, value in broken.items():
        assert not holds(name, value), name
    assert abs(float(own)) < 1e-4


def test_covariances_that_stand_for_sigma():
    niw = make("blocks")
    scale = np.asarray(niw.scale.dense())
    size = np.array([2, 2, 1])
    for found, divisor in (
        (niw.mean_covariance(), 7.5 - size - 1),
        (niw.mode_covariance(), 7.5 + size + 2),
        (niw.expected_precision(), 7.5 + 0 * size),
    ):
        np.testing.assert_allclose(found.dense(), scale / divisor, rtol=1e-5)
    infinite = NormalInverseWishart(np.zeros(2), 1.0, 3.0, full(np.eye(2))).mean_covariance()
    assert np.isnan(infinite.chol[0, 0])


# The Student-t as a mixture of Gaussians


quantiles = jax.jit(jax.vmap(gamma_quantile, (0, None)))


@pytest.mark.parametrize("df", [1.0, 2.0, 3.0, 10.0, 100.0])
def test_oracle_gamma_quantiles_are_scipys(x64, df):
    z = np.linspace(-4.2, 4.2, 9)
    found = quantiles(jnp.asarray(z), jnp.asarray(df))
    # The upper tail by its own probability, as ppf near 1 is itself inexact.
    law = stats.gamma(df / 2, scale=2 / df)
    expected = np.where(z < 0, law.ppf(stats.norm.cdf(z)), law.isf(stats.norm.sf(z)))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def gap(df, num_nodes):
    """KL(t || mixture) in one dimension, at the quantiles of the t."""
    x = stats.t(df).ppf((np.arange(20_000) + 0.5) / 20_000)
    mixture = nodes(jnp.asarray(df), num_nodes)
    normal = stats.norm(0, np.asarray(mixture.chols)[:, 0, 0])
    log_prob = np.log(normal.pdf(x[:, None]) @ np.exp(mixture.log_weights))
    return float(np.mean(stats.t(df).logpdf(x) - log_prob))


@eqx.filter_jit
def nodes(df, num_nodes):
    return StudentT(jnp.zeros(1), Diagonal(jnp.ones(1)), df).to_mixture(num_nodes)


def test_oracle_eight_nodes_are_the_student_t(x64):
    assert gap(2.0, 8) < 1.2e-3
    assert abs(gap(3.0, 8)) < 2e-4
    assert abs(gap(5.0, 8)) < 2e-5
    # The control: one Gaussian.
    assert gap(5.0, 1) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_nodes_keep_every_factors_marginal(x64, kind):
    (niw, *_), found = answers(kind)
    mixture, (df, sd), loc = found["nodes"], found["marginal law"], np.asarray(niw.loc)
    stds = np.sqrt(np.einsum("kij,kij->ki", mixture.chols, mixture.chols))
    weights = np.exp(mixture.log_weights)
    df = np.repeat(df, [2, 1]) if kind == "blocks" else np.full(DIM, df)
    for p in (0.55, 0.9, 0.99):
        x = loc + sd * stats.t(df).ppf(p)
        np.testing.assert_allclose(weights @ stats.norm.cdf((x - loc) / stds), p, atol=1e-6)
        # The control: one Gaussian of the same centre and scale.
        assert np.abs(stats.norm.cdf((x - loc) / sd) - p).min() > 5e-4


# What a new draw's interval covers


def test_oracle_reference_prior_intervals_cover_what_they_say(x64):
    # With n = N - 1 and l = N the interval rests on a pivot: (theta - mean) / scale is t_{N-1}.
    for num in (3, 5, 10):
        df, scale, mode, mixture = reference(jnp.asarray(float(num)))
        pivot = np.sqrt((num + 1) / (num * (num - 1)))
        half = stats.t(float(df)).ppf(0.95) * np.sqrt(float(scale))
        assert abs(covered(num, half, pivot) - 0.9) < 1e-10
        # By the mixture too, whose interval is found by bisection.
        assert abs(covered(num, interval(mixture), pivot) - 0.9) < 0.005
        # The control: the mode.
        assert covered(num, 1.645 * np.sqrt(float(mode)), pivot) < 0.8


@jax.jit
def reference(num):
    niw = NormalInverseWishart(np.zeros(1), num, num - 1.0, Diagonal(jnp.ones(1)))
    marginal, mode = niw.marginal(), niw.mode_covariance()
    return marginal.df, marginal.scale.diag[0], mode.diag[0], niw.to_mixture()


def covered(num, half_width, pivot):
    return 1 - 2 * stats.t(num - 1).sf(half_width / pivot)


def interval(mixture):
    weights, sds = np.exp(mixture.log_weights), np.asarray(mixture.chols)[:, 0, 0]
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if weights @ stats.norm.cdf(middle / sds) < 0.95 else (low, middle)
        )
    return low


def test_stat_coverage_under_a_weak_and_wrong_prior(x64):
    # theta ~ N(0, 1), the prior's scale .1; the interval's share is taken in closed form in the new
    # draw, so the standard error of a mean over 20,000 data sets is below .003, and .02 is 7 of it.
    prior = NormalInverseWishart(np.zeros(1), 0.01, 1.0, Diagonal(np.array([0.1])))
    table = {
        3: (0.496, 0.607, 0.764),
        5: (0.636, 0.724, 0.821),
        10: (0.763, 0.812, 0.862),
        30: (0.860, 0.876, 0.893),
    }
    thetas = np.random.default_rng(0).normal(size=(20_000, 30))

    @jax.jit
    @jax.vmap
    def widths(thetas):
        def one(niw, theta):
            niw = niw.observe(theta[None, None])
            scales = (niw.mode_covariance(), niw.expected_precision(), niw.marginal().scale)
            return niw, (niw.loc[0], jnp.sqrt(jnp.stack([scale.diag[0] for scale in scales])))

        return jax.lax.scan(one, prior, thetas)[1]

    locs, all_sds = map(np.asarray, widths(jnp.asarray(thetas)))
    for num, expected in table.items():
        loc, sds = locs[:, num - 1, None], all_sds[:, num - 1]

        def share(quantiles, loc=loc, sds=sds):
            half = np.array(quantiles) * sds
            return (stats.norm.cdf(loc + half) - stats.norm.cdf(loc - half)).mean(0)

        np.testing.assert_allclose(
            share([1.645, 1.645, stats.t(num + 1).ppf(0.95)]), expected, atol=0.02
        )
        if num < 10:  # the control: the t with the quantile of a normal
            assert abs(share([1.645, 1.645, 1.645])[2] - expected[2]) > 0.02


# NumPyro


@pytest.mark.parametrize("kind", ["full", "diagonal", "low rank"])
def test_oracle_the_marginal_is_the_same_in_numpyro(x64, kind):
    _, found = answers(kind)
    np.testing.assert_allclose(found["numpyro marginal"], found["marginal"], rtol=1e-11)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_oracle_mu_and_sigma_are_sites_of_a_numpyro_model(x64, kind):
    (_, mu, cov, _), found = answers(kind)
    log_density, dense = found["numpyro sites"]
    np.testing.assert_allclose(dense, cov.dense(), atol=1e-12)
    theta = stats.multivariate_normal(mu, np.asarray(cov.dense())).logpdf(np.zeros(DIM))
    np.testing.assert_allclose(log_density - theta, found["log_prob"], rtol=1e-10)


def test_numpyro_has_no_product_of_multivariate_ts():
    with pytest.raises(ValueError, match="one site for each block"):
        make("blocks").marginal().to_numpyro()
    with pytest.raises(ValueError, match="Diagonal or Full was expected"):
        sample_niw("task", make("blocks"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(2), 1.0, 1.0, full(np.eye(2))), r"niw.df: 1.0 came, > 1 was expected"),
        ((np.zeros(2), 1.0, 0.0, Diagonal(np.ones(2))), r"niw.df: 0.0 came, > 0 was expected"),
        ((np.zeros(2), 0.0, 3.0, full(np.eye(2))), r"niw.strength: 0.0 came"),
        ((np.zeros(2), 1.0, np.nan, full(np.eye(2))), r"niw.df: nan came"),
        ((np.full(2, np.inf), 1.0, 3.0, full(np.eye(2))), r"niw.loc: NaN or infinite"),
        ((np.zeros(2), 1.0, 3.0, Diagonal(np.array([1.0, -1.0]))), r"niw.scale.diag: -1.0 came"),
        ((np.zeros(2), 1.0, 3.0, Full(np.full((2, 2), np.nan))), "not positive definite"),
        ((np.zeros(2), 1.0, 3.0, np.eye(2)), "scale: ndarray came, a covariance"),
        ((np.zeros(3), 1.0, 3.0, full(np.eye(2))), r"loc: shape \(3,\) came"),
        ((np.zeros(2), np.ones(2), 3.0, full(np.eye(2))), "strength: shape"),
    ],
)
def test_what_is_no_niw_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        checked(NormalInverseWishart(*arguments), "niw")


def test_a_low_rank_scale_has_no_sums():
    with pytest.raises(ValueError, match="closed under addition"):
        make("low rank").natural()
