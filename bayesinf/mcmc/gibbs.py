"""Gibbs steps: exact draws of one entry of a position given the rest."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree, Shaped

from bayesinf.mcmc.blocks import rest_of
from bayesinf.mcmc.state import Info, State, init_state, select
from bayesinf.programs.target import Target
from bayesinf.types import Key, invariant, law


@law(invariant)
class Gibbs(eqx.Module):
    """Draws an entry of the position from its conditional, for use in `blocks`.

    Law: invariant, for the target whose conditional it is: at another temperature the conditional
    is another. Paper: Geman and Geman (1984).

    Attributes:
        conditional: (key, rest) to an exact draw of the entry; `rest` holds the other entries.

    Errors: outside of `blocks` there is no rest, and `step` raises `ValueError`.
    """

    conditional: Callable[[Key, PyTree], PyTree]

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        y = self.conditional(key, rest_of(target, "Gibbs(conditional)"))
        drawn = State(y, target.parts(y))
        log_density = target.combine(drawn.parts)
        invalid = jnp.isnan(log_density)
        return select(invalid, state, drawn), Info(jnp.where(invalid, 0, 1.0), invalid)


@law(invariant)
class DiscreteGibbs(eqx.Module):
    """Draws each element of an array in turn from its conditional, by enumeration of its values.

    A sweep evaluates the density at every value of every element.

    Law: invariant. Paper: Geman and Geman (1984).

    Attributes:
        values: what an element may be, of the position's dtype. The position is one array.
    """

    values: Shaped[Array, " k"] = eqx.field(converter=jnp.asarray)

    def init(self, target: Target, position: PyTree) -> State:
        return init_state(target, position)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        shape = jnp.shape(state.position)

        def draw(state: State, now):
            index, key = now
            flat = jnp.ravel(state.position)
            positions = jax.vmap(lambda value: flat.at[index].set(value).reshape(shape))(
                self.values
            )
            parts = jax.vmap(target.parts)(positions)
            log_densities = jax.vmap(target.combine)(parts)
            invalid = jnp.isnan(log_densities)
            logits = jnp.where(invalid, -jnp.inf, log_densities)
            chosen = jax.random.categorical(key, logits)
            possible = jnp.any(logits > -jnp.inf)
            drawn = State(positions[chosen], parts[chosen])
            return select(possible, drawn, state), (possible, jnp.any(invalid))

        size = state.position.size
        keys = jax.random.split(key, size)
        state, (possible, invalid) = jax.lax.scan(draw, state, (jnp.arange(size), keys))
        acceptance = jnp.mean(jnp.where(possible, 1.0, 0))
        return state, Info(acceptance, jnp.any(invalid))
