"""From a log density on the line to a mixture in one look: its shape at the mode says it all.

In the frame of its mode and curvature a smooth density with one mode is close to a standard normal,
and its third and fourth derivatives there say how it differs. Prior and posterior are then the same
kind of input, so what a network learns from priors serves posteriors that it never met.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.types import Key

LogDensity = Callable[[Float[Array, ""]], Float[Array, ""]]


class Basis(NamedTuple):
    """Where a mixture is told from: `x = loc + chol z`, with z of order one.

    The identity gives absolute outputs; mode and curvature, or the moments of a prior, make a
    network equivariant to shifts and scales of x.
    """

    loc: Float[Array, " d"]
    chol: Float[Array, "d d"]


def laplace(
    log_density: LogDensity, start: Basis, num_steps: int = 50, reach: float = 2.0
) -> Basis:
    """Returns mode and inverse root curvature, by Newton steps of at most `reach` of `start`."""
    slope, scale = jax.grad(log_density), start.chol[0, 0]
    curvature = jax.grad(slope)

    def step(x, _):
        bend = -curvature(x)
        newton = slope(x) / jnp.where(bend > 0, bend, 1 / scale**2)
        return x + jnp.clip(newton, -reach * scale, reach * scale), None

    mode, _ = jax.lax.scan(step, start.loc[0], length=num_steps)
    bend = jnp.maximum(-curvature(mode), 1e-6 / scale**2)
    return Basis(mode[None], (1 / jnp.sqrt(bend))[None, None])


def jet(log_density: LogDensity, basis: Basis, order: int) -> Float[Array, " order"]:
    """Returns the derivatives 1 to `order` at the basis, in its units."""

    def told(z):
        return log_density(basis.loc[0] + basis.chol[0, 0] * z)

    found, function = [], told
    for _ in range(order):
        function = jax.grad(function)
        found.append(function(jnp.zeros_like(basis.loc[0])))
    return jnp.stack(found)


class JetNetwork(eqx.Module):
    """A network from a log density on the line, known up to a constant, to a mixture.

    Hand it `log prior + log likelihood` for the posterior, with any prior and any number of data;
    the log prior alone for the prior.

    Law: calibrated on the densities it was trained on. For any weights, equivariant to
    `x -> a x + b`, a > 0, and blind to the density's constant. It sees the neighbourhood of one
    mode, so densities with several are not for it.

    Attributes:
        num_components: k.
    """

    mlp: eqx.nn.MLP
    base: Float[Array, " outputs"]
    num_components: int = eqx.field(static=True)

    def __init__(self, key: Key, num_components: int, *, width: int = 32, depth: int = 2):
        for name, count in (("num_components", num_components), ("width", width)):
            if count < 1:
                raise ValueError(f"{name}: {count} came, at least 1 was expected")
        self.mlp = eqx.nn.MLP(2, 3 * num_components, width, depth, jax.nn.gelu, key=key)
        # Components start apart; copies of one would learn the same.
        base = jnp.zeros((3, num_components))
        self.base = base.at[1].set(jnp.linspace(-1.5, 1.5, num_components)).ravel()
        self.num_components = num_components

    def __call__(self, log_density: LogDensity, basis: Basis) -> GaussianMixture:
        """Returns the mixture; `basis` is the density's own, from `laplace`."""
        raw = self.base + self.mlp(jet(log_density, basis, 4)[2:])
        return on_the_line(raw, basis)


def on_the_line(raw: Float[Array, " outputs"], basis: Basis) -> GaussianMixture:
    """Returns a mixture in one dimension from its logits, means and log scales in a basis."""
    logits, means, log_scales = jnp.split(raw, 3)
    chols = basis.chol * jnp.exp(log_scales)[:, None, None]
    means = basis.loc + basis.chol[0, 0] * means[:, None]
    return GaussianMixture(jax.nn.log_softmax(logits), means, chols)
