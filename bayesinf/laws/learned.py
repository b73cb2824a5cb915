"""The laws of learned posteriors, by the ranks of the truth among their draws."""

import jax
import jax.numpy as jnp

from bayesinf import transformers_gmm
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.laws.row import Row
from bayesinf.programs import Reading, StateSpace, linear_gaussian, target
from bayesinf.types import calibrated
from bayesinf.validation import Joint, Report, check_calibrated
from bayesinf.validation.problems import SEED

SD = 0.7


def rows() -> list[Row]:
    return [
        Row(
            "transformers_gmm.DistributionTransformer",
            calibrated,
            "statistically: ranks, over mixture priors and a linear sensor, for any weights",
            _transformer,
        )
    ]


def _transformer(num_tests: int) -> Report:
    """A network with random weights, where it is exact whatever they are.

    Elsewhere its posterior is an approximation, and how far it is off is measured, not asserted.
    """
    dt = transformers_gmm.DistributionTransformer(
        jax.random.key(SEED), 2, ("place",), width=16, num_heads=2
    )

    def posterior(key, data):
        prior, y = data
        readings = {"place": Reading(y[None], None, jnp.ones(1, bool))}
        return dt(_model(prior), prior, readings).sample(key)

    return check_calibrated(
        posterior,
        mixture_prior(),
        name="transformers_gmm.DistributionTransformer",
        num_draws=31,
        num_tests=num_tests,
    )


def _model(prior: GaussianMixture) -> StateSpace:
    from numpyro.distributions import Normal

    def place(state, context):
        del context
        return Normal(_place(state), SD)

    return StateSpace(prior, linear_gaussian(jnp.eye(2), jnp.eye(2)), {"place": place})


def mixture_prior() -> Joint:
    """Returns a state of R^2 from a random mixture of three, and a reading of a sum of it."""

    def draw(key):
        prior_key, state_key, noise_key = jax.random.split(key, 3)
        means_key, chols_key, weights_key = jax.random.split(prior_key, 3)
        chols = 0.3 * jnp.tril(jax.random.normal(chols_key, (3, 2, 2)), -1) + jnp.eye(2)
        log_weights = jax.nn.log_softmax(jax.random.normal(weights_key, (3,)))
        prior = GaussianMixture(log_weights, 2 * jax.random.normal(means_key, (3, 2)), chols)
        state = prior.sample(state_key)
        return state, (prior, _place(state) + SD * jax.random.normal(noise_key))

    def posterior(data):
        prior, y = data
        return target(lambda x: prior.log_prob(x) - 0.5 * ((y - _place(x)) / SD) ** 2)

    return Joint(draw, posterior, lambda x, data: jnp.append(x, _place(x) * data[1]))


def _place(state):
    return state[0] - 0.5 * state[1]
