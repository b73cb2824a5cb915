import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

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


log_prob = jax.jit(GaussianMixture.log_prob)

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
    x = jax.random.normal(jax.random.key(0), (5, *distribution.event_shape))
    theirs = jax.jit(lambda x: distribution.log_prob(x))(x)
    np.testing.assert_allclose(log_prob(ours, x.reshape(5, -1)), theirs, rtol=1e-5)


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


def test_oracle_a_mixture_is_a_prior_of_a_model(x64):
    """The log density of a model and its gradient, which an empty slot must not make NaN."""
    prior = mixture(empty=True)

    def model(y):
        x = numpyro.sample("x", prior.to_numpyro())
        numpyro.sample("y", dist.Normal(x[0] + x[1], 0.5), obs=y)

    def modelled(x):
        return log_density(model, (2.0,), {}, {"x": x})[0]

    def direct(x):
        first = jax.scipy.stats.multivariate_normal.logpdf(
            x, prior.means[0], prior.chols[0] @ prior.chols[0].T
        )
        return first + jax.scipy.stats.norm.logpdf(2.0, x[0] + x[1], 0.5)

    x = jnp.array([0.5, -0.3])
    value, gradient = jax.jit(jax.value_and_grad(modelled))(x)
    expected, expected_gradient = jax.jit(jax.value_and_grad(direct))(x)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10)
    draws = Predictive(model, num_samples=3)(jax.random.key(0), 2.0)["x"]
    assert draws.shape == (3, 2)


@jax.jit
def wrapped_log_prob(scale, angles):
    """Returns log densities at `angles` and their slopes in the scale."""
    one = jax.value_and_grad(lambda scale, angle: WrappedNormal(3.0, scale).log_prob(angle))
    return jax.vmap(one, in_axes=(None, 0))(scale, angles)


@pytest.mark.parametrize("scale", [0.1, 1.0, 1.99, 2.01, 10.0])
def test_oracle_wrapped_normal(x64, scale):
    """Integrates to one, with circular mean `exp(-scale^2 / 2)`, by the periodic rectangle rule."""
    n = 1_000
    angles = jnp.arange(n) * 2 * jnp.pi / n - jnp.pi

    def integrals(log_probs):
        mass = jnp.exp(log_probs) * 2 * jnp.pi / n
        return np.array([mass.sum(), mass @ jnp.cos(angles - 3.0), mass @ jnp.sin(angles - 3.0)])

    expected = [1, np.exp(-(scale**2) / 2), 0]
    log_probs, slopes = wrapped_log_prob(scale, angles)
    np.testing.assert_allclose(integrals(log_probs), expected, atol=1e-12)
    on_the_line = dist.Normal(3.0, scale).log_prob(angles)
    with pytest.raises(AssertionError):  # negative control
        np.testing.assert_allclose(integrals(on_the_line), expected, atol=1e-12)
    turned, _ = wrapped_log_prob(scale, angles + 2 * jnp.pi)
    np.testing.assert_allclose(log_probs, turned, atol=1e-9)
    assert jnp.isfinite(slopes).all()


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
