"""Edges of `smc`: empty, small and impossible input, errors, and what comes out of a step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf import smc
from bayesinf.distributions import gaussian
from bayesinf.distributions.particles import uniform_particles
from bayesinf.mcmc.random_walk import RandomWalk
from bayesinf.programs import (
    Dynamics,
    FeynmanKac,
    Frame,
    Program,
    StateSpace,
    feynman_kac,
    linear_gaussian,
    reading,
)
from bayesinf.types import law_of

RESAMPLERS = (smc.multinomial, smc.residual, smc.stratified, smc.systematic)


def test_every_name_has_a_law():
    for name in smc.__all__:
        assert law_of(getattr(smc, name))


# Resamplers


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_stat_single_precision_offspring(resampler, key):
    # Half of 100,000 weights are zero, the first and the last ones among them.
    raw = np.random.default_rng(0).gamma(0.3, size=100_000) + 1e-12
    raw[::2] = 0
    raw[-1_000:] = 0
    weights = raw / raw.sum()
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32))
    ancestors = np.asarray(jax.jit(resampler, static_argnums=2)(key, log_weights, 100_000))
    assert ancestors.dtype.kind == "i"
    assert np.all(weights[ancestors] > 0)
    counts = np.bincount(ancestors, minlength=weights.size)
    # By blocks of a thousand; multinomial offspring vary the most, so that its variance bounds all.
    found, expected = (x.reshape(100, -1).sum(1) for x in (counts, 1e5 * weights))
    z = (found - expected) / np.sqrt(np.maximum(expected, 1))
    assert np.max(np.abs(z)) < 5
    if resampler is smc.systematic:
        # One for the grid at either end, one for rounding.
        assert np.max(np.abs(found - expected)) < 3


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_extreme_uniforms_choose_no_weightless_particle(resampler, key, monkeypatch):
    log_weights = jnp.log(jnp.array([0.0, 0.3, 0.0, 0.7 - 1e-7, 0.0]))
    for value in (0.0, 1 - 2**-24):
        monkeypatch.setattr(
            jax.random,
            "uniform",
            lambda key, shape=(), dtype=None, value=value: jnp.full(shape, value, dtype),
        )
        assert set(np.asarray(resampler(key, log_weights, 5))) <= {1, 3}


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_no_weight_at_all_counts_all_alike(resampler, key):
    for log_weights in (jnp.full(4, -jnp.inf), jnp.full(4, jnp.nan)):
        ancestors = np.asarray(resampler(key, log_weights, 4))
        assert ancestors.min() >= 0
        assert ancestors.max() < 4
    if resampler is not smc.multinomial:
        np.testing.assert_array_equal(ancestors, np.arange(4))


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_weights_need_not_be_normalised(resampler, key):
    log_weights = jnp.log(jnp.array([0.2, 0.47, 0.33]))
    np.testing.assert_array_equal(
        resampler(key, log_weights, 8), resampler(key, log_weights - 200.0, 8)
    )


def test_threshold_is_checked():
    with pytest.raises(ValueError, match=r"threshold: 2.0 came, a number in \[0, 1\]"):
        smc.adaptive(smc.systematic, 2.0)


# Reweighting


def test_reweight_of_impossible_and_invalid():
    particles = uniform_particles(jnp.arange(3.0))
    gone = smc.reweight(particles, jnp.full(3, -jnp.inf), jnp.asarray(1.0))
    assert gone.log_evidence == -jnp.inf
    np.testing.assert_allclose(gone.weights, 1 / 3, rtol=1e-6)
    for bad in (jnp.nan, jnp.inf):
        found = smc.reweight(particles, jnp.array([0.0, bad, 0.0]), jnp.asarray(1.0))
        assert jnp.isnan(found.log_evidence)
    half = smc.reweight(particles, jnp.array([0.0, -jnp.inf, 0.0]), jnp.asarray(1.0))
    # What has no weight may have any potential.
    again = smc.reweight(half, jnp.array([0.0, jnp.nan, 0.0]), jnp.asarray(2.0))
    np.testing.assert_allclose(again.log_evidence, np.log(2 / 3), rtol=1e-6)


# Filters


def model():
    return StateSpace(
        gaussian(jnp.zeros(1), jnp.eye(1)),
        linear_gaussian([[0.9]], [[0.5]]),
        {"level": lambda state, _: dist.Normal(state[0], 0.7)},
    )


def frames(values):
    values = np.asarray(values, np.float32)
    return Frame(jnp.ones(len(values)), None, {"level": reading(values.reshape(-1, 1))})


def test_one_particle_no_input_and_no_reading(key):
    particles, info = smc.run(key, smc.bootstrap(model(), frames([0.3, 0.1])), 1)
    assert particles.num_particles == 1
    np.testing.assert_allclose(particles.log_evidence, info.log_evidence.sum(), rtol=1e-5)
    none = Frame(jnp.ones(0), None, {"level": frames([0.0]).readings["level"]})
    none = jax.tree.map(lambda leaf: leaf[:0], none)
    particles, info = smc.run(key, smc.bootstrap(model(), none), 5)
    assert particles.log_evidence == 0
    assert info.log_evidence.shape == (0,)
    particles, info = smc.run(key, smc.bootstrap(model(), frames([np.nan, np.nan])), 5)
    np.testing.assert_allclose(info.log_evidence, 0, atol=1e-6)
    assert particles.level == 2


def test_stream_gives_what_run_gives(key):
    fk = smc.bootstrap(model(), frames([0.3, -0.2, np.nan, 2.0]))
    particles, info = smc.run(key, fk, 50)
    inputs = [jax.tree.map(lambda leaf, t=t: leaf[t], fk.inputs) for t in range(4)]
    streamed = list(smc.stream(key, fk, 50, inputs))
    np.testing.assert_allclose(streamed[-1][0].values, particles.values, rtol=1e-6)
    rises = [float(info.log_evidence) for _, info in streamed]
    np.testing.assert_allclose(rises, info.log_evidence, rtol=1e-5, atol=1e-6)


def test_run_under_vmap_is_the_loop(key):
    fk = smc.bootstrap(model(), frames([0.3, -0.2, 2.0]))
    keys = jax.random.split(key, 3)
    together = jax.vmap(lambda key: smc.run(key, fk, 50)[0].log_evidence)(keys)
    apart = [smc.run(key, fk, 50)[0].log_evidence for key in keys]
    np.testing.assert_allclose(together, np.stack(apart), rtol=1e-5)


def test_trajectories_end_in_the_particles_and_follow_the_model(key):
    fk = feynman_kac(
        lambda key: jax.random.randint(key, (), 0, 100),
        lambda key, x, _: x + 1,
        lambda before, after, value: -0.1 * (after % 7) + value,
        jnp.zeros(4),
    )
    particles, info = smc.run(key, fk, 20, smc.always(smc.systematic), smc.history)
    paths = smc.trajectories(info.collected)
    np.testing.assert_array_equal(paths[:, -1], particles.values)
    np.testing.assert_array_equal(np.diff(paths, axis=1), 1)


def plain(step=lambda key, x, _: x, log_potential=lambda before, after, y: y * after, inputs=None):
    inputs = jnp.ones(3) if inputs is None else inputs
    return feynman_kac(jax.random.normal, step, log_potential, inputs)


def test_all_weights_lost_is_flagged_and_no_number_is_nan(key):
    inputs = jnp.array([0.0, -jnp.inf, 0.0])
    particles, info = smc.run(
        key, plain(log_potential=lambda before, after, y: y, inputs=inputs), 9
    )
    assert particles.log_evidence == -jnp.inf
    np.testing.assert_array_equal(np.isneginf(info.log_evidence), [False, True, False])
    assert np.all(np.isfinite(particles.log_weights))
    assert not np.any(np.isnan(info.ess))


def test_nan_raises_at_the_door_and_names_step_and_function(key):
    spoiled = jnp.array([0.0, 0.0, jnp.nan])
    fk = plain(log_potential=lambda before, after, y: y, inputs=spoiled)
    with pytest.raises(ValueError, match=r"fk.log_potential: NaN or \+inf came at step 2"):
        smc.run(key, fk, 4)
    with pytest.raises(ValueError, match=r"fk.log_potential: NaN or \+inf came at step 2"):
        list(smc.stream(key, fk, 4, spoiled))
    fk = plain(step=lambda key, x, y: x + y, inputs=spoiled)
    with pytest.raises(ValueError, match=r"fk.step: NaN came at step 2"):
        smc.run(key, fk, 4)


@pytest.mark.parametrize(
    ("fk", "message"),
    [
        (plain(step=lambda key, x, _: jnp.stack([x, x])), "step: .* came, .* was expected"),
        (plain(step=lambda key, x, _: x > 0), "step: .*bool.* came"),
        (
            FeynmanKac(plain().init, plain().step, lambda *_: jnp.ones(2), jnp.ones(3)),
            r"fk.log_potential: shape \(2,\) came, \(4,\) was expected",
        ),
    ],
)
def test_shapes_that_change_raise(fk, message, key):
    with pytest.raises((ValueError, TypeError), match=message):
        smc.run(key, fk, 4)


def test_counts_and_frames_are_checked(key):
    with pytest.raises(ValueError, match="num_particles: 0 came"):
        smc.run(key, plain(), 0)
    with pytest.raises(ValueError, match="num_particles: 1 came, at least 2"):
        smc.conditional_smc(1)
    blank = frames([0.0, 1.0])
    with pytest.raises(ValueError, match="frames: leading axes"):
        smc.bootstrap(model(), blank._replace(elapsed=jnp.ones(3)))
    with pytest.raises(ValueError, match="sensor 'other' came"):
        smc.bootstrap(model(), blank._replace(readings={"other": blank.readings["level"]}))
    with pytest.raises(ValueError, match="position: leading axes"):
        smc.conditional_smc(3).init(plain(), jnp.zeros(3))


def test_dynamics_without_a_density_need_the_bootstrap():
    dynamics = Dynamics(lambda state, noise, elapsed, input: state, 0)
    still = StateSpace(gaussian(jnp.zeros(1), jnp.eye(1)), dynamics, model().sensors)
    with pytest.raises(ValueError, match=r"model.dynamics.noise_size: 0 came, at least 1"):
        smc.local(still)


# Samplers


def program(log_likelihood=lambda x: dist.Normal(x, 0.1).log_prob(1.3)):
    return Program(jax.random.normal, dist.Normal(0.0, 1.0).log_prob, log_likelihood)


def test_temper_keeps_the_size_it_was_asked_for(key):
    particles, info = smc.temper(key, program(), RandomWalk(0.2), 1_000, threshold=0.6)
    assert particles.level == 1
    assert info.level[-1] == 1
    assert np.all(np.diff(info.level) > 0)
    # The root is exact, and the particles were equal before each step.
    np.testing.assert_allclose(info.ess[:-1], 600, rtol=2e-3)
    assert info.ess[-1] >= 599
    np.testing.assert_allclose(particles.mean(), 1.3 / 1.01, atol=0.02)


def test_temper_where_most_of_the_prior_is_impossible(key):
    def log_likelihood(x):
        return jnp.where(x > 1, dist.Normal(x, 0.5).log_prob(1.3), -jnp.inf)

    particles, info = smc.temper(key, program(log_likelihood), RandomWalk(0.2), 500)
    assert particles.level == 1
    assert np.all(particles.values > 1)
    assert jnp.isfinite(particles.log_evidence)
    nowhere = program(lambda x: jnp.full_like(x, -jnp.inf))
    particles, info = smc.temper(key, nowhere, RandomWalk(0.2), 50)
    assert particles.log_evidence == -jnp.inf
    assert np.all(np.isneginf(info.log_evidence))
    assert not np.any(np.isnan(particles.values))


def test_temper_errors(key):
    spoiled = program(lambda x: jnp.where(x > 0, jnp.nan, 0.0))
    with pytest.raises(ValueError, match=r"log_likelihood: NaN or \+inf came at step 0"):
        smc.temper(key, spoiled, RandomWalk(0.2), 50)
    with pytest.raises(ValueError, match=r"log_likelihood: NaN or \+inf came at step 0"):
        smc.temper_fixed(key, spoiled, RandomWalk(0.2), 50, jnp.array([1.0]))
    with pytest.raises(ValueError, match="max_levels: 1 reached level"):
        smc.temper(key, program(), RandomWalk(0.2), 500, max_levels=1)
    with pytest.raises(ValueError, match=r"threshold: 1.0 came, a number in \(0, 1\)"):
        smc.temper(key, program(), RandomWalk(0.2), 500, threshold=1.0)
    with pytest.raises(ValueError, match=r"levels: shape \(\) came"):
        smc.temper_fixed(key, program(), RandomWalk(0.2), 50, 1.0)


class Wider(eqx.Module):
    """A kernel that changes the shape of its state."""

    def init(self, target, position):
        return RandomWalk(1.0).init(target, position)

    def step(self, key, target, state):
        return state._replace(position=jnp.stack([state.position] * 2)), None


def test_a_kernel_that_changes_shapes_raises(key):
    with pytest.raises(ValueError, match=r"kernel.step: .* came, .* was expected"):
        smc.temper(key, program(), Wider(), 10)


def test_tuned_takes_its_scale_from_the_particles(key):
    def spread(kernel, particles):
        mean = particles.mean()
        deviation = jnp.sqrt(particles.mean(lambda x: (x - mean) ** 2))
        return eqx.tree_at(lambda k: k.scale, kernel, 2.4 * deviation)

    kernel = smc.tuned(RandomWalk(1.0), spread)
    particles, info = smc.temper(key, program(), kernel, 1_000, num_steps=3)
    np.testing.assert_allclose(particles.mean(), 1.3 / 1.01, atol=0.02)
    # About .44 is best in one dimension, at every level.
    assert np.all(np.abs(info.moves.acceptance.mean((1, 2)) - 0.44) < 0.15)


def test_algorithms_are_compositions(key):
    # One step of a filter, written out, and a filter for each of three parameters.
    fk = plain(inputs=jnp.array([0.5]))
    resample_key, move_key, outer_key, draw_key = jax.random.split(key, 4)
    particles = uniform_particles(jnp.arange(4.0))
    particles = smc.resample(resample_key, particles, smc.systematic)
    particles = smc.propagate(move_key, particles, lambda key, x: fk.step(key, x, fk.inputs[0]))
    log_g = fk.log_potential(particles.values, particles.values, fk.inputs[0])
    particles = smc.reweight(particles, log_g, jnp.asarray(1))
    np.testing.assert_allclose(particles.weights, jax.nn.softmax(jnp.arange(4.0) / 2), rtol=1e-5)
    inner = jax.vmap(lambda shift: uniform_particles(jnp.arange(4.0) + shift))(jnp.arange(3.0))
    outer = uniform_particles(inner)
    outer = smc.hoist(lambda key, p: smc.resample(key, p, smc.stratified))(outer_key, outer)
    np.testing.assert_array_equal(outer.values.values, np.arange(4) + np.arange(3)[:, None])
    one = smc.collapse(draw_key, smc.marginal(particles, lambda x: 2 * x))
    assert one.num_particles == 1
    assert one.log_evidence == particles.log_evidence
