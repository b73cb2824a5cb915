import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

from bayesinf.distributions import GaussianMixture, WrappedNormal, wrap


def mixture(empty=False):
    log_weights = jnp.array([0.0, -jnp.inf]) if empty else jnp.log(jnp.array([0.3, 0.7]))
    means = jnp.array([[0.0, 1.0], [2.0, -1.0]])
    chols = jnp.array([[[1.0, 0.0], [0.5, 2.0]], [[0.5, 0.0], [0.0, 1.0]]])
    return GaussianMixture(log_weights, means, chols)


@pytest.mark.parametrize("empty", [False, True])
def test_oracle_there_and_back(x64, empty):
    ours = mixture(empty)
    back = GaussianMixture.from_numpyro(ours.to_numpyro())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


GAUSSIANS = [
    dist.Normal(0.5, 2.0),
    dist.Normal(jnp.zeros(2), jnp.array([1.0, 2.0])).to_event(1),
    dist.Normal(0.0, 2.0).expand([2]).to_event(1),
    dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.5], [0.5, 1.0]])),
]
COMPONENTS = [
    dist.Normal(jnp.arange(2.0), 1.0),
    dist.Normal(jnp.zeros((2, 3)), jnp.arange(1.0, 4.0)).to_event(1),
    dist.MultivariateNormal(jnp.arange(6.0).reshape(2, 3), jnp.eye(3)),
    dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)).expand([2]),
]


@pytest.mark.parametrize(
    "distribution",
    GAUSSIANS
    + [dist.MixtureSameFamily(dist.Categorical(jnp.array([0.2, 0.8])), c) for c in COMPONENTS],
)
def test_oracle_what_denotes_a_mixture_becomes_one(distribution):
    ours = GaussianMixture.from_numpyro(distribution)
    x = distribution.sample(jax.random.key(0), (5,))
    ours_log_prob = ours.log_prob(x.reshape(5, -1))
    np.testing.assert_allclose(ours_log_prob, distribution.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("distribution", "match"),
    [
        (dist.Gamma(1.0), "distribution: Gamma .* came"),
        (dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2), r"Normal with event shape \(2, 2\)"),
        (dist.Normal(jnp.zeros(2), 1.0), r"batch shape \(2,\) came"),
        (
            dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Gamma(jnp.ones(2))),
            "distribution: Gamma .* came",
        ),
        (dist.Normal(jnp.nan, 1.0, validate_args=False), r"distribution\.means: NaN"),
    ],
)
def test_what_does_not_is_named(distribution, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture.from_numpyro(distribution)


def test_stat_a_mixture_is_a_prior_for_mcmc():
    """The posterior mean of NUTS against the exact update; false alarm at 5 sigma below 1e-5.

    The standard error comes from the means of 20 batches of draws.
    """
    prior = mixture(empty=True)  # an empty slot's gradient must not become NaN

    def model(y):
        x = numpyro.sample("x", prior.to_numpyro())
        numpyro.sample("y", dist.Normal(x[0] + x[1], 0.5), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=2_000, progress_bar=False)
    mcmc.run(jax.random.key(0), 2.0)
    means = mcmc.get_samples()["x"].reshape(20, 100, 2).mean(1)
    posterior, _ = prior.update(jnp.ones((1, 2)), jnp.array([2.0]), jnp.array([[0.5]]))

    def largest_z(expected):
        return jnp.abs((means.mean(0) - expected) / (means.std(0, ddof=1) / np.sqrt(20))).max()

    assert largest_z(posterior.mean()) < 5
    assert largest_z(prior.mean()) > 5  # negative control


@pytest.mark.parametrize("scale", [0.1, 1.0, 1.99, 2.01, 10.0])
def test_oracle_wrapped_normal(x64, scale):
    """Integrates to one, with circular mean `exp(-scale^2 / 2)`, by the periodic rectangle rule."""
    n = 1_000
    angles = jnp.arange(n) * 2 * jnp.pi / n - jnp.pi
    wrapped = WrappedNormal(3.0, scale)

    def integrals(distribution):
        mass = jnp.exp(distribution.log_prob(angles)) * 2 * jnp.pi / n
        return np.array([mass.sum(), mass @ jnp.cos(angles - 3.0), mass @ jnp.sin(angles - 3.0)])

    expected = [1, np.exp(-(scale**2) / 2), 0]
    np.testing.assert_allclose(integrals(wrapped), expected, atol=1e-12)
    with pytest.raises(AssertionError):  # negative control: on the line
        np.testing.assert_allclose(integrals(dist.Normal(3.0, scale)), expected, atol=1e-12)
    turned = wrapped.log_prob(angles + 2 * jnp.pi)
    np.testing.assert_allclose(wrapped.log_prob(angles), turned, atol=1e-9)
    assert jnp.isfinite(jax.grad(lambda s: WrappedNormal(3.0, s).log_prob(0.0))(scale))


def test_stat_wrapped_normal_sample(key):
    """The circular mean of draws against its law; false alarm at 4 sigma 6e-5."""
    draws = WrappedNormal(3.0, 1.0).sample(key, (10_000,))
    assert ((draws >= -jnp.pi) & (draws < jnp.pi)).all()
    cosines = jnp.cos(draws - 3.0)
    standard_error = cosines.std() / 100
    assert abs(cosines.mean() - np.exp(-0.5)) < 4 * standard_error
    assert abs(cosines.mean() - np.exp(-0.25)) > 4 * standard_error  # a scale that is off


def test_wrap_takes_an_angle_into_one_turn():
    angles = jnp.array([0.0, 4.0, -4.0, jnp.pi, -jnp.pi])
    expected = [0.0, 4 - 2 * np.pi, 2 * np.pi - 4, -np.pi, -np.pi]
    np.testing.assert_allclose(wrap(angles), expected, atol=1e-6)


def test_distributions_import_without_numpyro():
    code = "import sys, bayesinf.distributions; sys.exit('numpyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
