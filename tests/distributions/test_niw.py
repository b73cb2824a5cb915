"""The normal-inverse-Wishart and its Student-t against SciPy, each other, and their own draws."""

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
from bayesinf.validation import unbiased

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
    found, start = [], 0
    for part in parts:
        size = part.factor_dim
        for at in range(start, start + part.dim, size):
            rows = slice(at, at + size)
            block = np.asarray(scale.dense())[rows, rows]
            found.append((rows, np.asarray(niw.loc)[rows], block))
        start += part.dim
    return found


@eqx.filter_jit
def log_prob(niw, phi):
    return niw.log_prob(phi)


@eqx.filter_jit
def draw(niw, key):
    return niw.sample(key)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_density_is_scipys(x64, key, kind):
    niw = make(kind)
    mu, cov = draw(niw, key)
    dense, expected = np.asarray(cov.dense()), 0.0
    for rows, loc, scale in factors(niw):
        block = dense[rows, rows]
        expected += stats.invwishart(float(niw.df), scale).logpdf(block)
        expected += stats.multivariate_normal(loc, block / niw.strength).logpdf(mu[rows])
    np.testing.assert_allclose(log_prob(niw, (mu, cov)), expected, rtol=1e-11)


@eqx.filter_jit
def t_log_prob(niw, x):
    return niw.marginal().log_prob(x)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_marginal_is_scipys_student_t(x64, kind):
    niw = make(kind)
    x = np.random.default_rng(1).normal(size=(4, DIM))
    expected = 0.0
    for rows, loc, scale in factors(niw):
        df = float(niw.df) - len(loc) + 1
        shape = scale * float((niw.strength + 1) / (niw.strength * df))
        expected = expected + stats.multivariate_t(loc, shape, df=df).logpdf(x[:, rows])
    np.testing.assert_allclose(t_log_prob(niw, jnp.asarray(x)), expected, rtol=1e-11)


@eqx.filter_jit
def evidence_and_sequence(niw, thetas):
    total, now, plug_in = jnp.zeros(()), niw, jnp.zeros(())
    for theta in thetas:
        total = total + now.marginal().log_prob(theta)
        cov, residual = now.mode_covariance(), theta - now.loc
        square = residual @ cov.solve(residual) + theta.size * jnp.log(2 * jnp.pi)
        plug_in = plug_in - 0.5 * square - cov.half_log_det()
        now = now.observe(theta[None])
    return niw.log_evidence(thetas), total, plug_in, now, niw.observe(thetas)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_evidence_is_the_sequence_of_student_ts(x64, kind):
    thetas = jnp.asarray(np.random.default_rng(2).normal(size=(6, DIM)))
    evidence, sequence, plug_in, one_by_one, at_once = evidence_and_sequence(make(kind), thetas)
    assert abs(evidence - sequence) < 1e-9
    np.testing.assert_allclose(one_by_one.loc, at_once.loc, atol=1e-12)
    np.testing.assert_allclose(one_by_one.scale.dense(), at_once.scale.dense(), atol=1e-10)
    # The control: the Gaussian of the mode in the place of the t.
    assert abs(evidence - plug_in) > 0.1


@pytest.mark.parametrize("kind", ["full", "diagonal", "blocks"])
def test_oracle_natural_parameters_add_up(x64, kind):
    niw, thetas = make(kind), jnp.asarray(np.random.default_rng(3).normal(size=(4, DIM)))
    back = niw.from_natural(niw.natural())
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(niw), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    gains = [
        jax.tree.map(jnp.subtract, niw.observe(part).natural(), niw.natural())
        for part in (thetas[:1], thetas[1:])
    ]
    total = jax.tree.map(lambda *leaves: sum(leaves), niw.natural(), *gains)
    whole = niw.observe(thetas)
    np.testing.assert_allclose(niw.from_natural(total).scale.dense(), whole.scale.dense())
    np.testing.assert_allclose(niw.from_natural(total).loc, whole.loc)


@eqx.filter_jit
def kl(a, b):
    return a.kl(b)


@pytest.mark.parametrize("kind", KINDS)
def test_stat_kl_is_the_mean_log_ratio(key, kind):
    a = make(kind)
    b = NormalInverseWishart(a.loc + 0.3, 1.2, 9.0, a.scale.scaled(1.4))

    def log_ratio(key):
        phi = a.sample(key)
        return a.log_prob(phi) - b.log_prob(phi)

    exact = np.asarray(kl(a, b))
    assert unbiased(key, log_ratio, exact, num_tests=16).holds
    assert abs(float(kl(a, a))) < 1e-4
    # The control: the term that the uncertainty of mu brings.
    broken = exact - 0.5 * DIM * float(b.strength / a.strength)
    assert not unbiased(key, log_ratio, broken, num_tests=16).holds


@pytest.mark.parametrize("kind", KINDS)
def test_stat_draws_have_the_expected_precision_and_log_determinant(key, kind):
    niw = make(kind)

    def statistics(key):
        mu, cov = niw.sample(key)
        root = cov.solve(mu - niw.loc)
        precision = cov.solve(jnp.eye(DIM))
        return precision, 2 * cov.half_log_det(), (mu - niw.loc) @ root

    inverse = np.linalg.inv(np.asarray(niw.expected_precision().dense()))
    exact = (inverse, np.asarray(niw.expected_log_det()), np.asarray(DIM / niw.strength))
    assert unbiased(key, statistics, exact, num_tests=16).holds
    # The control: the mode's precision, in the place of the mean.
    mode = np.linalg.inv(np.asarray(niw.mode_covariance().dense()))
    assert not unbiased(key, statistics, (mode, *exact[1:]), num_tests=16).holds


@pytest.mark.parametrize("kind", KINDS)
def test_stat_mean_covariance_and_draws_of_the_marginal(key, kind):
    niw = make(kind, df=30.0)
    marginal = niw.marginal()

    def second_moments(key):
        cov_key, theta_key = jax.random.split(key)
        residual = marginal.sample(theta_key) - niw.loc
        return niw.sample(cov_key)[1].dense(), jnp.outer(residual, residual)

    mean = np.asarray(niw.mean_covariance().dense())
    exact = (mean, mean * float(1 + 1 / niw.strength))
    assert unbiased(key, second_moments, exact, num_tests=16).holds


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


@pytest.mark.parametrize("df", [1.0, 2.0, 3.0, 10.0, 100.0])
def test_oracle_gamma_quantiles_are_scipys(x64, df):
    z = np.linspace(-4.2, 4.2, 9)
    found = jax.vmap(gamma_quantile, (0, None))(jnp.asarray(z), jnp.asarray(df))
    # The upper tail by its own probability, as ppf near 1 is itself inexact.
    law = stats.gamma(df / 2, scale=2 / df)
    expected = np.where(z < 0, law.ppf(stats.norm.cdf(z)), law.isf(stats.norm.sf(z)))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def gap(df, num_nodes):
    """KL(t || mixture) in one dimension, at the quantiles of the t."""
    x = stats.t(df).ppf((np.arange(20_000) + 0.5) / 20_000)
    student_t = StudentT(jnp.zeros(1), Diagonal(jnp.ones(1)), jnp.asarray(df))
    mixture = student_t.to_mixture(num_nodes).log_prob(jnp.asarray(x)[:, None])
    return float(np.mean(stats.t(df).logpdf(x) - np.asarray(mixture)))


def test_oracle_eight_nodes_are_the_student_t(x64):
    assert gap(2.0, 8) < 1.2e-3
    assert abs(gap(3.0, 8)) < 2e-4
    assert abs(gap(5.0, 8)) < 2e-5
    # The control: one Gaussian.
    assert gap(5.0, 1) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_nodes_keep_every_factors_marginal(x64, kind):
    marginal = make(kind, df=12.0).marginal()
    mixture = marginal.to_mixture(16)
    stds = np.sqrt(np.einsum("kij,kij->ki", mixture.chols, mixture.chols))
    weights, loc = np.exp(mixture.log_weights), np.asarray(marginal.loc)
    df = np.repeat(marginal.df, [2, 1]) if kind == "blocks" else np.full(DIM, marginal.df)
    sd = np.sqrt(np.asarray(marginal.scale.diagonal()))
    for p in (0.55, 0.9, 0.99):
        x = loc + sd * stats.t(df).ppf(p)
        found = weights @ stats.norm.cdf((x - loc) / stds)
        np.testing.assert_allclose(found, p, atol=1e-6)


# What a new draw's interval covers


def test_oracle_reference_prior_intervals_cover_what_they_say(x64):
    # With n = N - 1 and l = N the interval rests on a pivot: (theta - mean) / scale is t_{N-1}.
    for num in (3, 5, 10):
        niw = NormalInverseWishart(np.zeros(1), num, num - 1.0, Diagonal(np.ones(1)))
        pivot = np.sqrt((num + 1) / (num * (num - 1)))
        marginal = niw.marginal()
        half = stats.t(float(marginal.df)).ppf(0.95) * np.sqrt(float(marginal.scale.diag[0]))
        assert abs(covered(num, half, pivot) - 0.9) < 1e-10
        # By the mixture too, whose interval is found by bisection.
        assert abs(covered(num, interval(niw.to_mixture()), pivot) - 0.9) < 0.005
        # The control: the mode.
        mode = 1.645 * np.sqrt(float(niw.mode_covariance().diag[0]))
        assert covered(num, mode, pivot) < 0.8


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
        niw = prior.observe(thetas[:, None])
        scales = (niw.mode_covariance(), niw.expected_precision(), niw.marginal().scale)
        return niw.loc[0], jnp.sqrt(jnp.stack([scale.diag[0] for scale in scales]))

    for num, expected in table.items():
        loc, sds = map(np.asarray, widths(jnp.asarray(thetas[:, :num])))
        quantile = np.array([1.645, 1.645, stats.t(num + 1).ppf(0.95)])
        half = quantile * sds
        share = stats.norm.cdf(loc[:, None] + half) - stats.norm.cdf(loc[:, None] - half)
        np.testing.assert_allclose(share.mean(0), expected, atol=0.02)


# NumPyro


@pytest.mark.parametrize("kind", ["full", "diagonal", "low rank"])
def test_oracle_the_marginal_is_the_same_in_numpyro(x64, kind):
    marginal = make(kind).marginal()
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, DIM)))
    np.testing.assert_allclose(marginal.to_numpyro().log_prob(x), marginal.log_prob(x), rtol=1e-11)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_oracle_mu_and_sigma_are_sites_of_a_numpyro_model(x64, key, kind):
    niw = make(kind)
    mu, cov = draw(niw, key)
    value = cov.diag if kind == "diagonal" else cov.dense()

    def model():
        loc, chol = sample_niw("task", niw)
        numpyro.sample("theta", dist.MultivariateNormal(loc, scale_tril=chol), obs=jnp.zeros(DIM))

    found, trace = numpyro.infer.util.log_density(
        model, (), {}, {"task_cov": value, "task_loc": mu}
    )
    np.testing.assert_allclose(trace["theta"]["fn"].covariance_matrix, cov.dense(), atol=1e-12)
    theta = stats.multivariate_normal(mu, np.asarray(cov.dense())).logpdf(np.zeros(DIM))
    np.testing.assert_allclose(found - theta, log_prob(niw, (mu, cov)), rtol=1e-10)


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
