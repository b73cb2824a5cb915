"""Kernels of other libraries by their signature, and the real one where it is installed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import mcmc
from bayesinf.programs import Tempered, target

PATH = Tempered(lambda x: -0.5 * jnp.sum(x**2), lambda x: -0.5 * jnp.sum((x - 2) ** 2))


class FakeState(NamedTuple):
    position: jax.Array
    logdensity: jax.Array


class FakeInfo(NamedTuple):
    acceptance_rate: jax.Array


def fake_init(position, logdensity_fn):
    return FakeState(position, logdensity_fn(position))


def fake_kernel(key, state, logdensity_fn, step_size):
    propose_key, accept_key = jax.random.split(key)
    position = state.position + step_size * jax.random.normal(propose_key, state.position.shape)
    proposed = FakeState(position, logdensity_fn(position))
    rate = jnp.exp(jnp.minimum(proposed.logdensity - state.logdensity, 0))
    accepted = jax.random.uniform(accept_key) < rate
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), proposed, state), FakeInfo(rate)


class Closed(NamedTuple):
    """A sampling algorithm closed over its density."""

    init: object
    step: object


def closed(density):
    return Closed(
        lambda position: fake_init(position, density),
        lambda key, state: fake_kernel(key, state, density, 0.8),
    )


def test_a_foreign_kernel_meets_the_target_of_now(key):
    """Where the temperature changes, no density of before is compared with one of after."""
    kernel = mcmc.from_blackjax(fake_init, fake_kernel, step_size=0.8)
    x = jnp.array([0.5, 1.0])
    cold, warm = PATH.target(jnp.asarray(1.0)), PATH.target(jnp.asarray(0.2))
    here, info = kernel.step(key, warm, kernel.init(cold, x))
    expected, expected_info = fake_kernel(
        key, fake_init(x, warm.log_density), warm.log_density, 0.8
    )
    np.testing.assert_array_equal(here.position, expected.position)
    np.testing.assert_array_equal(info.acceptance, expected_info.acceptance_rate)


def test_a_foreign_kernel_composes_and_samples(key):
    foreign = mcmc.from_blackjax(fake_init, fake_kernel, step_size=0.8)
    kernel = mcmc.cycle(foreign, mcmc.RandomWalk(0.5))
    given = PATH.target(jnp.asarray(1.0))
    draws = mcmc.sample(
        key, given, kernel, init=jnp.zeros((4, 1)), num_warmup=100, num_samples=1000, progress=False
    )
    row = draws.summary()["x[0]"]
    # N(1, 1/2), at six standard errors.
    assert abs(row["mean"] - 1) < 6 * row["mcse"]


def test_a_closed_algorithm_moves_its_own_density_only(key):
    kernel = mcmc.from_sampling_algorithm(closed(lambda x: -0.5 * jnp.sum((x - 1) ** 2)))
    init = jnp.zeros((2, 1))
    draws = mcmc.sample(
        key,
        kernel.target,
        kernel,
        init=init,
        num_chains=2,
        num_warmup=0,
        num_samples=500,
        progress=False,
    )
    row = draws.summary()["x[0]"]
    assert abs(row["mean"] - 1) < 6 * row["mcse"]
    given = target(lambda x: -jnp.sum(x**2))
    with pytest.raises(ValueError, match=r"target: Target came.*from_blackjax"):
        mcmc.sample(key, given, kernel, init=init, num_chains=2)
    tempered = mcmc.cycle(kernel, mcmc.RandomWalk(1.0))
    with pytest.raises(ValueError, match="moves its own density only"):
        tempered.init(PATH.target(jnp.asarray(0.5)), init[0])


def test_blackjax_itself(key):
    blackjax = pytest.importorskip("blackjax")
    kernel = mcmc.from_blackjax(
        blackjax.hmc.init,
        blackjax.hmc.build_kernel(),
        step_size=0.4,
        inverse_mass_matrix=jnp.ones(1),
        num_integration_steps=4,
    )
    draws = mcmc.sample(
        key, PATH.target(jnp.asarray(1.0)), kernel, init=jnp.zeros((4, 1)), progress=False
    )
    row = draws.summary()["x[0]"]
    assert abs(row["mean"] - 1) < 6 * row["mcse"]
