"""The Distribution Transformer: a mixture prior and readings to a mixture posterior.

After Whittle et al., "Distribution Transformers: Fast Approximate Bayesian Inference With
On-The-Fly Prior Adaptation" (arXiv 2502.02463), with outputs relative to the linearised update of
each prior component instead of absolute ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.extended import absorb
from bayesinf.kalman.filter import Info, Readings
from bayesinf.linalg import solve_lower
from bayesinf.programs.linearize import Quadratic
from bayesinf.programs.state_space import StateSpace
from bayesinf.transformers_gmm.layers import GAIN, Block, Corrections, Head
from bayesinf.transformers_gmm.look import look, look_features, look_size
from bayesinf.transformers_gmm.views import (
    View,
    component_features,
    component_size,
    gate,
    openings,
    view_size,
    views,
)
from bayesinf.types import Key

# The most that the logarithm of a reading's temperature may be.
TEMPERING = 6.0
# How far, in prior standard deviations, a component may move in one update.
REACH = 1e6
LOG_WEIGHT_FLOOR = -30.0


class DistributionTransformer(eqx.Module):
    """A network from (mixture prior, readings of any sensors) to a mixture posterior.

    Law: calibrated on the family it was trained on. For any weights, exact where the readings are
    linear-Gaussian in the state, the prior where there are none; equivariant to permutations of the
    components and to `x_i -> a_i x_i + b_i`, a_i > 0; invariant to permutations of the readings;
    finite for every finite input.

    Attributes:
        dim: dimension of the state.
        sensors: the names that have an embedding of their own; others run without.
        num_splits: how many components its filter parts before every update (`diversified`).
    """

    component_embedding: eqx.nn.MLP
    view_embedding: eqx.nn.MLP
    look_embedding: eqx.nn.MLP
    sensor_embeddings: Float[Array, "sensors width"]
    blocks: list[Block]
    last_block: Block
    head: Head
    last_head: Head
    view_head: eqx.nn.MLP
    dim: int = eqx.field(static=True)
    sensors: tuple[str, ...] = eqx.field(static=True)
    num_splits: int = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        sensors: tuple[str, ...],
        *,
        width: int = 48,
        num_blocks: int = 1,
        num_heads: int = 4,
        num_splits: int = 0,
    ):
        for name, count in (("dim", dim), ("num_blocks", num_blocks), ("num_heads", num_heads)):
            if count < 1:
                raise ValueError(f"{name}: {count} came, at least 1 was expected")
        if num_splits < 0:
            raise ValueError(f"num_splits: {num_splits} came, at least 0 was expected")
        if width % num_heads:
            raise ValueError(f"width: {width} came, a multiple of num_heads={num_heads} expected")
        keys = jax.random.split(key, 8 + num_blocks)

        def embedding(key, size):
            return eqx.nn.MLP(size, width, width, 1, jax.nn.gelu, key=key)

        self.component_embedding = embedding(keys[0], component_size(dim))
        self.view_embedding = embedding(keys[1], view_size(dim))
        self.look_embedding = embedding(keys[2], look_size(dim))
        self.sensor_embeddings = 0.1 * jax.random.normal(keys[3], (len(sensors), width))
        self.view_head = eqx.nn.MLP(2 * width, 1, width, 1, jax.nn.gelu, key=keys[4])
        self.head, self.last_head = Head(keys[5], dim, width), Head(keys[6], dim, width)
        self.last_block, *self.blocks = [Block(key, width, num_heads) for key in keys[7:]]
        self.dim, self.sensors, self.num_splits = dim, tuple(sensors), num_splits

    @property
    def width(self) -> int:
        """The length of a token."""
        return self.sensor_embeddings.shape[1]

    @property
    def num_blocks(self) -> int:
        """How many blocks come before the first update; one more comes before the second."""
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
        alive = ~jnp.isneginf(prior.log_weights)
        quadratics = [stack.quadratic for stack in stacks]
        opened = openings(stacks)

        sights = self._sights(readings, stacks)
        present = jnp.concatenate([reading.mask for reading in readings.values()])
        tokens = jax.vmap(self.component_embedding)(component_features(prior, stacks))
        seen = jnp.concatenate(sights, axis=1)
        for block in self.blocks:
            tokens = block(tokens, seen, present, alive)

        # first update: linearised, tempered, corrected
        temperatures = self._temperatures(tokens, sights, stacks)
        influence = jnp.concatenate(
            [
                temperature[..., None] * stack.influence
                for temperature, stack in zip(temperatures, stacks, strict=True)
            ],
            axis=1,
        ).sum(axis=1)
        # Tempering is relative to the best component, so it does not depend on units.
        levels = [_best_level(quadratic.log_density, alive) for quadratic in quadratics]
        corrections = jax.vmap(self.head)(tokens, opened, influence)

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

        means, chols, log_masses = jax.vmap(component, in_axes=(0, 0, 0, None, 0, 0))(
            prior.means, prior.chols, quadratics, levels, temperatures, corrections
        )
        first = GaussianMixture(_normalise(prior.log_weights + log_masses), means, chols)

        # second update: corrected by what is left between the first and its target
        tokens = tokens + jax.vmap(self.look_embedding)(_look(model, readings, prior, first))
        tokens = self.last_block(tokens, seen, present, alive)
        corrections = jax.vmap(self.last_head)(tokens, opened, influence)
        means, chols, log_weights = jax.vmap(Corrections.apply)(
            corrections, prior.chols, first.means, first.chols, first.log_weights
        )
        posterior = GaussianMixture(_normalise(log_weights), means, chols)
        exact = jax.vmap(lambda m, c, q: absorb(m, c, q)[2])(prior.means, prior.chols, quadratics)
        return posterior, Info(logsumexp(prior.log_weights + exact))

    def _sights(self, readings: Readings, stacks: list[View]) -> list[Float[Array, "k r width"]]:
        return [
            jax.vmap(jax.vmap(self.view_embedding))(stack.features) + self._embedding(name)
            for name, stack in zip(readings, stacks, strict=True)
        ]

    def _temperatures(self, tokens, sights, stacks: list[View]) -> list[Float[Array, "k r"]]:
        def temperature(token, sight, misfit):
            raw = jnp.tanh(GAIN * self.view_head(jnp.concatenate([token, sight]))[0])
            return jnp.exp(-gate(misfit) * TEMPERING * jax.nn.sigmoid(3 * raw - 3))

        per_view = jax.vmap(jax.vmap(temperature, in_axes=(None, 0, 0)))
        return [
            per_view(tokens, sight, stack.misfit)
            for sight, stack in zip(sights, stacks, strict=True)
        ]

    def _embedding(self, name: str) -> Float[Array, " width"]:
        if name in self.sensors:
            return self.sensor_embeddings[self.sensors.index(name)]
        return jnp.zeros(self.sensor_embeddings.shape[1])


def _look(
    model: StateSpace, readings: Readings, prior: GaussianMixture, first: GaussianMixture
) -> Float[Array, "k features"]:
    """Returns every component's second look at the readings. It is an input like the readings
    themselves, so no gradient flows through it; that halves what training costs."""
    looks = jax.vmap(lambda m, c, mean, chol: look(model, readings, m, c, mean, chol))(
        prior.means, prior.chols, first.means, first.chols
    )
    features = look_features(prior.log_weights, first.log_weights, looks)
    return jax.lax.stop_gradient(features)


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
