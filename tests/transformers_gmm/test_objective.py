"""The examples that a network is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.kalman import Method, extended
from bayesinf.programs import Frame, Reading, StateSpace, linear_gaussian
from bayesinf.programs.simulate import simulate
from bayesinf.transformers_gmm.objective import LOST, on_policy

LENGTH = 12


def walk():
    """Returns a random walk that is read at every step, and one simulated log of it."""

    def sensor(state, context):
        del context
        return dist.Normal(state[0], 0.5)

    model = StateSpace(
        gaussian(jnp.zeros(1), jnp.eye(1)),
        linear_gaussian(jnp.eye(1), jnp.eye(1)),
        {"place": sensor},
    )
    there = jnp.ones((LENGTH, 1), bool)
    blank = Reading(jnp.zeros((LENGTH, 1)), None, there)
    frames = Frame(jnp.ones(LENGTH), None, {"place": blank})
    return model, *simulate(jax.random.key(0), model, frames)


def fresh_beliefs(states):
    """Returns a belief for every time, a unit off the truth."""
    return jax.vmap(lambda state: gaussian(state + 1, 2 * jnp.eye(1)))(states)


def test_a_filter_that_is_lost_goes_on_from_a_fresh_belief():
    model, states, frames = walk()

    def lose(model, belief, readings):
        posterior, info = extended.update(model, belief, readings)
        return GaussianMixture(posterior.log_weights, posterior.means + 100, posterior.chols), info

    losing = Method(extended.predict, lose)
    examples = on_policy(losing, model, states, frames, model.initial, fresh_beliefs(states))
    # The prior of each step but the first is the fresh belief of the step before, moved on.
    np.testing.assert_allclose(examples.prior.means[1:, 0], states[:-1] + 1, rtol=1e-6)
    alone = on_policy(losing, model, states, frames, model.initial)
    assert np.abs(alone.prior.means[2:, 0] - states[1:-1]).min() > LOST


def test_a_filter_that_is_not_lost_never_meets_a_fresh_belief():
    model, states, frames = walk()
    alone = on_policy(extended, model, states, frames, model.initial)
    helped = on_policy(extended, model, states, frames, model.initial, fresh_beliefs(states))
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, helped))
