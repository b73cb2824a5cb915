"""Priors of any kind: the fit's error is told, and what comes back is right on their space."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.transformers_gmm.prior import (
    Constrained,
    Space,
    from_log_density,
    from_mixture,
    from_numpyro,
    from_samples,
)

POSITIVE = Space(constraints.positive, ())


def log_normal(loc, scale):
    return Constrained(gaussian(jnp.array([loc]), jnp.array([[scale]])), POSITIVE)


def two_modes():
    means = jnp.array([[-2.0], [0.5]])
    return GaussianMixture(jnp.log(jnp.array([0.3, 0.7])), means, jnp.full((2, 1, 1), 0.4))


def test_oracle_a_log_normal_is_read_as_one(x64):
    value, exact = log_normal(0.3, 0.5), dist.LogNormal(0.3, 0.5)
    x = jnp.array([[0.2, 1.0], [3.0, 40.0]])
    np.testing.assert_allclose(value.log_prob(x), exact.log_prob(x), rtol=1e-12)
    np.testing.assert_allclose(value.mean(), exact.mean, rtol=1e-12)
    np.testing.assert_allclose(value.variance(), exact.variance, rtol=1e-10)
    np.testing.assert_allclose(value.quantile(0.1), exact.icdf(0.1), rtol=1e-12)
    assert value.log_prob(jnp.array(-1.0)) == -jnp.inf


def mass(log_prob):
    """Returns the integral of a density on (0, 1) by the midpoint rule."""
    x = (jnp.arange(20_000) + 0.5) / 20_000
    return float(jnp.mean(jnp.exp(log_prob(x))))


def test_oracle_the_density_of_two_modes_integrates_to_one(x64):
    value = Constrained(two_modes(), Space(constraints.unit_interval, ()))
    assert abs(mass(value.log_prob) - 1) < 1e-8

    def without_jacobian(x):
        return value.mixture.log_prob(jnp.log(x / (1 - x))[:, None])

    # Negative control.
    assert abs(mass(without_jacobian) - 1) > 0.1


def test_oracle_quantiles_of_two_modes_have_their_probability(x64):
    value = Constrained(two_modes(), POSITIVE)
    for p in (0.05, 0.3, 0.9):
        u = jnp.log(value.quantile(p))
        below = np.exp(value.mixture.log_weights) @ stats.norm.cdf(
            (float(u) - value.mixture.means[:, 0]) / 0.4
        )
        assert abs(below - p) < 1e-12


def test_oracle_an_axis_that_is_turned_around_has_its_quantiles_too(x64):
    space = Space(constraints.less_than(2.0), ())
    value = Constrained(gaussian(jnp.zeros(1), jnp.ones((1, 1))), space)
    # 2 - value is log-normal.
    np.testing.assert_allclose(value.quantile(0.1), 2 - dist.LogNormal(0, 1).icdf(0.9), rtol=1e-12)


def test_draws_have_the_density_that_is_told(key):
    value = log_normal(0.3, 0.5)
    draws = value.sample(key, (50, 40))
    assert draws.shape == (50, 40)
    assert stats.kstest(np.ravel(draws), stats.lognorm(0.5, scale=np.exp(0.3)).cdf).pvalue > 1e-4


def test_oracle_the_kl_of_a_fit_is_that_of_quadrature(x64, key):
    exact = dist.InverseGamma(3.0, 2.0)
    with pytest.warns(UserWarning, match=r"prior: KL 0\.0\d+ .* at most 0\.001 was expected"):
        prior = from_numpyro(key, exact, 1, num_samples=10_000, bound=1e-3)
    u = jnp.linspace(-6, 12, 4001)
    log_p = exact.log_prob(jnp.exp(u)) + u
    gaps = log_p - prior.mixture.log_prob(u[:, None])
    kl = jnp.sum(jnp.exp(log_p) * gaps) * (u[1] - u[0])
    assert abs(prior.info.kl - kl) < 4 * prior.info.standard_error
    # Negative control: a fit that claims no error is found out.
    assert abs(0 - kl) > 4 * prior.info.standard_error
    # The posterior without data is the prior.
    posterior = prior.constrain(prior.mixture)
    assert abs(posterior.mean() - exact.mean) < 0.05


def test_exact_a_mixture_goes_through_as_it_is(key):
    prior = from_numpyro(key, two_modes().to_numpyro(), 7)
    assert prior.info.kl == 0
    np.testing.assert_array_equal(prior.mixture.means, two_modes().means)
    assert from_mixture(two_modes()).space.shape == (1,)


def test_oracle_a_dirichlet_comes_back_on_the_simplex(key):
    exact = dist.Dirichlet(jnp.array([2.0, 3.0, 4.0]))
    prior = from_numpyro(key, exact, 2, num_samples=1000)
    value = prior.constrain(prior.mixture)
    assert value.mixture.dim == 2
    assert value.sample(key, (5,)).shape == (5, 3)
    # Three times the standard error of a mean over the draws that were fitted, rounded up.
    np.testing.assert_allclose(value.mean(), exact.mean, atol=0.02)
    np.testing.assert_allclose(value.quantile(0.5), [0.202, 0.321, 0.440], atol=0.03)


def test_oracle_an_unnormalised_density_is_fitted_on_its_space(key):
    # Gamma(4, 2), up to a constant.
    start = GaussianMixture(
        jnp.log(jnp.full(2, 0.5)), jnp.array([[0.0], [1.0]]), jnp.ones((2, 1, 1))
    )
    prior = from_log_density(key, lambda x: 3 * jnp.log(x) - 2 * x, start, constraints.positive, ())
    assert abs(prior.info.kl) < 0.01
    assert abs(prior.constrain(prior.mixture).mean() - 2) < 0.05


def test_oracle_weighted_samples_stand_for_what_they_are_weighted_to(key):
    # Draws of Gamma(2, 1) with weights x are draws of Gamma(3, 1).
    samples = jax.random.gamma(key, 2.0, (1000,))
    prior = from_samples(key, samples, 2, jnp.log(samples), constraints.positive, bound=0.1)
    assert abs(prior.constrain(prior.mixture).mean() - 3) < 0.3
    # Negative control.
    flat = from_samples(key, samples, 2, None, constraints.positive, bound=0.1)
    assert abs(flat.constrain(flat.mixture).mean() - 3) > 0.5


NORMAL = gaussian(jnp.zeros(1), jnp.ones((1, 1)))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda key: from_numpyro(key, 3.0, 2), "distribution: float came"),
        (lambda key: from_numpyro(key, dist.Poisson(2.0), 2), "Poisson is discrete"),
        (
            lambda key: from_numpyro(key, dist.Gamma(jnp.ones(2)), 2),
            r"Gamma of batch shape \(2,\) came",
        ),
        (
            lambda key: from_numpyro(key, dist.HalfCauchy(1e38), 2),
            "draws of HalfCauchy on the boundary",
        ),
        (lambda key: from_samples(key, jnp.ones(3), 2), r"samples: shape \(3,\) came"),
        (
            lambda key: from_samples(key, -jnp.ones(3), 2, support=constraints.positive),
            "samples: 3 outside",
        ),
        (
            lambda key: from_log_density(key, jnp.sum, NORMAL, constraints.positive),
            "support, shape",
        ),
        (
            lambda key: from_log_density(key, jnp.sum, NORMAL, constraints.simplex, (3,)),
            "start: dimension 1 came, 2 was expected",
        ),
        (
            lambda key: from_log_density(key, jnp.sum, NORMAL, constraints.boolean, ()),
            "support: .* with a bijector was expected",
        ),
        (lambda key: log_normal(0.0, 1.0).quantile(1.0), "p: 1.0 came"),
        (
            lambda key: Constrained(NORMAL, Space(constraints.simplex, (3,))),
            "mixture: dimension 1 came, 2 was expected",
        ),
        (
            lambda key: Constrained(NORMAL, Space(constraints.real_vector, (1,))).log_prob(
                jnp.ones(3)
            ),
            r"value: shape \(3,\) came",
        ),
    ],
)
def test_bad_input_is_named(key, call, line):
    with pytest.raises(ValueError, match=line):
        call(key)
