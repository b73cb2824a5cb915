"""Elliptical slice sampling, for targets with a Gaussian prior."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PyTree

from bayesinf.linalg import product, solve_lower
from bayesinf.mcmc.state import State, flatten, init_state, select
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law

# After so many shrinkings the bracket is the current point to rounding, and the chain stays.
MAX_SHRINKS = 100


class SliceInfo(NamedTuple):
    """What a slice step reports.

    Attributes:
        acceptance: 1, or 0 where no point of the slice was found and the chain stayed.
        invalid: whether the density was NaN somewhere on the way; such points are off the slice.
        num_evaluations: densities evaluated.
    """

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    num_evaluations: Int[Array, ""]


class _Bracket(NamedTuple):
    low: Float[Array, ""]
    high: Float[Array, ""]
    proposed: State
    found: Bool[Array, ""]
    invalid: Bool[Array, ""]
    shrinks: Int[Array, ""]


@law(invariant)
class EllipticalSlice(eqx.Module):
    """Moves on the ellipse through x and a draw of the prior, to a point above a random level.

    The likelihood is the target's density relative to the prior, so that the kernel is right at
    any temperature.

    Law: invariant. Paper: Murray, Adams and MacKay (2010), figure 2.

    Attributes:
        mean, chol: the Gaussian prior, N(mean, chol chol^T), in flattened coordinates.
    """

    mean: Float[Array, " d"]
    chol: Float[Array, "d d"]

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, SliceInfo]:
        noise_key, level_key, angle_key, shrink_key = jax.random.split(key, 4)
        flat, unflatten = flatten(state.position)
        x = flat - self.mean
        other = product(self.chol, jax.random.normal(noise_key, x.shape, x.dtype))

        def log_likelihood(state: State) -> Float[Array, ""]:
            whitened = solve_lower(self.chol, flatten(state.position)[0] - self.mean)
            return target.combine(state.parts) + jnp.sum(whitened**2) / 2

        log_uniform = jnp.log(jax.random.uniform(level_key, (), x.dtype))
        level = log_likelihood(state) + log_uniform

        def at(angle, low, high, invalid, shrinks) -> _Bracket:
            y = unflatten(self.mean + x * jnp.cos(angle) + other * jnp.sin(angle))
            proposed = State(y, target.parts(y))
            value = log_likelihood(proposed)
            # A comparison with NaN is false.
            return _Bracket(
                jnp.where(angle < 0, angle, low),
                jnp.where(angle < 0, high, angle),
                proposed,
                value > level,
                invalid | jnp.isnan(value),
                shrinks,
            )

        def shrink(bracket: _Bracket) -> _Bracket:
            key = jax.random.fold_in(shrink_key, bracket.shrinks)
            low, high = bracket.low, bracket.high
            angle = jax.random.uniform(key, (), x.dtype, low, high)
            return at(angle, low, high, bracket.invalid, bracket.shrinks + 1)

        angle = jax.random.uniform(angle_key, (), x.dtype, 0, 2 * jnp.pi)
        first = at(angle, angle - 2 * jnp.pi, angle, jnp.zeros((), bool), jnp.zeros((), int))
        last = jax.lax.while_loop(
            lambda bracket: ~bracket.found & (bracket.shrinks < MAX_SHRINKS), shrink, first
        )
        state = select(last.found, last.proposed, state)
        return state, SliceInfo(last.found.astype(x.dtype), last.invalid, last.shrinks + 1)
