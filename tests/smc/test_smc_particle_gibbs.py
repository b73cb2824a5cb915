"""Paths and parameters together: particle Gibbs, and PMMH with kernels of several kinds."""

import jax
import jax.numpy as jnp
import pytest

from bayesinf import mcmc, smc
from bayesinf.distributions import Enumerated
from bayesinf.laws.row import one
from bayesinf.laws.smc import uniform_metropolis
from bayesinf.laws.trajectories import moved_with
from bayesinf.mcmc.state import State
from bayesinf.programs import target
from bayesinf.smc.particle_gibbs import ParticleGibbs
from bayesinf.validation import exact, invariance
from bayesinf.validation.check import masses_at
from bayesinf.validation.problems import choice


def blocks(path):
    return mcmc.blocks({"path": path, "theta": uniform_metropolis(2)})


def conditional(rest):
    del rest
    return smc.conditional_smc(2)


def right(given):
    return blocks(smc.particle_gibbs(lambda rest: given.chain(rest["theta"]).model(), conditional))


def other_parameter(given):
    """Moves the path for the parameter that the chain is not at."""
    return blocks(
        smc.particle_gibbs(lambda rest: given.chain(1 - rest["theta"]).model(), conditional)
    )


class Stale(ParticleGibbs):
    """Keeps the density of the path before the move."""

    def step(self, key, target, state):
        moved, info = super().step(key, target, state)
        return State(moved.position, state.parts), info


def stale(given):
    return blocks(Stale(lambda rest: given.chain(rest["theta"]).model(), conditional))


def error(run, measure, given):
    """Returns the largest error of a mass, relative to the largest mass, exactly."""
    masses = exact(lambda key: masses_at(measure.support, run(key, given)), jax.random.key(1))
    expected = jnp.append(jnp.exp(measure.log_masses), 0)
    return float(jnp.max(jnp.abs(masses.expectation() - expected)) / jnp.max(expected))


def test_exact_particle_gibbs(x64):
    given = choice(2, 1)
    assert error(moved_with(right), given.joint(), given) < 1e-12
    assert error(moved_with(other_parameter), given.joint(), given) > 1e-3
    assert error(moved_with(stale), given.joint(), given) > 1e-3


def test_particle_gibbs_asks_for_a_rest(key):
    given = choice(2, 1)
    kernel = smc.particle_gibbs(lambda rest: given.chain(0).model(), conditional)
    states = target(lambda path: given.chain(0).log_mass(path))
    with pytest.raises(ValueError, match="blocks"):
        kernel.step(key, states, kernel.init(states, jnp.zeros(2, int)))


def test_exact_pmmh_with_an_independent_proposal(x64):
    """And not with one whose log density is another's."""

    class Bent(Enumerated):
        def log_prob(self, x):
            return super().log_prob(x) + x

    def moved_by(law):
        proposal = mcmc.Independence(law(jnp.arange(2), jnp.log(jnp.array([0.6, 0.4]))))

        def run(key, given):
            draw_key, start_key, step_key = jax.random.split(key, 3)
            kernel = smc.pmmh(proposal, lambda theta: given.chain(theta).model(), 2)
            prior = target(lambda theta: given.log_prior[theta])
            theta = jax.random.categorical(draw_key, given.log_prior)
            position = kernel.start(start_key, theta)
            state, _ = kernel.step(step_key, prior, kernel.init(prior, position))
            return one(state.position.value, position.log_estimate)

        return run

    given = choice(2, 1)
    assert error(moved_by(Enumerated), given.parameter(), given) < 1e-12
    assert error(moved_by(Bent), given.parameter(), given) > 1e-3


@pytest.mark.parametrize("anew", [False, True])
def test_stat_a_random_walk_proposes_for_an_estimate(x64, key, anew):
    """From exact draws of point, datum and estimate; refuted if the estimate is made anew.

    The estimate is the likelihood times 2.5 or 0.5, of mean 1; beside an exact draw the 2.5 has
    its probability times 2.5.
    """

    def draw(key):
        point_key, data_key, luck_key = jax.random.split(key, 3)
        x = jax.random.normal(point_key)
        y = x + jax.random.normal(data_key)
        factor = jnp.where(jax.random.bernoulli(luck_key, 0.625), 2.5, 0.5)
        return mcmc.Estimated(x, -0.5 * (y - x) ** 2 + jnp.log(factor)), y

    def move(key, drawn):
        position, y = drawn

        def estimate(key, x):
            factor = jnp.where(jax.random.bernoulli(key, 0.25), 2.5, 0.5)
            return -0.5 * (y - x) ** 2 + jnp.log(factor)

        new_key, step_key = jax.random.split(key)
        kernel = mcmc.PseudoMarginal(mcmc.RandomWalk(1.5), estimate)
        if anew:
            position = kernel.start(new_key, position.value)
        prior = target(lambda x: -0.5 * x**2)
        return kernel.step(step_key, prior, kernel.init(prior, position))[0].position, y

    def statistics(drawn):
        position, y = drawn
        luck = position.log_estimate + 0.5 * (y - position.value) ** 2
        return position.value, position.value**2, position.value * y, luck

    found = invariance(key, draw, move, statistics, 4096)
    assert found.holds != anew


def test_pmmh_refuses_a_proposal_that_follows_a_gradient():
    with pytest.raises(ValueError, match="proposal: HMC came"):
        smc.pmmh(mcmc.HMC(0.1, 3), lambda theta: choice(2, 1).chain(theta).model(), 2)
