"""The bootstrap filter of a state-space model: particles move blindly and are then weighted."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from bayesinf.programs.feynman_kac import FeynmanKac
from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.types import Key, checked, law, preserves


@law(preserves)
def bootstrap(model: StateSpace, frames: Frame) -> FeynmanKac:
    """Returns the Feynman-Kac model whose moves are the dynamics and whose potentials are the
    likelihoods of the readings that are there; its mass is the density of the log.

    The noise of all particles is drawn with one key. A frame whose readings are all masked moves
    the particles and leaves their weights.

    Law: preserves; the joint law of states and readings, the latter fixed.
    Paper: Gordon, Salmond and Smith (1993).

    Raises:
        ValueError: the model or the frames do not fit.
    """
    check_frames(model, frames)
    return FeynmanKac(Init(model), _Move(model), _Likelihood(model), frames)


def check_frames(model: StateSpace, frames: Frame) -> None:
    """Raises `ValueError` for a model that is none, an unknown sensor or unequal lengths."""
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(model)):
        checked(model, "model")
    for name in frames.readings:
        model.sensor(name)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(frames)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"frames: leading axes {lengths} came, one time axis was expected")


class Init(eqx.Module):
    model: StateSpace

    def __call__(self, key: Key, num: int) -> Float[Array, "n d"]:
        return self.model.initial.sample(key, (num,))


class _Move(eqx.Module):
    model: StateSpace

    def __call__(self, key: Key, states: Float[Array, "n d"], frame: Frame) -> Float[Array, "n d"]:
        dynamics = self.model.dynamics
        noise = jax.random.normal(key, (states.shape[0], dynamics.noise_size), states.dtype)
        return jax.vmap(dynamics, (0, 0, None, None))(states, noise, frame.elapsed, frame.input)


class _Likelihood(eqx.Module):
    model: StateSpace

    def __call__(self, before, after, frame) -> Float[Array, " n"]:
        del before

        def read(states):
            return jax.vmap(self.model.log_likelihood, (0, None))(states, frame.readings)

        # Nothing is computed where nothing was read. A branch also keeps XLA from computing the
        # move anew in the likelihood.
        masks = [jnp.any(reading.mask) for reading in frame.readings.values()]
        there = jnp.any(jnp.asarray(masks, bool))
        return jax.lax.cond(there, read, lambda states: jnp.zeros_like(states[:, 0]), after)
