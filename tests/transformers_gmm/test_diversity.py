"""Components that stay apart: what it changes of a belief, and what becomes of a filter without."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.fusion import range_bearing
from bayesinf.kalman import extended, filter
from bayesinf.programs import Frame, Reading, StateSpace, linear_gaussian
from bayesinf.programs.simulate import simulate
from bayesinf.transformers_gmm import DistributionTransformer, as_method, diversified
from bayesinf.transformers_gmm.diversity import parted

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIM = 3


def belief(num_components):
    """Returns components of different weights, places and shapes."""
    rng = np.random.default_rng(0)
    chols = np.tril(0.3 * rng.normal(size=(num_components, DIM, DIM)), -1)
    chols = chols + np.eye(DIM) * rng.uniform(0.5, 2, (num_components, DIM, 1))
    weights = jax.nn.log_softmax(jnp.asarray(rng.normal(size=num_components)))
    means = jnp.asarray(rng.normal(size=(num_components, DIM)))
    return GaussianMixture(weights, means, jnp.asarray(chols))


def model_of(sensor):
    return StateSpace(
        gaussian(jnp.zeros(DIM), jnp.eye(DIM)),
        linear_gaussian(jnp.eye(DIM), jnp.eye(DIM)),
        {"sensor": sensor},
    )


def read(value, mask=True):
    return {"sensor": Reading(jnp.asarray([value]), None, jnp.asarray([mask]))}


def linear(state, context):
    del context
    return dist.Normal(state[0] - state[2], 0.5)


def curved(state, context):
    del context
    return dist.Normal(jnp.sqrt(jnp.sum(state**2)), 0.5)


@partial(jax.jit, static_argnums=(0, 3))
def part(sensor, prior, readings, num_splits):
    return parted(model_of(sensor), prior, readings, num_splits)


@jax.jit
def moments(mixture):
    return mixture.mean(), mixture.covariance()


@pytest.mark.parametrize(("num_components", "num_splits"), [(2, 1), (5, 1), (6, 2), (8, 4), (3, 9)])
def test_oracle_parting_preserves_mean_and_covariance(x64, num_components, num_splits):
    prior = belief(num_components)
    new = part(curved, prior, read(1.0), num_splits)
    assert new.means.shape == prior.means.shape
    assert np.abs(new.means - prior.means).max() > 0.1
    np.testing.assert_allclose(jnp.exp(new.log_weights).sum(), 1, atol=1e-12)
    mean, covariance = moments(prior)
    new_mean, new_covariance = moments(new)
    np.testing.assert_allclose(new_mean, mean, atol=1e-12)
    np.testing.assert_allclose(new_covariance, covariance, atol=1e-12)
    # The control: halves that are moved apart and not narrowed.
    wide = GaussianMixture(new.log_weights, new.means, prior.chols)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(moments(wide)[1], covariance, atol=1e-12)


@pytest.mark.parametrize("case", ["linear", "missing", "no sensor", "one component"])
def test_exact_nothing_is_parted_where_an_update_is_exact(x64, case):
    sensor = linear if case == "linear" else curved
    prior = belief(1 if case == "one component" else 4)
    readings = {} if case == "no sensor" else read(1.0, case != "missing")
    new = part(sensor, prior, readings, 1)
    for leaf, old in zip(jax.tree.leaves(new), jax.tree.leaves(prior), strict=True):
        np.testing.assert_array_equal(leaf, old)


def test_empty_slots_are_filled_and_stay_finite(x64):
    prior = belief(4)
    weights = prior.log_weights.at[1:].set(-jnp.inf).at[0].set(0.0)
    new = part(curved, GaussianMixture(weights, prior.means, prior.chols), read(1.0), 1)
    assert np.isfinite(new.means).all()
    assert np.isfinite(new.chols).all()
    np.testing.assert_allclose(np.sort(np.exp(new.log_weights)), [0, 0, 0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(new.mean(), prior.means[0], atol=1e-12)


@jax.jit
def apart(mixture):
    """Returns how much of the covariance lies between the components, from 0 to 1."""
    gaps = mixture.means - mixture.mean()
    between = (gaps * jnp.exp(mixture.log_weights)[:, None]).T @ gaps
    return jnp.trace(jnp.linalg.solve(mixture.covariance(), between)) / mixture.dim


def test_components_stay_apart_and_run_together_without(x64):
    model = range_bearing.model()
    _, frames = jax.jit(partial(simulate, model=model, frames=range_bearing.empty_frames(60)))(
        jax.random.key(0)
    )
    start = range_bearing.initial(4)
    shares = [
        float(
            apart(jax.tree.map(lambda leaf: leaf[-1], filter.run(method, model, frames, start)[0]))
        )
        for method in (diversified(extended), extended)
    ]
    assert shares[0] > 0.02
    assert shares[1] < 1e-3


@pytest.mark.parametrize("num_splits", [0, 1])
def test_a_network_brings_the_loop_it_was_trained_in(num_splits):
    sensors = ("sensor",)
    dt = DistributionTransformer(jax.random.key(0), DIM, sensors, width=8, num_splits=num_splits)
    model, prior = model_of(curved), belief(4)
    frame = Frame(jnp.ones(()), None, read(1.0))
    predicted, plain = (
        eqx.filter_jit(method.predict)(model, prior, frame) for method in (as_method(dt), extended)
    )
    changed = np.abs(predicted.means - plain.means).max() > 0.1
    assert changed == (num_splits > 0)


def test_a_number_of_splits_below_one_is_refused():
    with pytest.raises(ValueError, match="num_splits: 0 came, at least 1 was expected"):
        diversified(extended, 0)
    with pytest.raises(ValueError, match="num_splits: -1 came, at least 0 was expected"):
        DistributionTransformer(jax.random.key(0), DIM, ("sensor",), num_splits=-1)
