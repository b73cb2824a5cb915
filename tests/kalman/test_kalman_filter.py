"""The loop around every method: streams, compilation, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bayesinf.kalman
from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.kalman import Method, extended, kalman, run, stream, unscented
from bayesinf.kalman.filter import reweighted
from bayesinf.programs import Frame, StateSpace, linear_gaussian, reading

LENGTH, SLOTS = 5, 2


def sensor(state, context):
    return dist.Normal(state[0], context)


MODEL = StateSpace(
    gaussian(jnp.zeros(2), jnp.eye(2)),
    linear_gaussian(jnp.array([[1.0, 1.0], [0.0, 1.0]]), 0.1 * jnp.eye(2)),
    {"place": sensor},
)


def log(missing=()):
    values = np.random.default_rng(0).normal(size=(LENGTH, SLOTS)).astype(np.float32)
    for index in missing:
        values[index] = np.nan
    noise = np.full(values.shape, 0.5, np.float32)
    return Frame(jnp.ones(LENGTH), None, {"place": reading(values, noise)})


def frames_of(log):
    return [jax.tree.map(lambda leaf, t=t: leaf[t], log) for t in range(LENGTH)]


def test_the_package_exports_methods_under_the_names_of_its_files():
    assert set(bayesinf.kalman.__all__) == {
        "Info", "Method", "extended", "gaussian_sum", "kalman", "run", "step", "stream", "unscented"
    }  # fmt: skip
    for method in (extended, kalman, unscented, bayesinf.kalman.gaussian_sum()):
        assert isinstance(method, Method)


@pytest.mark.parametrize("method", [kalman, extended, unscented], ids=["kalman", "ekf", "ukf"])
def test_a_stream_equals_a_run(method):
    frames = log(missing=[(1, 0), (2, 0), (2, 1)])
    beliefs, info = run(method, MODEL, frames)
    streamed = list(stream(method, MODEL, frames_of(frames)))
    assert len(streamed) == LENGTH
    for t, (belief, said) in enumerate(streamed):
        np.testing.assert_allclose(belief.means, beliefs.means[t], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(belief.chols, beliefs.chols[t], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(said.log_evidence, info.log_evidence[t], rtol=1e-5, atol=1e-6)


def test_a_start_other_than_the_models():
    start = gaussian(jnp.array([3.0, 0.0]), 0.1 * jnp.eye(2))
    beliefs, _ = run(extended, MODEL, log(), start)
    moved = StateSpace(start, MODEL.dynamics, MODEL.sensors)
    expected, _ = run(extended, moved, log())
    np.testing.assert_array_equal(beliefs.means, expected.means)
    assert abs(beliefs.means[0, 0, 0] - run(extended, MODEL, log())[0].means[0, 0, 0]) > 1
    streamed, _ = next(stream(extended, MODEL, frames_of(log()), start))
    np.testing.assert_allclose(beliefs.means[0], streamed.means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("belief", "words"),
    [
        (gaussian(jnp.zeros(2), -jnp.eye(2)), "belief.chols: diagonal entry"),
        (gaussian(jnp.array([0, jnp.nan]), jnp.eye(2)), "belief.means: NaN"),
        (GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None]), "belief.log_weights"),
    ],
)
def test_a_bad_belief_is_named(belief, words):
    with pytest.raises(ValueError, match=words):
        run(extended, MODEL, log(), belief)
    with pytest.raises(ValueError, match=words):
        next(stream(extended, MODEL, frames_of(log()), belief))


def test_a_bad_model_is_named():
    model = StateSpace(MODEL.initial, MODEL.dynamics, MODEL.sensors, angles=(5,))
    for call in (lambda: run(extended, model, log()), lambda: next(stream(extended, model, []))):
        with pytest.raises(ValueError, match=r"model.angles: \(5,\) came"):
            call()


def test_weights_survive_masses_beyond_rounding():
    """In single precision, where 1e9 nats swallow any log weight."""
    log_weights = jnp.log(jnp.array([0.7, 0.3, 0.0]))
    belief = GaussianMixture(log_weights, jnp.zeros((3, 1)), jnp.ones((3, 1, 1)))
    masses = jnp.array([-1e9, -1e9, 0.0])
    posterior, info = reweighted(belief, belief.means, belief.chols, masses)
    np.testing.assert_allclose(jnp.exp(posterior.log_weights), [0.7, 0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(info.log_evidence, -1e9)


def test_a_contradiction_leaves_a_distribution():
    readings = {"place": reading([1e7, -1e7], np.full(2, 1e-3))}
    belief = GaussianMixture(
        jnp.log(jnp.array([0.7, 0.3])), jnp.array([[0.0, 0], [1, 0]]), jnp.stack([jnp.eye(2)] * 2)
    )
    for method in (extended, unscented):
        posterior, info = eqx.filter_jit(method.update)(MODEL, belief, readings)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((posterior, info)))
        posterior.check_values("posterior")
