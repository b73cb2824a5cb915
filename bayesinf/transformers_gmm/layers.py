"""The layers of the Distribution Transformer: how components look, and what they then correct."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from bayesinf.linalg import product
from bayesinf.transformers_gmm.views import root
from bayesinf.types import Key

# How far the heads may reach: whitened shift, log scale, log weight.
SHIFT, LOG_SCALE, LOG_WEIGHT = 2.0, 1.2, 4.0
# What a head's layer says counts by so much. A filter does not survive corrections that are a
# little off at every step, so a head has to move slowly while the rest of the network learns.
GAIN = 0.1


class Block(eqx.Module):
    """Components look at their own views, then at each other, then think (pre-norm)."""

    norms: list[eqx.nn.LayerNorm]
    look: eqx.nn.MultiheadAttention
    talk: eqx.nn.MultiheadAttention
    think: eqx.nn.MLP
    nothing: Float[Array, " width"]

    def __init__(self, key: Key, width: int, num_heads: int):
        look_key, talk_key, think_key = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(3)]
        self.look = eqx.nn.MultiheadAttention(num_heads, width, key=look_key)
        self.talk = eqx.nn.MultiheadAttention(num_heads, width, key=talk_key)
        self.think = eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=think_key)
        self.nothing = jnp.zeros(width)

    def __call__(
        self,
        tokens: Float[Array, "k width"],
        sights: Float[Array, "k r width"],
        present: Bool[Array, " r"],
        alive: Bool[Array, " k"],
    ) -> Float[Array, "k width"]:
        look_norm, talk_norm, think_norm = self.norms
        # One slot that is always there, so that a component without readings sees something.
        seen = jnp.concatenate([jnp.ones(1, bool), present])

        def look(token, sights):
            memory = jnp.concatenate([self.nothing[None], sights])
            return self.look(look_norm(token)[None], memory, memory, mask=seen[None])[0]

        tokens = tokens + jax.vmap(look)(tokens, sights)
        normed = jax.vmap(talk_norm)(tokens)
        mask = jnp.broadcast_to(alive, (alive.size, alive.size))
        tokens = tokens + self.talk(normed, normed, normed, mask=mask)
        return tokens + jax.vmap(lambda token: self.think(think_norm(token)))(tokens)


class Corrections(NamedTuple):
    """What the network adds to one component's linearised update; zero leaves it as it is."""

    shift: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    shear: Float[Array, "d d"]
    log_weight: Float[Array, ""]

    def apply(
        self,
        prior_chol: Float[Array, "d d"],
        mean: Float[Array, " d"],
        chol: Float[Array, "d d"],
        log_mass: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, ""]]:
        """Returns the corrected component; each axis may take back what the readings shrank.

        The factor's diagonal never exceeds the prior's. One step gains from a little growth
        wherever a belief is too sure of itself, but over a log it compounds, and the filter ends
        knowing nothing.
        """
        room = jnp.clip(jnp.log(jnp.diagonal(prior_chol) / jnp.diagonal(chol)), 0, LOG_SCALE)
        scale = jnp.exp(jnp.where(self.log_scale > 0, room, LOG_SCALE) * self.log_scale)
        stretch = jnp.diag(scale) + (room / LOG_SCALE)[:, None] * self.shear
        return (
            mean + product(chol, self.shift),
            product(chol, stretch),
            log_mass + self.log_weight,
        )


class Head(eqx.Module):
    """From a component's token to its corrections, none where the gate is shut.

    Along each axis they reach as far as the readings' influence there: a posterior component keeps
    its prior's law of what the readings do not depend on, given what they do.
    """

    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __init__(self, key: Key, dim: int, width: int):
        self.norm = eqx.nn.LayerNorm(width)
        linear = eqx.nn.Linear(width, dim + dim * (dim + 1) // 2 + 1, key=key)
        # Small at the start: training sets out from the linearised update.
        small = (0.1 * linear.weight, jnp.zeros(linear.weight.shape[0]))
        self.linear = eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, small)

    def __call__(
        self,
        token: Float[Array, " width"],
        opening: Float[Array, ""],
        influence: Float[Array, " d"],
    ) -> Corrections:
        raw = opening * jnp.tanh(GAIN * self.linear(self.norm(token)))
        dim = influence.size
        shift, log_scale, shear, log_weight = jnp.split(raw, [dim, 2 * dim, raw.size - 1])
        lower = jnp.zeros((dim, dim), raw.dtype).at[np.tril_indices(dim, -1)].set(shear)
        # In proportion to the influence, not its root: what corrections add up to over many weak
        # readings then stays bounded, for the information that counters them grows as fast.
        reach = influence / (1 + influence)
        between = root(reach)
        return Corrections(
            SHIFT * reach * shift,
            reach * log_scale,
            between[:, None] * lower * between,
            LOG_WEIGHT * jnp.max(reach) * log_weight[0],
        )
