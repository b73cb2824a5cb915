"""A prior that is given by its parameters: one family, learned when the network is trained.

Whittle et al. (arXiv 2502.02463), section 3 and appendix D.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.transformers_gmm.jets import Basis
from bayesinf.transformers_gmm.layers import Block
from bayesinf.types import Key

# How far a component's log scales, in the units of the frame, may be from 0.
LOG_SCALE_BOUND = 8.0


class ParametricTransformer(eqx.Module):
    """A network from (a prior's parameters, readings) to mixtures for the prior and the posterior.

    The parameters are embedded and turned into one token a component, each by a network of its own;
    these tokens look at the readings and at each other; one un-embedding reads the prior's mixture
    from the tokens before and the posterior's from those after (the paper's prior loss trains the
    first). It never asks for a density, so it serves simulators too.

    Law: calibrated on the family it was trained on, and nothing else. For any weights, invariant to
    permutations of the readings and blind to those that the mask leaves out, so that data sets may
    have any size; the outputs are mixtures for finite inputs.

    Attributes:
        dim: dimension of x.
        num_components: k.
    """

    embedding: eqx.nn.MLP
    conversions: eqx.nn.MLP
    reading_embedding: eqx.nn.MLP
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    unembedding: eqx.nn.MLP
    base: Float[Array, "k size"]
    dim: int = eqx.field(static=True)
    num_components: int = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        num_parameters: int,
        reading_size: int,
        num_components: int,
        *,
        width: int = 32,
        num_blocks: int = 2,
        num_heads: int = 4,
    ):
        counts = {
            "dim": dim,
            "num_parameters": num_parameters,
            "reading_size": reading_size,
            "num_components": num_components,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}: {count} came, at least 1 was expected")
        if width < 1 or width % num_heads:
            raise ValueError(f"width: {width} came, a multiple of num_heads={num_heads} expected")
        keys = jax.random.split(key, 5 + num_blocks)
        size = 1 + dim + dim * (dim + 1) // 2

        def mlp(key, inputs, outputs):
            return eqx.nn.MLP(inputs, outputs, width, 1, jax.nn.gelu, key=key)

        self.embedding = mlp(keys[0], num_parameters, width)
        self.conversions = eqx.filter_vmap(lambda key: mlp(key, width, width))(
            jax.random.split(keys[1], num_components)
        )
        self.reading_embedding = mlp(keys[2], reading_size, width)
        self.unembedding = mlp(keys[3], width, size)
        self.norm = eqx.nn.LayerNorm(width)
        self.blocks = [Block(block_key, width, num_heads) for block_key in keys[5:]]
        # Components start apart; copies of one would learn the same.
        means = 1.5 * jax.random.normal(keys[4], (num_components, dim))
        if dim == 1:
            means = jnp.linspace(-1.5, 1.5, num_components)[:, None]
        self.base = jnp.zeros((num_components, size)).at[:, 1 : 1 + dim].set(means)
        self.dim, self.num_components = dim, num_components

    def __call__(
        self,
        parameters: Float[Array, " p"],
        readings: Float[Array, "r size"],
        mask: Bool[Array, " r"],
        prior_basis: Basis,
        basis: Basis,
    ) -> tuple[GaussianMixture, GaussianMixture]:
        """Returns the mixtures of the prior, told in `prior_basis`, and of the posterior, in
        `basis`.

        Args:
            parameters: features of the prior.
            readings: features of every reading: its value, and what it was taken with.
            mask: which readings there are; the values of the others do not count.

        Raises:
            ValueError: names the argument whose shape is not the network's.
        """
        for name, came, expected in (
            ("parameters", parameters.shape, self.embedding.in_size),
            ("readings", readings.shape[1:], self.reading_embedding.in_size),
        ):
            if came != (expected,):
                raise ValueError(f"{name}: {came} numbers came, ({expected},) was expected")
        embedded = self.embedding(parameters)
        first = eqx.filter_vmap(lambda convert: convert(embedded))(self.conversions)
        sights = jax.vmap(self.reading_embedding)(jnp.where(mask[:, None], readings, 0))
        shared = jnp.broadcast_to(sights, (self.num_components, *sights.shape))
        alive = jnp.ones(self.num_components, bool)
        tokens = first
        for block in self.blocks:
            tokens = block(tokens, shared, mask, alive)
        return self._mixture(first, prior_basis), self._mixture(tokens, basis)

    def _mixture(self, tokens: Float[Array, "k width"], basis: Basis) -> GaussianMixture:
        raw = self.base + jax.vmap(lambda token: self.unembedding(self.norm(token)))(tokens)
        dim = self.dim

        def component(raw):
            mean, log_scale, lower = jnp.split(raw, [dim, 2 * dim])
            log_scale = LOG_SCALE_BOUND * jnp.tanh(log_scale / LOG_SCALE_BOUND)
            chol = jnp.diag(jnp.exp(log_scale)).at[np.tril_indices(dim, -1)].set(lower)
            return basis.loc + basis.chol @ mean, basis.chol @ chol

        means, chols = jax.vmap(component)(raw[:, 1:])
        return GaussianMixture(jax.nn.log_softmax(raw[:, 0]), means, chols)
