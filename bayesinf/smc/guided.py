"""The guided filter of a state-space model: particles move with an eye on the readings."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.kalman import Method, kalman
from bayesinf.linalg import triangularize
from bayesinf.programs.feynman_kac import FeynmanKac
from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.smc.bootstrap import Init, check_frames
from bayesinf.types import Key, law, preserves

Move = Callable[[Float[Array, " d"], Frame], Any]
"""A function from a state and a frame to a law of the next state with `sample` and `log_prob`."""


@law(preserves)
def guided(
    model: StateSpace, frames: Frame, proposal: Move, transition: Move | None = None
) -> FeynmanKac:
    """Returns the Feynman-Kac model whose moves are drawn from `proposal(state, frame)`; its
    potentials are likelihood x transition / proposal, so that its mass is that of `bootstrap`.

    `transition` is the law of the dynamics, which must have a density: `gaussian_transition(model)`
    if it is left out. The proposal must reach where transition and likelihood do.

    Law: preserves; the joint law of states and readings, the latter fixed.
    Paper: Doucet, Godsill and Andrieu (2000), On sequential Monte Carlo sampling methods for
    Bayesian filtering, equation 5.

    Raises:
        ValueError: as `bootstrap`, and for dynamics whose noise has no density.
    """
    check_frames(model, frames)
    transition = gaussian_transition(model) if transition is None else transition
    return FeynmanKac(Init(model), _Step(proposal), _Ratio(model, proposal, transition), frames)


@law(preserves)
def gaussian_transition(model: StateSpace) -> Move:
    """Returns the law of the next state for dynamics that are affine in their noise.

    Law: preserves, for such dynamics; whether they are is not looked at.

    Raises:
        ValueError: the noise is shorter than the state, so that there is no density.
    """
    dim, size = model.initial.dim, model.dynamics.noise_size
    if size < dim:
        raise ValueError(
            f"model.dynamics.noise_size: {size} came, at least {dim}, the size of the state, was "
            "expected; dynamics without a density need `bootstrap`"
        )
    return _Affine(model)


@law(preserves)
def local(model: StateSpace, method: Method = kalman) -> Move:
    """Returns the proposal that a Kalman method's update makes of the transition.

    With `kalman` it is p(next | state, readings), the locally optimal one; with `extended` or
    `unscented` its approximation for any sensor. Dynamics must be affine in their noise.

    Law: preserves; a proposal for `guided`, which weighs out what it adds.
    Paper: Doucet, Godsill and Andrieu (2000), section II.D.
    """
    return _Local(gaussian_transition(model), model, method)


class _Affine(eqx.Module):
    model: StateSpace

    def __call__(self, state: Float[Array, " d"], frame: Frame) -> GaussianMixture:
        def move(noise):
            return self.model.dynamics(state, noise, frame.elapsed, frame.input)

        rest = jnp.zeros(self.model.dynamics.noise_size, state.dtype)
        return gaussian(move(rest), triangularize(jax.jacfwd(move)(rest)))


class _Local(eqx.Module):
    transition: Move
    model: StateSpace
    method: Method

    def __call__(self, state: Float[Array, " d"], frame: Frame) -> GaussianMixture:
        return self.method.update(self.model, self.transition(state, frame), frame.readings)[0]


class _Step(eqx.Module):
    proposal: Move

    def __call__(self, key: Key, states: Float[Array, "n d"], frame: Frame) -> Float[Array, "n d"]:
        def one(key, state):
            return self.proposal(state, frame).sample(key)

        return jax.vmap(one)(jax.random.split(key, states.shape[0]), states)


class _Ratio(eqx.Module):
    model: StateSpace
    proposal: Move
    transition: Move

    def __call__(self, before, after, frame) -> Float[Array, " n"]:
        def one(before, after):
            log_likelihood = self.model.log_likelihood(after, frame.readings)
            log_transition = jnp.sum(self.transition(before, frame).log_prob(after))
            log_proposal = jnp.sum(self.proposal(before, frame).log_prob(after))
            return log_likelihood + log_transition - log_proposal

        return jax.vmap(one)(before, after)
