"""Guards: false alarms at the stated rate, and what they must see."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import trust
from bayesinf.distributions import GaussianMixture, gaussian
from bayesinf.trust.guard import Look

RATE, NUM = 0.05, 2000


def draw(key):
    """A mixture prior of two unequal components with random places and widths, and five data."""
    mean_key, width_key, data_key = jax.random.split(key, 3)
    widths = jnp.exp(0.3 * jax.random.normal(width_key, (2,)))
    prior = GaussianMixture(
        jnp.log(jnp.array([0.3, 0.7])),
        jax.random.uniform(mean_key, (2, 2), minval=-2, maxval=2),
        widths[:, None, None] * jnp.eye(2),
    )
    data = prior.mean() + 0.5 * jax.random.normal(data_key, (5, 2))
    return prior, data


def draws(seed, num=NUM):
    return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num))


@pytest.fixture(scope="module")
def watch(quick_setup):
    with quick_setup():
        return trust.guard(jax.random.key(0), draws(0), false_alarm=RATE)


look = eqx.filter_jit(lambda watch, inputs: jax.vmap(watch)(inputs))


def rate_error(num, held_out=NUM // 2):
    """The rate of one guard is Beta distributed around the stated one; then comes the counting."""
    return np.sqrt(RATE * (1 - RATE) * (1 / num + 1 / held_out))


def test_stat_false_alarms_at_the_stated_rate(watch):
    """Within 4 standard deviations, over 4,000 fresh inputs."""
    flagged = look(watch, draws(1, 4000)).flagged
    assert abs(np.mean(flagged) - RATE) < 4 * rate_error(4000)


def test_stat_a_guard_without_held_out_draws_gives_false_alarms():
    """Negative control: scores of the draws that a rich density was fitted to are too low."""
    few = draws(2, 400)
    honest = trust.guard(jax.random.key(0), few, num_components=12, false_alarm=RATE)
    features = jax.vmap(trust.summary)(few)
    order = jax.random.permutation(jax.random.split(jax.random.key(0))[0], 400)
    own = jnp.sort(jax.vmap(honest.score)(features[order[:200]]))
    flattered = eqx.tree_at(lambda g: g.held_out, honest, own)
    fresh = draws(1, 4000)
    room = 4 * rate_error(4000, 200)
    assert abs(np.mean(look(honest, fresh).flagged) - RATE) < room
    assert np.mean(look(flattered, fresh).flagged) > RATE + room


def test_shifted_inputs_are_seen(watch):
    prior, data = draws(1, 500)
    far = eqx.tree_at(lambda m: m.means, prior, prior.means + 6)
    narrow = eqx.tree_at(lambda m: m.chols, prior, prior.chols / 20)
    for name, inputs in {
        "prior elsewhere": (far, data),
        "prior too narrow": (narrow, data),
        "data elsewhere": (prior, data + 5),
        "data in other units": (prior, 100 * data),
        "data that disagree": (prior, data.at[:, 0].add(jnp.array([3.0, -3.0]))),
    }.items():
        assert np.mean(look(watch, inputs).flagged) > 0.9, name
    # Which component comes first is the same to it.
    turned = jax.tree.map(lambda leaf: leaf[:, ::-1], prior)
    np.testing.assert_allclose(
        look(watch, (turned, data)).score, look(watch, (prior, data)).score, rtol=1e-2, atol=0.05
    )


def test_what_never_varied_may_not_vary(key):
    """A feature that is constant, and one that is the sum of others."""
    x = jax.random.normal(key, (1000, 3))
    x = jnp.concatenate([x, x[:, :1] + x[:, 1:2], jnp.full((1000, 1), 7.0)], axis=1)
    watch = trust.guard(key, x, num_components=1)
    assert watch.mixture.dim == 3
    usual = jnp.zeros(5).at[4].set(7.0)
    assert not watch(usual).flagged
    assert watch(usual.at[3].set(1.0)).flagged
    assert watch(usual.at[4].set(8.0)).flagged


def test_numbers_that_are_not_finite_are_flagged(watch):
    prior, data = draw(jax.random.key(3))
    for bad in (
        (prior, data.at[0].set(jnp.inf)),
        (gaussian(jnp.full(2, jnp.nan), jnp.eye(2)), data),
    ):
        found = watch(bad)
        assert isinstance(found, Look)
        assert found.flagged
        assert found.score == jnp.inf


def test_bad_input_is_told(key, watch):
    with pytest.raises(ValueError, match=r"false_alarm: 1\.0 came"):
        trust.guard(key, draws(0, 50), false_alarm=1.0)
    with pytest.raises(ValueError, match="draws: 50 came, at least 200 were expected"):
        trust.guard(key, draws(0, 50))
    with pytest.raises(ValueError, match="features: NaN or infinite"):
        trust.guard(key, jnp.full((1000, 2), jnp.inf))
    with pytest.raises(ValueError, match=r"features: shape \(\) came"):
        trust.guard(key, jnp.zeros((1000, 2)), features=jnp.sum)
    with pytest.raises(ValueError, match="draws: features that vary were expected"):
        trust.guard(key, jnp.ones((1000, 2)))
    with pytest.raises(ValueError, match=r"x: features of shape \(3,\) came"):
        watch(jnp.zeros(3))
