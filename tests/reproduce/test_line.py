"""Quadrature on the line, what a mixture leaves of a density, and the rivals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln

from bayesinf.distributions import GaussianMixture
from bayesinf.reproduce import line
from bayesinf.reproduce.rivals import HistogramNetwork, mixture_vi
from bayesinf.transformers_gmm.jets import Basis, laplace

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def bent(u):
    """The log of an inverse gamma's log, up to a constant, shifted and scaled."""
    z = (u - 3) / 2
    return -2.5 * z - 1.5 * jnp.exp(-z)


def basis_of_bent():
    return laplace(bent, Basis(jnp.array([2.0]), jnp.array([[1.0]])))


def two():
    means, chols = jnp.array([[-1.0], [1.5]]), jnp.array([[[0.5]], [[0.8]]])
    return GaussianMixture(jnp.log(jnp.array([0.3, 0.7])), means, chols)


def test_oracle_quadrature_has_the_evidence_and_the_moments():
    found = line.on_nodes(bent, basis_of_bent(), -8.0, 40.0, 400)
    exact = gammaln(2.5) - 2.5 * jnp.log(1.5) + jnp.log(2)
    np.testing.assert_allclose(found.log_evidence, exact, atol=1e-12)
    mean = 3 + 2 * (jnp.log(1.5) - jax.scipy.special.digamma(2.5))
    np.testing.assert_allclose(found.expect(found.nodes), mean, atol=1e-10)
    # Negative control: where the nodes end before the density does, the evidence is short.
    short = line.on_nodes(bent, basis_of_bent(), -8.0, 2.0, 400)
    assert short.log_evidence < exact - 1e-3


def test_oracle_entropy_and_divergence_of_normals():
    basis = Basis(jnp.array([1.0]), jnp.array([[2.0]]))
    found = line.on_nodes(lambda x: -0.5 * ((x - 1) / 2) ** 2, basis, -12.0, 12.0, 300)
    np.testing.assert_allclose(found.entropy(), 0.5 * np.log(2 * np.pi * np.e * 4), atol=1e-12)
    other = GaussianMixture(jnp.zeros(1), jnp.array([[0.0]]), jnp.array([[[3.0]]]))
    exact = np.log(3 / 2) + (4 + 1) / 18 - 0.5
    log_q = line.mixture_log_prob(other, found.nodes)
    np.testing.assert_allclose(found.kl(log_q), exact, atol=1e-12)
    each = jax.vmap(lambda x: other.log_prob(x[None]))(found.nodes)
    np.testing.assert_allclose(log_q, each, atol=1e-12)


def test_oracle_the_best_mixture_of_a_mixture_is_itself():
    right = two()
    basis = Basis(jnp.zeros(1), jnp.ones((1, 1)))
    log_prob = lambda x: line.mixture_log_prob(right, x[None])[0]  # noqa: E731
    density = line.on_nodes(log_prob, basis, -8.0, 10.0, 400)
    start = GaussianMixture(jnp.log(jnp.array([0.5, 0.5])), right.means + 0.3, 1.2 * right.chols)
    before = density.kl(line.mixture_log_prob(start, density.nodes))
    found, kl = line.best_mixture(density, start)
    assert before > 0.02
    assert abs(kl) < 1e-8
    np.testing.assert_allclose(found.means, right.means, atol=1e-3)


def test_a_histogram_is_normalised_and_ends(key):
    network = HistogramNetwork(key, 2, -4.0, 6.0, 50, 8)
    middles = -4 + 0.2 * (jnp.arange(50) + 0.5)
    log_prob = network.log_prob(jnp.array([0.3, -1.0]), middles)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_prob)) * 0.2, 1, rtol=1e-6)
    outside = network.log_prob(jnp.zeros(2), jnp.array([-4.1, 6.1]))
    assert jnp.all(jnp.isneginf(outside))


def test_oracle_variational_inference_finds_a_normal(key):
    """One component where the density is normal has nothing left to lose."""
    basis = Basis(jnp.array([0.0]), jnp.array([[1.0]]))
    found = mixture_vi(key, lambda x: -0.5 * ((x - 1) / 0.4) ** 2, basis, 1)
    np.testing.assert_allclose(found.means[0, 0], 1, atol=1e-3)
    np.testing.assert_allclose(found.chols[0, 0, 0], 0.4, rtol=1e-3)


def test_more_components_fit_a_bent_density_better(key):
    basis = basis_of_bent()
    density = line.on_nodes(bent, basis, -8.0, 40.0, 400)
    one, three = (
        density.kl(line.mixture_log_prob(mixture_vi(key, bent, basis, k), density.nodes))
        for k in (1, 3)
    )
    assert three < one / 4
