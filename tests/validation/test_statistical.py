"""The statistical checks themselves: what is right passes, what is broken is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.validation.sbc import sbc
from bayesinf.validation.statistical import geweke, invariance, sequential, unbiased

# A conjugate problem, asymmetric: theta ~ N(0, 1), y ~ N(theta, 1/2).
VARIANCE = 1 / 3


def prior(key):
    return jax.random.normal(key)


def simulate(key, theta):
    return theta + jnp.sqrt(0.5) * jax.random.normal(key)


def posterior_mean(y):
    return 2 * y / 3


def exact_move(key, theta, y):
    """An autoregressive move that leaves the posterior invariant."""
    mean = posterior_mean(y)
    return mean + 0.8 * (theta - mean) + 0.6 * jnp.sqrt(VARIANCE) * jax.random.normal(key)


def forgetful_move(key, theta, y):
    """The same with the data counted twice."""
    mean = 4 * y / 5
    return mean + 0.8 * (theta - mean) + 0.6 * jnp.sqrt(0.2) * jax.random.normal(key)


def loose_move(key, theta, y):
    """The same with noise that is a third too large."""
    mean = posterior_mean(y)
    return mean + 0.8 * (theta - mean) + 0.8 * jnp.sqrt(VARIANCE) * jax.random.normal(key)


def moments(theta, y):
    return jnp.stack([theta, theta**2, theta * y, jnp.cos(theta + y)])


MOVES = [(exact_move, True), (forgetful_move, False), (loose_move, False)]


@pytest.mark.parametrize(("move", "right"), MOVES)
def test_stat_invariance(key, move, right):
    """From an exact start; the broken moves are found."""

    def draw(key):
        prior_key, data_key = jax.random.split(key)
        theta = prior(prior_key)
        return theta, simulate(data_key, theta)

    found = invariance(
        key,
        draw,
        lambda key, joint: (move(key, *joint), joint[1]),
        lambda joint: moments(*joint),
        num_runs=16_384,
    )
    assert found.holds == right
    assert np.all(found.detectable < 0.1)


@pytest.mark.parametrize(("move", "right"), MOVES)
def test_stat_geweke(key, move, right):
    """The joint law survives moves and fresh data; the broken moves are found."""
    found = geweke(key, prior, simulate, move, moments, 32, num_runs=32_768)
    assert found.holds == right


@pytest.mark.parametrize(("move", "right"), MOVES)
def test_stat_sbc(key, move, right):
    """Ranks under draws of the right posterior are uniform, under a broken one they are not."""

    def posterior(key, y):
        start_key, *keys = jax.random.split(key, 20)
        theta = posterior_mean(y) + jnp.sqrt(VARIANCE) * jax.random.normal(start_key)

        def thinned(theta, key):
            steps = jax.random.split(key, 30)
            theta = jax.lax.scan(lambda t, k: (move(k, t, y), None), theta, steps)[0]
            return theta, theta

        return jax.lax.scan(thinned, theta, jnp.stack(keys))[1]

    found = sbc(key, prior, simulate, posterior, lambda t, y: jnp.stack([t, t * y]), 4096)
    assert found.ranks.min() >= 0
    assert found.ranks.max() <= found.num_draws
    # Five tests at 1e-6.
    assert (np.abs(found.z()).max() < 5.3 and found.p_values().min() > 2e-7) == right


@pytest.mark.parametrize(("scale", "right"), [(1.0, True), (1.02, False)])
def test_stat_unbiased(key, scale, right):
    """A log-normal estimate of one, and one that is two percent off."""

    def estimate(key):
        return scale * jnp.exp(0.3 * jax.random.normal(key) - 0.045)

    found = unbiased(key, estimate, 1.0, num_runs=65_536)
    assert found.holds == right
    assert sequential(key, estimate, 1.0).rejected != right


def test_stat_mean_of_logs_is_biased(key):
    """On the log scale Jensen's bias shows, which is why estimates stay on their own."""
    found = unbiased(key, lambda key: 0.3 * jax.random.normal(key) - 0.045, 0.0, 16_384)
    assert not found.holds


def test_what_does_not_vary():
    """A constant is right, or wrong without doubt."""
    key = jax.random.key(0)
    assert unbiased(key, lambda key: jnp.ones(2), np.ones(2), 64).holds
    assert not unbiased(key, lambda key: jnp.ones(2), np.array([1, 1.01]), 64).holds


def test_bad_estimates_are_named(key):
    """Shapes, numbers of runs, and NaN."""
    with pytest.raises(ValueError, match="shapes"):
        unbiased(key, lambda key: jnp.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="num_runs"):
        unbiased(key, lambda key: jnp.ones(2), np.ones(2), 700)
    with pytest.raises(ValueError, match="NaN"):
        unbiased(key, lambda key: jnp.full(2, jnp.nan), np.ones(2), 64)
