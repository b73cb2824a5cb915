"""The extended Kalman filter on mixtures, in square-root form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.filter import Info, Method, Readings, reweighted
from bayesinf.linalg import product, triangularize
from bayesinf.programs.linearize import Quadratic, linearize
from bayesinf.programs.state_space import Frame, StateSpace


def predict(model: StateSpace, belief: GaussianMixture, frame: Frame) -> GaussianMixture:
    """Returns the belief after the dynamics, linearised at each component's mean.

    Law: preserves (the image of the belief) for linear-Gaussian dynamics.
    """
    noise = jnp.zeros(model.dynamics.noise_size, belief.means.dtype)

    def one(mean: Float[Array, " d"], chol: Float[Array, "d d"]):
        def move(state, noise):
            return model.dynamics(state, noise, frame.elapsed, frame.input)

        by_state, by_noise = jax.jacfwd(move, argnums=(0, 1))(mean, noise)
        return move(mean, noise), triangularize(by_state @ chol, by_noise)

    means, chols = jax.vmap(one)(belief.means, belief.chols)
    return GaussianMixture(belief.log_weights, means, chols)


def quadratics(
    model: StateSpace, readings: Readings, mean: Float[Array, " d"], chol: Float[Array, "d d"]
) -> list[Quadratic]:
    """Returns the local quadratics of one component, one stack (leading axis r) a sensor.

    Where a reading is missing its quadratic is zero.
    """
    stacks = []
    for name, reading in readings.items():
        sensor = model.sensor(name)

        def one(context, value, mask, sensor=sensor):
            quadratic = linearize(sensor, context, value, mean, chol)
            return jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), quadratic)

        stacks.append(jax.vmap(one)(reading.context, reading.value, reading.mask))
    return stacks


def absorb(
    mean: Float[Array, " d"], chol: Float[Array, "d d"], stacks: list[Quadratic]
) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, ""]]:
    """Returns mean and factor of a component times the exponentials of its quadratics, and the log
    of the total mass: for Gaussian readings the Kalman update and the evidence.

    Law: exact; the product of a Gaussian and exponentials of quadratics is Gaussian.
    """
    score = jnp.concatenate([stack.score for stack in stacks]).sum(axis=0)
    factor = jnp.concatenate([stack.factor.reshape(-1, mean.size) for stack in stacks])
    level = jnp.concatenate([stack.log_density for stack in stacks]).sum()
    shift, posterior, log_mass = Quadratic(level, score, factor).condition()
    return mean + product(chol, shift), product(chol, posterior), log_mass


def update(
    model: StateSpace, belief: GaussianMixture, readings: Readings
) -> tuple[GaussianMixture, Info]:
    """Returns the belief after the readings, linearised at each component's mean.

    Law: reweight by the likelihood, normalised; exact where it is linear-Gaussian in the state.
    """
    if not readings:
        return belief, Info(jnp.zeros((), belief.means.dtype))

    def one(mean, chol):
        return absorb(mean, chol, quadratics(model, readings, mean, chol))

    return reweighted(belief, *jax.vmap(one)(belief.means, belief.chols))


extended = Method(predict, update)
"""The extended Kalman filter; on a belief of several components, a bank of them."""
