"""What is only consistent: its exact bias is shown, and one that particles do not cure is told."""

import jax
import jax.numpy as jnp
import pytest

from bayesinf import smc
from bayesinf.distributions.particles import Particles
from bayesinf.laws.bias import exact_bias, tempered, tuned

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def fixed_levels(key, program, num_particles):
    """Importance sampling, resampled where the weights ask for it, is unbiased."""
    weigh_key, resample_key = jax.random.split(key)
    particles = smc.importance(weigh_key, program, num_particles)
    return smc.adaptive(smc.systematic, 0.9)(resample_key, particles)[0]


def mean_of_logs(key, program, num_particles):
    particles = smc.importance(key, program, num_particles)
    log_g = jax.vmap(program.log_likelihood)(particles.values)
    return Particles(particles.values, particles.log_weights, jnp.mean(log_g), particles.level)


def test_exact_bias_of_what_adapts():
    """Adaptive levels and kernels are off at few particles; adaptive resampling never is."""
    assert all(abs(bias) > 1 for bias in exact_bias(tempered))
    first, *_, last = exact_bias(tuned)
    assert 1 < last < first / 2
    assert max(map(abs, exact_bias(fixed_levels))) < 1e-10


def test_exact_bias_of_a_broken_estimate_does_not_fall():
    """The negative control: more particles make it worse."""
    first, *_, last = exact_bias(mean_of_logs)
    assert abs(last) > abs(first) > 5
