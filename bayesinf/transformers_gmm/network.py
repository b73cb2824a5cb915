"""The Distribution Transformer: a mixture prior and readings to a mixture posterior.

After Whittle et al., "Distribution Transformers: Fast Approximate Bayesian Inference With
On-The-Fly Prior Adaptation" (arXiv 2502.02463), with outputs relative to the linearised update of
each prior component instead of absolute ones.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.extended import absorb
from bayesinf.kalman.filter import Info, Readings
from bayesinf.linalg import solve_lower
from bayesinf.programs.linearize import Quadratic
from bayesinf.programs.state_space import StateSpace
from bayesinf.transformers_gmm.views import (
    View,
    component_features,
    component_size,
    gate,
    root,
    view_size,
    views,
)
from bayesinf.types import Key

# How far the heads may reach: whitened shift, log scale, log weight, log of the tempering.
SHIFT, LOG_SCALE, LOG_WEIGHT, TEMPERING = 2.0, 1.2, 4.0, 6.0
# By how much, in logs, an update may widen a component beyond its prior. Without a bound a filter
# that has lost its target blows up by a power of the number of steps.
GROWTH = 0.1
# How far, in prior standard deviations, a component may move in one update.
REACH = 1e6
LOG_WEIGHT_FLOOR = -30.0


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
        """Returns the corrected component; each axis may take back what the readings shrank."""
        room = jnp.log(jnp.diagonal(prior_chol) / jnp.diagonal(chol)) + GROWTH
        room = jnp.clip(room, 0, LOG_SCALE)
        scale = jnp.exp(jnp.where(self.log_scale > 0, room, LOG_SCALE) * self.log_scale)
        stretch = jnp.diag(scale) + (room / LOG_SCALE)[:, None] * self.shear
        return mean + chol @ self.shift, chol @ stretch, log_mass + self.log_weight


class DistributionTransformer(eqx.Module):
    """A network from (mixture prior, readings of any sensors) to a mixture posterior.

    Law: calibrated on the family it was trained on. For any weights, exact where the readings are
    linear-Gaussian in the state, the prior where there are none; equivariant to permutations of the
    components and to `x_i -> a_i x_i + b_i`, a_i > 0; invariant to permutations of the readings;
    finite for every finite input.

    Attributes:
        dim: dimension of the state.
        sensors: the names that have an embedding of their own; others run without.
    """

    component_embedding: eqx.nn.MLP
    view_embedding: eqx.nn.MLP
    sensor_embeddings: Float[Array, "sensors width"]
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    component_head: eqx.nn.Linear
    view_head: eqx.nn.MLP
    dim: int = eqx.field(static=True)
    sensors: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        sensors: tuple[str, ...],
        *,
        width: int = 48,
        num_blocks: int = 2,
        num_heads: int = 4,
    ):
        for name, count in (("dim", dim), ("num_blocks", num_blocks), ("num_heads", num_heads)):
            if count < 1:
                raise ValueError(f"{name}: {count} came, at least 1 was expected")
        if width % num_heads:
            raise ValueError(f"width: {width} came, a multiple of num_heads={num_heads} expected")
        keys = jax.random.split(key, 5 + num_blocks)
        gelu = jax.nn.gelu
        self.component_embedding = eqx.nn.MLP(
            component_size(dim), width, width, 1, gelu, key=keys[0]
        )
        self.view_embedding = eqx.nn.MLP(view_size(dim), width, width, 1, gelu, key=keys[1])
        self.sensor_embeddings = 0.1 * jax.random.normal(keys[2], (len(sensors), width))
        self.blocks = [Block(block_key, width, num_heads) for block_key in keys[5:]]
        self.norm = eqx.nn.LayerNorm(width)
        head = eqx.nn.Linear(width, dim + dim * (dim + 1) // 2 + 1, key=keys[3])
        # Small at the start: training sets out from the linearised update.
        self.component_head = eqx.tree_at(lambda h: h.weight, head, 0.01 * head.weight)
        self.view_head = eqx.nn.MLP(2 * width, 1, width, 1, gelu, key=keys[4])
        self.dim, self.sensors = dim, tuple(sensors)

    @property
    def width(self) -> int:
        """The length of a token."""
        return self.sensor_embeddings.shape[1]

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def num_heads(self) -> int:
        return self.blocks[0].look.num_heads

    def __call__(
        self, model: StateSpace, prior: GaussianMixture, readings: Readings
    ) -> GaussianMixture:
        """Returns the posterior mixture, with as many components as the prior."""
        return self.update(model, prior, readings)[0]

    def update(
        self, model: StateSpace, prior: GaussianMixture, readings: Readings
    ) -> tuple[GaussianMixture, Info]:
        """Returns the posterior and the log evidence of the linearised update.

        Raises:
            ValueError: the prior's dimension is not the network's.
        """
        if prior.dim != self.dim:
            raise ValueError(
                f"prior: dimension {prior.dim} came, the network was built for {self.dim}"
            )
        if not readings:
            return prior, Info(jnp.zeros((), prior.means.dtype))
        stacks = jax.vmap(lambda mean, chol: views(model, readings, mean, chol))(
            prior.means, prior.chols
        )
        temperatures, corrections = self._read(prior, readings, stacks)

        def component(mean, chol, quadratics, levels, temperatures, corrections):
            tempered = [
                _temper(quadratic, level, temperature)
                for quadratic, level, temperature in zip(
                    quadratics, levels, temperatures, strict=True
                )
            ]
            posterior, posterior_chol, log_mass = absorb(mean, chol, tempered)
            posterior = mean + _within_reach(chol, posterior - mean)
            return corrections.apply(chol, posterior, posterior_chol, log_mass)

        quadratics = [stack.quadratic for stack in stacks]
        # Tempering is relative to the best component, so it does not depend on units.
        alive = ~jnp.isneginf(prior.log_weights)
        levels = [_best_level(quadratic.log_density, alive) for quadratic in quadratics]
        means, chols, log_masses = jax.vmap(component, in_axes=(0, 0, 0, None, 0, 0))(
            prior.means, prior.chols, quadratics, levels, temperatures, corrections
        )
        log_weights = _normalise(prior.log_weights + log_masses)
        exact = jax.vmap(lambda m, c, q: absorb(m, c, q)[2])(prior.means, prior.chols, quadratics)
        info = Info(logsumexp(prior.log_weights + exact))
        return GaussianMixture(log_weights, means, chols), info

    def _read(
        self, prior: GaussianMixture, readings: Readings, stacks: list[View]
    ) -> tuple[list[Float[Array, "k r"]], Corrections]:
        """Returns the temperature of every view and the corrections of every component."""
        sights = [
            jax.vmap(jax.vmap(self.view_embedding))(stack.features) + self._embedding(name)
            for name, stack in zip(readings, stacks, strict=True)
        ]
        present = jnp.concatenate([reading.mask for reading in readings.values()])
        alive = ~jnp.isneginf(prior.log_weights)
        tokens = jax.vmap(self.component_embedding)(component_features(prior, stacks))
        for block in self.blocks:
            tokens = block(tokens, jnp.concatenate(sights, axis=1), present, alive)
        tokens = jax.vmap(self.norm)(tokens)

        def temperature(token, sight, misfit):
            raw = self.view_head(jnp.concatenate([token, sight]))[0]
            return jnp.exp(-gate(misfit) * TEMPERING * jax.nn.sigmoid(3 * jnp.tanh(raw) - 3))

        per_view = jax.vmap(jax.vmap(temperature, in_axes=(None, 0, 0)))
        temperatures = [
            per_view(tokens, sight, stack.misfit)
            for sight, stack in zip(sights, stacks, strict=True)
        ]
        misfits = jnp.concatenate([stack.misfit for stack in stacks], axis=1)
        misfit = root(jnp.sum(misfits**2, axis=1))
        raw = jnp.tanh(jax.vmap(self.component_head)(tokens)) * gate(misfit)[:, None]
        return temperatures, jax.vmap(self._corrections)(raw)

    def _corrections(self, raw: Float[Array, " out"]) -> Corrections:
        shift, log_scale, shear, log_weight = jnp.split(raw, [self.dim, 2 * self.dim, raw.size - 1])
        lower = jnp.zeros((self.dim, self.dim), raw.dtype)
        lower = lower.at[np.tril_indices(self.dim, -1)].set(shear)
        return Corrections(SHIFT * shift, log_scale, lower, LOG_WEIGHT * log_weight[0])

    def _embedding(self, name: str) -> Float[Array, " width"]:
        if name in self.sensors:
            return self.sensor_embeddings[self.sensors.index(name)]
        return jnp.zeros(self.sensor_embeddings.shape[1])


def _temper(quadratic: Quadratic, level: Float[Array, " r"], temperature: Float[Array, " r"]):
    """Returns the quadratics of the likelihoods over their best level, to the power temperature."""
    return Quadratic(
        temperature * (quadratic.log_density - level),
        temperature[:, None] * quadratic.score,
        jnp.sqrt(temperature)[:, None, None] * quadratic.factor,
    )


def _within_reach(chol: Float[Array, "d d"], step: Float[Array, " d"]) -> Float[Array, " d"]:
    """Returns the step, cut to `REACH` of the prior's standard deviations."""
    length = jnp.max(jnp.abs(solve_lower(chol, step)))
    return step * (REACH / jnp.maximum(length, REACH))


def _best_level(log_density: Float[Array, "k r"], alive: Bool[Array, " k"]) -> Float[Array, " r"]:
    return jnp.max(jnp.where(alive[:, None], log_density, -jnp.inf), axis=0)


def _normalise(log_weights: Float[Array, " k"]) -> Float[Array, " k"]:
    """Returns normalised log weights; a living component never falls below the floor."""
    log_weights = log_weights - jnp.max(log_weights)
    floored = jnp.maximum(log_weights, LOG_WEIGHT_FLOOR)
    floored = jnp.where(jnp.isneginf(log_weights), -jnp.inf, floored)
    return floored - logsumexp(floored)
