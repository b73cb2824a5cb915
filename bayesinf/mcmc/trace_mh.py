"""Single-site Metropolis-Hastings on the choices of a program."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.blocks import Block
from bayesinf.mcmc.combinators import Mixture, mixture
from bayesinf.mcmc.metropolis import Metropolis
from bayesinf.types import Kernel, Key, invariant, law, no_law

Choices = dict[str, PyTree]


@no_law("a proposal; `trace_mh` makes a kernel of it")
class SiteProposal(eqx.Module):
    """A proposal for one site, which may look at all choices.

    Attributes:
        sample: (key, choices) to the site's new value.
        log_prob: (value, choices) to `log q(value | choices)`, where the choices hold the site's
            old value.
    """

    sample: Callable[[Key, Choices], PyTree]
    log_prob: Callable[[PyTree, Choices], Float[Array, ""]]


@law(invariant)
def trace_mh(sites: Mapping[str, SiteProposal | Kernel]) -> Mixture:
    """Returns the kernel that picks a site uniformly and moves its choice.

    A `SiteProposal` is accepted with the full ratio, `pi(y) q(x_i|y) / (pi(x) q(y_i|x))`; a kernel
    moves the site's conditional. The position is the dict of choices, whose sites are fixed.

    Law: invariant. Paper: Wingate, Stuhlmueller and Goodman (2011), algorithm 1, where the sites
    do not change; Ścibior et al. (2018).
    """
    return mixture(jnp.ones(len(sites)), *(_at(name, move) for name, move in sites.items()))


def _at(name: str, move: SiteProposal | Kernel) -> Kernel:
    if isinstance(move, SiteProposal):
        return Metropolis(_Propose(name, move), _LogProb(name, move))
    return Block(name, move)


class _Propose(eqx.Module):
    name: str = eqx.field(static=True)
    proposal: SiteProposal

    def __call__(self, key: Key, x: Choices) -> Choices:
        return {**x, self.name: self.proposal.sample(key, x)}


class _LogProb(eqx.Module):
    name: str = eqx.field(static=True)
    proposal: SiteProposal

    def __call__(self, y: Choices, x: Choices) -> Float[Array, ""]:
        return self.proposal.log_prob(y[self.name], x)
