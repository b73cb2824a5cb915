"""The second look: what is left between an update and its target."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf.distributions.gmm import gaussian
from bayesinf.kalman import extended
from bayesinf.programs import Reading, StateSpace, linear_gaussian
from bayesinf.transformers_gmm.look import look, look_features, look_size

DIM = 3


def setting(seed, mask):
    """Returns a linear-Gaussian model, a prior and readings of it."""
    rng = np.random.default_rng(seed)
    chol = np.tril(0.3 * rng.normal(size=(DIM, DIM)), -1) + np.diag(rng.uniform(0.5, 2, DIM))
    prior = gaussian(jnp.asarray(rng.normal(size=DIM)), jnp.asarray(chol))

    def sensor(state, row):
        return dist.Normal(row @ state, 0.6)

    move = linear_gaussian(jnp.eye(DIM), jnp.eye(DIM))
    model = StateSpace(prior, move, {"row": sensor})
    rows = jnp.asarray(rng.normal(size=(2, DIM)))
    readings = {"row": Reading(jnp.asarray(rng.normal(size=2)), rows, jnp.asarray(mask))}
    return model, prior, readings


def seen(model, prior, readings, mean, chol):
    return look(model, readings, prior.means[0], prior.chols[0], mean, chol)


@pytest.mark.parametrize("mask", [[True, True], [True, False], [False, False]])
@pytest.mark.parametrize("seed", [0, 1])
def test_oracle_nothing_is_left_after_an_exact_update(x64, seed, mask):
    model, prior, readings = setting(seed, mask)
    posterior, info = extended.update(model, prior, readings)
    left = seen(model, prior, readings, posterior.means[0], posterior.chols[0])
    for part in (left.slope, left.even, left.odd):
        np.testing.assert_allclose(part, 0, atol=1e-10)
    np.testing.assert_allclose(left.log_mass, info.log_evidence, atol=1e-10)


def test_oracle_a_wrong_update_is_seen(x64):
    """The control: an update that is half a standard deviation off, and too wide by a fifth."""
    model, prior, readings = setting(0, [True, True])
    posterior, _ = extended.update(model, prior, readings)
    mean, chol = posterior.means[0], posterior.chols[0]
    left = seen(model, prior, readings, mean + 0.5 * chol[:, 0], chol)
    np.testing.assert_allclose(left.slope, [-0.5, 0, 0], atol=1e-10)
    left = seen(model, prior, readings, mean, 1.2 * chol)
    # Along each axis sqrt(3) away the target has fallen by 1.2^2 3 / 2, the update by 3 / 2.
    np.testing.assert_allclose(left.even, 1.5 * (1 - 1.44), atol=1e-10)


def test_features_are_finite_where_a_density_is_not():
    def sensor(state, context):
        return dist.Exponential(state[0] + context)

    prior = gaussian(jnp.zeros(2), jnp.eye(2))
    model = StateSpace(prior, linear_gaussian(jnp.eye(2), jnp.eye(2)), {"wait": sensor})
    readings = {"wait": Reading(jnp.array([1e30]), jnp.array([-1.0]), jnp.array([True]))}
    left = look(model, readings, jnp.zeros(2), jnp.eye(2), jnp.zeros(2), jnp.eye(2))
    looks = jax.tree.map(lambda leaf: leaf[None], left)
    features = look_features(jnp.zeros(1), jnp.zeros(1), looks)
    assert features.shape == (1, look_size(2))
    assert np.isfinite(features).all()
