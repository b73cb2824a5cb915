"""Calibration of a posterior that is right, and of three that are wrong in a known way."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import trust
from bayesinf.plots import trust as figures

SD = 0.5


def simulate(key):
    """A random prior N(centre, I), a state of R^2 from it, and a reading of it; the prior and the
    reading are the data."""
    prior_key, state_key, noise_key = jax.random.split(key, 3)
    centre = jax.random.normal(prior_key, (2,))
    state = centre + jax.random.normal(state_key, (2,))
    return state, (centre, state + SD * jax.random.normal(noise_key, (2,)))


class Normal(eqx.Module):
    mean: jax.Array
    sd: float

    def sample(self, key):
        return self.mean + self.sd * jax.random.normal(key, self.mean.shape)

    def log_prob(self, x):
        return -0.5 * jnp.sum(((x - self.mean) / self.sd) ** 2)


class Draws(eqx.Module):
    """A posterior that can only be drawn from, over a dictionary."""

    normal: Normal

    def sample(self, key):
        return {"state": self.normal.sample(key)}


def right(data):
    centre, y = data
    gain = 1 / (1 + SD**2)
    return Normal(centre + gain * (y - centre), SD * gain**0.5)


def sure(data):
    return Normal(right(data).mean, 0.7 * right(data).sd)


def shifted(data):
    return Normal(right(data).mean + 0.3, right(data).sd)


def blind(data):
    """The prior: calibrated in every parameter, and no posterior."""
    return Normal(data[0], 1.0)


@pytest.fixture(scope="module")
def found(quick_setup):
    key = jax.random.key(0)
    posteriors = {"right": right, "sure": sure, "shifted": shifted, "blind": blind}
    with quick_setup():
        return {name: trust.calibrate(key, simulate, each) for name, each in posteriors.items()}


def test_stat_a_right_posterior_is_calibrated(found):
    """At a false-alarm rate of 1 %."""
    result = found["right"]
    assert result.calibrated
    assert result.names == ("parameter 0", "parameter 1", "log density", "distance to a reference")
    for name in result.names:
        curve = result.coverage(name)
        assert curve.error() < curve.band


@pytest.mark.parametrize("name", ["sure", "shifted", "blind"])
def test_stat_a_wrong_posterior_is_not(found, name):
    result = found[name]
    assert not result.calibrated
    assert np.min(result.p_values) < 1e-6


def test_an_over_confident_posterior_covers_too_little(found):
    curve = found["sure"].coverage("log density")
    middle = np.argmin(np.abs(curve.level - 0.9))
    assert curve.share[middle] < 0.9 - curve.band


def test_stat_only_a_reference_that_sees_the_data_sees_blindness(found):
    """Ranks of parameters and density are uniform for the prior; those of the distance are not."""
    p_values = dict(zip(found["blind"].names, found["blind"].p_values, strict=True))
    others = [value for name, value in p_values.items() if name != "distance to a reference"]
    assert min(others) > 1e-4
    assert p_values["distance to a reference"] < 1e-6


def test_a_certificate_is_json(found):
    result = found["sure"]
    certificate = json.loads(result.to_json())
    assert certificate == result.certificate()
    assert certificate["calibrated"] is False
    assert set(certificate["statistics"]) == set(result.names)
    for entry in certificate["statistics"].values():
        assert sum(entry["rank_counts"]) == certificate["num_runs"]
    gaps = [entry["largest_gap"] for entry in certificate["statistics"].values()]
    assert max(gaps) > max(
        entry["largest_gap"] for entry in found["right"].certificate()["statistics"].values()
    )


def test_draws_alone_and_the_users_own_statistics():
    def named(key):
        state, data = simulate(key)
        return {"state": state}, data

    def own(theta, data):
        return jnp.stack([jnp.sum(theta["state"]) * data[1][0]])

    result = trust.calibrate(
        *(jax.random.key(1), named, lambda data: Draws(right(data)), 200, 19),
        statistics=own,
        names=("east", "north"),
    )
    assert result.names == ("east", "north", "distance to a reference", "statistic 0")
    assert result.calibrated
    assert len(figures.ranks_figure(result).axes) == 4


def test_figures_hold_what_was_found(found):
    result = found["sure"]
    figure = figures.ranks_figure(result)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == list(result.names)
    (axes,) = figures.coverage_figure(result).axes
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(curves["balls around references (TARP)"], result.coverage().share)
    np.testing.assert_array_equal(curves["highest density"], result.coverage("log density").share)


def test_bad_input_is_told(key):
    with pytest.raises(ValueError, match="num_runs, num_draws: 5, 99 came"):
        trust.calibrate(key, simulate, right, 5)
    with pytest.raises(ValueError, match=r"false_alarm: 0\.0 came"):
        trust.calibrate(key, simulate, right, false_alarm=0.0)
    with pytest.raises(ValueError, match=r"posterior: draws of shape \(1,\) came, \(2,\)"):
        trust.calibrate(key, simulate, lambda data: Normal(data[1][:1], 1.0), 20, 9)
    with pytest.raises(ValueError, match="names: 1 came, 2 were expected"):
        trust.calibrate(key, simulate, right, 20, 9, names=("one",))

    def broken(key):
        state, data = simulate(key)
        return jnp.where(state > 1, jnp.nan, state), data

    with pytest.raises(ValueError, match="simulate: parameters hold NaN in"):
        trust.calibrate(key, broken, right, 20, 9)

    def failing(data):
        return Normal(jnp.where(data[1] > 1, jnp.nan, data[1]), 1.0)

    with pytest.raises(ValueError, match="a statistic was NaN in"):
        trust.calibrate(key, simulate, failing, 20, 9)
    result = trust.calibrate(key, simulate, right, 20, 9)
    with pytest.raises(ValueError, match="name: 'west' came, one of"):
        result.coverage("west")
