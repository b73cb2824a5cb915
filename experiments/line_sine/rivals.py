"""The rivals, each a network that takes a support and predicts a Gaussian at every query input.

All see inputs and outputs in units of `REACH`, and learn by the log density of a task's left-out
rows, given 1 to 10 of them.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from tasks import MAX_SHOTS, REACH, Prediction

from bayesinf.linalg import cholesky, solve_lower
from bayesinf.meta_niw.episodes import Episode
from bayesinf.types import Key


def gaussian(mean: Float[Array, " q"], sd: Float[Array, " q"]) -> Prediction:
    """Returns the prediction of one Gaussian at every input."""
    return Prediction(jnp.zeros_like(mean)[:, None], mean[:, None], sd[:, None])


def layers(key: Key, sizes: tuple[int, ...], rescale: float = 1.0) -> list[eqx.nn.Linear]:
    """Returns dense layers; weights are those of Glorot, the first layer's times `rescale`."""
    keys = jax.random.split(key, len(sizes) - 1)
    made = []
    for index, (key, wide, high) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True)):
        w_key, b_key = jax.random.split(key)
        spread = rescale if index == 0 else 1.0
        weight = spread * jax.nn.initializers.glorot_normal()(w_key, (high, wide))
        bias = spread * jax.random.uniform(b_key, (high,), minval=-1, maxval=1)
        linear = eqx.nn.Linear(wide, high, key=w_key)
        bias = bias if index == 0 else jnp.zeros(high)
        made.append(eqx.tree_at(lambda at: (at.weight, at.bias), linear, (weight, bias)))
    return made


def forward(stack: list[eqx.nn.Linear], x: Float[Array, " i"], activation) -> Float[Array, " o"]:
    """Returns the last layer's values, with the activation between layers."""
    for linear in stack[:-1]:
        x = activation(linear(x))
    return stack[-1](x)


class NeuralProcess(eqx.Module):
    """The conditional neural process (Garnelo et al. 2018): rows are encoded, averaged, decoded."""

    encoder: list[eqx.nn.Linear]
    decoder: list[eqx.nn.Linear]

    def __init__(self, key: Key, width: int):
        encoder_key, decoder_key = jax.random.split(key)
        self.encoder = layers(encoder_key, (2, width, width, width))
        self.decoder = layers(decoder_key, (1 + width, width, width, 2))

    def __call__(self, support: Episode, x: Float[Array, " q"]) -> Prediction:
        rows = jnp.stack([support.x, support.y], axis=1) / REACH
        codes = jax.vmap(lambda row: forward(self.encoder, row, jax.nn.gelu))(rows)
        there = support.mask[:, None]
        code = jnp.sum(jnp.where(there, codes, 0), axis=0) / jnp.maximum(jnp.sum(there), 1)

        def decode(x):
            return forward(self.decoder, jnp.append(code, x / REACH), jax.nn.gelu)

        mean, raw = jax.vmap(decode)(x).T
        return gaussian(REACH * mean, 0.05 + REACH * jax.nn.softplus(raw - 1))


class Maml(eqx.Module):
    """MAML (Finn et al. 2017) with learned inner rates, one a leaf (Li et al. 2017).

    Attributes:
        stack: its outputs are the mean and an excess log sd, which the inner loss does not see.
        log_rates: of the inner gradient steps.
        log_sd: of the noise, one for each number of shots.
        num_steps: how many inner steps.
        relu: whether hidden units are rectified; else tanh.
        varies: whether the sd depends on the input and the adapted trunk.
    """

    stack: list[eqx.nn.Linear]
    log_rates: list[eqx.nn.Linear]
    log_sd: Float[Array, " shots"]
    num_steps: int = eqx.field(static=True)
    relu: bool = eqx.field(static=True)
    varies: bool = eqx.field(static=True)

    def __init__(self, key: Key, width: int, rate: float, num_steps: int, relu, varies):
        rescale = 1.0 if relu else 3.0
        self.stack = layers(key, (1, width, width, 2), rescale)
        self.log_rates = jax.tree.map(lambda leaf: jnp.log(rate), self.stack)
        self.log_sd = jnp.zeros(MAX_SHOTS)
        self.num_steps, self.relu, self.varies = num_steps, relu, varies

    def __call__(self, support: Episode, x: Float[Array, " q"]) -> Prediction:
        activation = jax.nn.relu if self.relu else jnp.tanh
        shots = jnp.maximum(jnp.sum(support.mask), 1)

        def outputs(stack, x):
            return jax.vmap(lambda x: forward(stack, x[None] / REACH, activation))(x)

        def loss(stack):
            residual = support.y / REACH - outputs(stack, support.x)[:, 0]
            return jnp.sum(jnp.where(support.mask, residual**2, 0)) / shots

        def step(stack, _):
            move = jax.tree.map(
                lambda leaf, slope, log_rate: leaf - jnp.exp(log_rate) * slope,
                stack,
                jax.grad(loss)(stack),
                self.log_rates,
            )
            return move, None

        stack, _ = jax.lax.scan(step, self.stack, None, length=self.num_steps)
        mean, excess = outputs(stack, x).T
        log_sd = self.log_sd[shots - 1] + (excess if self.varies else jnp.zeros_like(excess))
        return gaussian(REACH * mean, 0.05 + jnp.exp(log_sd))


class LastLayer(eqx.Module):
    """ALPaCA (Harrison et al. 2018): exact Bayesian regression on the features of a network.

    Attributes:
        stack: the features' network.
        loc: mean of the last layer's weights over tasks.
        root: their covariance is `root root^T`.
        log_noise: log sd of the noise.
    """

    stack: list[eqx.nn.Linear]
    loc: Float[Array, " d"]
    root: Float[Array, "d d"]
    log_noise: Float[Array, ""]

    def __init__(self, key: Key, width: int, rescale: float):
        self.stack = layers(key, (1, width, width), rescale)
        self.loc = jnp.zeros(width + 1)
        self.root = 2 * jnp.eye(width + 1) / jnp.sqrt(width)
        self.log_noise = jnp.log(0.5)

    def features(self, x: Float[Array, " q"]) -> Float[Array, "q d"]:
        """Returns the last hidden layer and a one."""

        def one(x):
            return jnp.append(jnp.tanh(forward(self.stack, x[None] / REACH, jnp.tanh)), 1.0)

        return jax.vmap(one)(x)

    def __call__(self, support: Episode, x: Float[Array, " q"]) -> Prediction:
        variance = jnp.exp(2 * self.log_noise)
        rows, at = self.features(support.x), self.features(x)
        residual = jnp.where(support.mask, support.y - rows @ self.loc, 0)
        spread = jnp.where(support.mask[:, None], rows @ self.root, 0)
        chol = cholesky(spread @ spread.T + variance * jnp.eye(len(residual)))
        cross = solve_lower(chol, spread @ (at @ self.root).T)
        mean = at @ self.loc + cross.T @ solve_lower(chol, residual)
        prior = jnp.sum((at @ self.root) ** 2, axis=1)
        gained = jnp.sum(cross**2, axis=0)
        return gaussian(mean, jnp.sqrt(jnp.maximum(prior - gained, 0) + variance))
