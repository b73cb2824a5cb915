"""What the network is trained on: its own rollouts, scored at the true state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.filter import Method, Readings
from bayesinf.programs.state_space import Frame, StateSpace

# Nats below which a filter has lost the true state.
LOST = 12.0


class Example(NamedTuple):
    """A prior as the filter met it, the readings that followed, and the true state."""

    prior: GaussianMixture
    readings: Readings
    state: Float[Array, " d"]


def on_policy(
    method: Method,
    model: StateSpace,
    states: Float[Array, "t d"],
    frames: Frame,
    belief: GaussianMixture,
    fresh: GaussianMixture | None = None,
) -> Example:
    """Returns the examples (leading time axis) that a filter meets along one simulated log.

    Trained on these, the network learns from the priors that it makes itself, which is what keeps
    long runs from drifting (Ross et al. 2011 call it dataset aggregation). A filter that is lost
    teaches nothing, so with `fresh`, a belief for every time, it goes on from that wherever its
    posterior leaves the true state a log density below `-LOST`.
    """

    def meet(belief, moment):
        state, frame, fresh = moment
        prior = method.predict(model, belief, frame)
        posterior, _ = method.update(model, prior, frame.readings)
        if fresh is not None:
            found = posterior.log_prob(state) > -LOST
            posterior = jax.tree.map(lambda a, b: jnp.where(found, a, b), posterior, fresh)
        return posterior, Example(prior, frame.readings, state)

    return jax.lax.scan(meet, belief, (states, frames, fresh))[1]


def forward_kl(dt, model: StateSpace, batch: Example, ceiling: float = 6.0) -> Float[Array, ""]:
    """Returns the mean negative log posterior density at the true states, compressed.

    In expectation the KL divergence from the exact posterior up to a constant (Prop. 3.1 of the
    Distribution Transformer paper). Above `ceiling` nats a loss counts by its logarithm, so that
    one lost series does not outweigh the others.
    """
    return jnp.mean(
        compress(jax.vmap(lambda e: negative_log_density(dt, model, e))(batch), ceiling)
    )


def negative_log_density(dt, model: StateSpace, example: Example) -> Float[Array, ""]:
    """Returns minus the log posterior density at the true state."""
    return -dt(model, example.prior, example.readings).log_prob(example.state)


def compress(loss: Float[Array, "*n"], ceiling: float) -> Float[Array, "*n"]:
    """Returns the loss up to `ceiling`, and beyond it `ceiling + log(1 + excess)`."""
    return jnp.minimum(loss, ceiling) + jnp.log1p(jnp.maximum(loss - ceiling, 0))
