"""Particle marginal Metropolis-Hastings: a filter's evidence in the place of the likelihood."""

from collections.abc import Callable

import equinox as eqx
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.pseudo_marginal import PseudoMarginal
from bayesinf.programs.feynman_kac import FeynmanKac
from bayesinf.smc.filter import _RESAMPLE, run
from bayesinf.smc.resampling.policy import Policy
from bayesinf.types import Kernel, Key, invariant, law, proper


@law(proper)
class LogEvidence(eqx.Module):
    """The log of a filter's estimate of the mass of `model(parameters)`.

    Law: proper; its exponential is unbiased.

    Attributes:
        model: from parameters to a Feynman-Kac model.
        num_particles, resample: as in `run`.
    """

    model: Callable[[PyTree], FeynmanKac]
    num_particles: int = eqx.field(static=True)
    resample: Policy = _RESAMPLE

    def __call__(self, key: Key, parameters: PyTree) -> Float[Array, ""]:
        fk = self.model(parameters)
        return run(key, fk, self.num_particles, self.resample)[0].log_evidence


@law(invariant)
def pmmh(
    proposal: Kernel,
    model: Callable[[PyTree], FeynmanKac],
    num_particles: int,
    resample: Policy = _RESAMPLE,
) -> PseudoMarginal:
    """Returns the kernel that proposes parameters as `proposal` does and has a filter estimate
    their likelihood, the mass of `model(parameters)`.

    `proposal` is a `Metropolis`, `RandomWalk` or `Independence` kernel, or another that has their
    `propose` and `log_prob`: its proposal must not look at the target, so one that follows a
    gradient has no place here.

    Its target is the prior, `programs.target(log_prior)`; a position is made by the kernel's
    `start(key, parameters)`.

    Law: invariant, for any number of particles; the parameters then follow their exact posterior.
    Paper: Andrieu, Doucet and Holenstein (2010), Particle Markov chain Monte Carlo methods,
    section 4.4.

    Raises:
        ValueError: the proposal is another kernel.
    """
    return PseudoMarginal(proposal, LogEvidence(model, num_particles, resample))
