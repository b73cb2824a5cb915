"""Particles and enumerated measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.distributions import Enumerated, Particles, uniform_particles


@pytest.fixture
def particles():
    log_weights = jnp.log(jnp.array([0.2, 0.0, 0.8]))
    return Particles(jnp.array([1.0, jnp.inf, 3.0]), log_weights, jnp.log(2.0), jnp.array(0.5))


def test_exact_moments(particles):
    """A particle without weight counts nothing, wherever it lies."""
    assert particles.mean() == pytest.approx(2.6)
    assert particles.expectation(lambda x: x) == pytest.approx(5.2)
    assert particles.ess() == pytest.approx(1 / (0.04 + 0.64))


def test_draws_follow_the_weights(particles, key):
    draws = particles.sample(key, (4000,))
    assert set(np.unique(draws)) == {1.0, 3.0}
    assert np.mean(draws == 1.0) == pytest.approx(0.2, abs=5 * np.sqrt(0.16 / 4000))


def test_uniform_particles():
    made = uniform_particles({"a": jnp.zeros((4, 2)), "b": jnp.zeros(4)})
    assert made.num_particles == 4
    assert made.ess() == pytest.approx(4)
    with pytest.raises(ValueError, match="one leading axis"):
        uniform_particles({"a": jnp.zeros(4), "b": jnp.zeros(3)})


def test_exact_enumerated(key):
    """Densities, moments and draws of a measure on three points."""
    support = {"x": jnp.array([0, 1, 2]), "y": jnp.array([[0.0, 1], [1, 1], [2, 1]])}
    measure = Enumerated(support, jnp.log(jnp.array([1.0, 0.0, 3.0])))
    assert measure.log_evidence == pytest.approx(np.log(4))
    point = {"x": jnp.array(2), "y": jnp.array([2.0, 1.0])}
    assert measure.log_prob(point) == pytest.approx(np.log(0.75))
    assert measure.log_prob({**point, "x": jnp.array(1)}) == -jnp.inf
    assert measure.mean(lambda p: p["x"]) == pytest.approx(1.5)
    draws = jax.jit(lambda key: measure.sample(key, (500,)))(key)
    assert set(np.unique(draws["x"])) == {0, 2}
