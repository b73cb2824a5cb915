"""State-space models: what the door for readings repairs and refuses, and the log likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.kalman import extended, run
from bayesinf.programs import Frame, Reading, StateSpace, linear_gaussian, reading
from bayesinf.types import checked


def level(state, context):
    return dist.Normal(state[0], context["noise"])


def size(state, context):
    return dist.LogNormal(state[1], 0.5)


def model(**changes):
    fields = {
        "initial": gaussian(jnp.zeros(2), jnp.eye(2)),
        "dynamics": linear_gaussian(jnp.eye(2), jnp.eye(2)),
        "sensors": {"level": level, "size": size},
    }
    return StateSpace(**(fields | changes))


def test_nan_becomes_a_mask_and_a_copy_of_a_reading_that_is_there():
    made = reading(
        [jnp.nan, 2.0, 3.0], {"noise": np.array([np.nan, 0.5, 1.0])}, [True, True, False]
    )
    assert made.mask.tolist() == [False, True, False]
    assert made.value.tolist() == [2.0, 2.0, 2.0]
    assert made.context["noise"].tolist() == [0.5, 0.5, 0.5]


def test_a_reading_of_several_numbers_is_missing_as_a_whole():
    made = reading([[[1.0, np.nan], [3.0, 4.0]], [[5.0, 6.0], [7.0, np.inf]]], event_ndim=1)
    assert made.mask.tolist() == [[False, True], [True, False]]
    assert made.value[0, 0].tolist() == [3.0, 4.0]
    assert made.value.shape == (2, 2, 2)


def test_a_set_without_any_reading_stays_in_a_positive_support():
    made = reading([np.nan, np.nan])
    assert not made.mask.any()
    slope = jax.grad(lambda state: model().log_likelihood(state, {"size": made}))(jnp.ones(2))
    assert slope.tolist() == [0.0, 0.0]


def test_integers_and_precision():
    assert reading(np.array([1, 2])).value.dtype == jnp.float32
    assert reading(np.float32([1, 2])).value.dtype == jnp.float32
    with jax.enable_x64(True):
        assert reading(np.array([1.0, 2.0])).value.dtype == jnp.float64
        assert reading(np.float32([1, 2])).value.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"value": 1.0}, r"value: shape \(\) came, \(r, ...\)"),
        ({"value": [1.0, 2.0], "event_ndim": 1}, r"value: shape \(2,\) came"),
        ({"value": [[1.0]], "event_ndim": 3}, r"value: shape \(1, 1\) came"),
        ({"value": ["a", "b"]}, "value: dtype <U1 came, real numbers"),
        ({"value": [1.0, 2.0], "mask": [True]}, r"mask: shape \(1,\) came, \(2,\) was expected"),
        ({"value": [1.0, 2.0], "context": {"noise": 1.0}}, r"context: shape \(\) came"),
        ({"value": [1.0, 2.0], "context": np.ones((3, 2))}, r"context: shape \(3, 2\) came"),
        ({"value": [1.0, 2.0], "context": np.array([1.0, np.nan])}, "context: NaN or infinite"),
    ],
)
def test_bad_readings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        reading(**arguments)


def test_oracle_log_likelihood_is_the_sum_over_readings(x64):
    state = jnp.array([0.3, -0.2])
    readings = {
        "level": reading([1.0, np.nan, 2.0], {"noise": np.array([0.5, 1.0, 2.0])}),
        "size": reading([0.7]),
    }
    expected = (
        dist.Normal(0.3, 0.5).log_prob(1.0)
        + dist.Normal(0.3, 2.0).log_prob(2.0)
        + dist.LogNormal(-0.2, 0.5).log_prob(0.7)
    )
    np.testing.assert_allclose(model().log_likelihood(state, readings), expected, rtol=1e-13)


def test_gradient_with_a_missing_reading_equals_that_without_it(x64):
    state = jnp.array([0.3, -0.2])
    noise = np.array([0.5, np.nan, 2.0])
    with_missing = {
        "level": reading([1.0, np.nan, 2.0], {"noise": noise}),
        "size": reading([-np.inf, 0.7]),
    }
    without = {"level": reading([1.0, 2.0], {"noise": noise[[0, 2]]}), "size": reading([0.7])}
    slope = jax.grad(model().log_likelihood)
    assert np.isfinite(slope(state, with_missing)).all()
    np.testing.assert_array_equal(slope(state, with_missing), slope(state, without))


def test_gradient_check_sees_a_value_outside_the_support():
    # Negative control: the mask alone does not save the gradient.
    unsafe = Reading(jnp.array([-1.0, 0.7]), None, jnp.array([False, True]))
    slope = jax.grad(lambda state: model().log_likelihood(state, {"size": unsafe}))(jnp.ones(2))
    assert not np.isfinite(slope).all()


def test_an_unknown_sensor_is_named():
    readings = {"sonar": reading([1.0])}
    with pytest.raises(ValueError, match=r"sensor 'sonar' came, one of level, size was expected"):
        model().log_likelihood(jnp.zeros(2), readings)
    with pytest.raises(ValueError, match="sensor 'sonar' came"):
        extended.update(model(), model().initial, readings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"initial": GaussianMixture(jnp.zeros(2), jnp.zeros((2, 2)), jnp.ones((2, 2, 2)))},
            "model.initial.log_weights: weights sum to 2",
        ),
        ({"angles": (2,)}, r"model.angles: \(2,\) came, coordinates in 0..1"),
        ({"sensors": {}}, "model.sensors: none came"),
    ],
)
def test_a_bad_model_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        checked(model(**changes), "model")


@pytest.mark.parametrize(
    ("matrix", "noise_factor", "words"),
    [
        (jnp.ones((2, 3)), jnp.eye(2), r"matrix: shape \(2, 3\) came"),
        (jnp.eye(2), jnp.ones(2), r"noise_factor: shape \(2,\) came, \(2, n\)"),
        (jnp.eye(2), jnp.eye(3), r"noise_factor: shape \(3, 3\) came, \(2, n\)"),
    ],
)
def test_bad_linear_dynamics_are_named(matrix, noise_factor, words):
    with pytest.raises(ValueError, match=words):
        linear_gaussian(matrix, noise_factor)


def test_the_evidence_has_a_gradient_in_the_noise_of_the_dynamics(x64):
    values = reading(np.array([[1.0], [2.0], [1.5]]), {"noise": np.ones((3, 1))})
    frames = Frame(jnp.ones(3), None, {"level": values})

    def log_evidence(noise):
        moved = model(dynamics=linear_gaussian(jnp.eye(2), noise * jnp.eye(2)))
        return jnp.sum(run(extended, moved, frames)[1].log_evidence)

    step = 1e-5
    expected = (log_evidence(0.5 + step) - log_evidence(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(log_evidence)(0.5), expected, rtol=1e-8)
