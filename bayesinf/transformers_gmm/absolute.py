"""The Distribution Transformer in the paper's form: absolute outputs from raw values.

Whittle et al. (arXiv 2502.02463), sec. 3 and appendix D.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.filter import Info, Readings
from bayesinf.programs.state_space import Reading, StateSpace
from bayesinf.transformers_gmm.network import LOG_WEIGHT_FLOOR, Block
from bayesinf.types import Key

# A posterior's standard deviations lie between exp(-12) and exp(12) in the units of the state.
LOG_SCALE_BOUND = 12.0


class AbsoluteTransformer(eqx.Module):
    """A network from (mixture prior, readings of known sources) to a mixture posterior.

    The component embedding (log weight, mean, log diagonal and lower entries of the factor), one
    embedding a source (App. D), the decoder and the un-embedding to a mixture (sec. 3) are the
    paper's; the blocks are those of `DistributionTransformer`, pre-norm, with a token that is
    always there, so that all readings may be missing. It never asks for a density, so it serves
    simulators too.

    Law: calibrated on the family it was trained on, and nothing else. What it gives up against
    `DistributionTransformer`: it is exact nowhere, not even without readings; another unit or
    origin of the state is another problem to it; it knows only the sources and the number of
    components it was built for. It keeps the equivariance to permutations of the components, the
    invariance to permutations of the readings, and outputs that are mixtures for finite inputs.

    Attributes:
        dim: dimension of the state.
        num_components: the number of components of its priors and posteriors.
    """

    # It is exact nowhere, so the rule by which components are parted does not apply.
    num_splits: ClassVar[int] = 0
    component_embedding: eqx.nn.MLP
    source_embeddings: dict[str, eqx.nn.MLP]
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    unembedding: eqx.nn.MLP
    dim: int = eqx.field(static=True)
    num_components: int = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        sizes: dict[str, int],
        num_components: int,
        *,
        width: int = 64,
        num_blocks: int = 6,
        num_heads: int = 8,
    ):
        counts = {"dim": dim, "num_components": num_components, "num_blocks": num_blocks}
        sources = {f"sizes[{name!r}]": size for name, size in sizes.items()}
        for name, count in {**counts, "num_heads": num_heads, **sources}.items():
            if count < 1:
                raise ValueError(f"{name}: {count} came, at least 1 was expected")
        if width < 1 or width % num_heads:
            raise ValueError(f"width: {width} came, a multiple of num_heads={num_heads} expected")
        if not sizes:
            raise ValueError("sizes: no source came, at least one was expected")
        component_key, out_key, *keys = jax.random.split(key, 2 + len(sizes) + num_blocks)
        size = 1 + dim + dim * (dim + 1) // 2
        gelu = jax.nn.gelu
        self.component_embedding = eqx.nn.MLP(size, width, width, 1, gelu, key=component_key)
        self.source_embeddings = {
            name: eqx.nn.MLP(sizes[name], width, width, 1, gelu, key=source_key)
            for name, source_key in zip(sizes, keys[: len(sizes)], strict=True)
        }
        self.blocks = [Block(block_key, width, num_heads) for block_key in keys[len(sizes) :]]
        self.norm = eqx.nn.LayerNorm(width)
        self.unembedding = eqx.nn.MLP(width, size, width, 1, gelu, key=out_key)
        self.dim, self.num_components = dim, num_components

    def __call__(
        self, model: StateSpace, prior: GaussianMixture, readings: Readings
    ) -> GaussianMixture:
        """Returns the posterior mixture, with as many components as the prior."""
        return self.update(model, prior, readings)[0]

    def update(
        self, model: StateSpace, prior: GaussianMixture, readings: Readings
    ) -> tuple[GaussianMixture, Info]:
        """Returns the posterior, and NaN as the log evidence, which this form cannot know.

        The model is part of the call that all methods share; it is not looked at.

        Raises:
            ValueError: the prior's shape, a source's name or its size is not the network's.
        """
        del model
        shape = (self.num_components, self.dim)
        if prior.means.shape != shape:
            raise ValueError(
                f"prior: means of shape {prior.means.shape} came, the network was built for {shape}"
            )
        width = self.norm.shape[0]
        sights, present = [jnp.zeros((0, width), prior.means.dtype)], [jnp.zeros(0, bool)]
        for name, reading in readings.items():
            sights.append(jax.vmap(self._source(name))(self._raw(name, reading)))
            present.append(reading.mask)
        # Every component sees the same.
        shared = jnp.concatenate(sights)
        shared = jnp.broadcast_to(shared, (self.num_components, *shared.shape))
        alive = ~jnp.isneginf(prior.log_weights)
        tokens = jax.vmap(self.component_embedding)(_parameters(prior))
        for block in self.blocks:
            tokens = block(tokens, shared, jnp.concatenate(present), alive)
        raw = jax.vmap(lambda token: self.unembedding(self.norm(token)))(tokens)
        # An empty slot stays empty.
        logits = jnp.where(alive, raw[:, 0], -jnp.inf)
        means, chols = jax.vmap(self._component)(raw[:, 1:])
        posterior = GaussianMixture(jax.nn.log_softmax(logits), means, chols)
        return posterior, Info(jnp.full((), jnp.nan, prior.means.dtype))

    def _source(self, name: str) -> eqx.nn.MLP:
        if name not in self.source_embeddings:
            known = ", ".join(self.source_embeddings)
            raise ValueError(f"readings: source {name!r} came, one of {known} was expected")
        return self.source_embeddings[name]

    def _raw(self, name: str, reading: Reading) -> Float[Array, "r size"]:
        """Returns value and flattened context of every reading, 0 where it is missing."""
        number = reading.mask.shape[0]
        leaves = jax.tree.leaves((reading.value, reading.context))
        raw = jnp.concatenate([leaf.reshape(number, -1) for leaf in leaves], axis=1)
        size = self._source(name).in_size
        if raw.shape[1] != size:
            raise ValueError(
                f"readings[{name!r}]: {raw.shape[1]} numbers in value and context came, "
                f"the network was built for {size}"
            )
        return jnp.where(reading.mask[:, None], raw, 0)

    def _component(self, raw: Float[Array, " out"]) -> tuple[Array, Array]:
        """Returns mean and Cholesky factor from their numbers."""
        mean, log_scale, lower = jnp.split(raw, [self.dim, 2 * self.dim])
        log_scale = LOG_SCALE_BOUND * jnp.tanh(log_scale / LOG_SCALE_BOUND)
        chol = jnp.diag(jnp.exp(log_scale))
        return mean, chol.at[np.tril_indices(self.dim, -1)].set(lower)


def _parameters(prior: GaussianMixture) -> Float[Array, "k size"]:
    """Returns the numbers of every component as they stand; empty slots have the least weight."""
    log_weights = jnp.maximum(prior.log_weights, LOG_WEIGHT_FLOOR)
    log_scales = jnp.log(jnp.diagonal(prior.chols, axis1=1, axis2=2))
    rows, columns = np.tril_indices(prior.dim, -1)
    parts = [log_weights[:, None], prior.means, log_scales, prior.chols[:, rows, columns]]
    return jnp.concatenate(parts, axis=1)
