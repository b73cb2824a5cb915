"""Markov chain Monte Carlo: kernels, kernels of kernels, and the loop that runs them.

A kernel is a pytree with `init(target, position)` and `step(key, target, state)`; any object with
these is one.
"""

from bayesinf.mcmc.adaptation import fixed
from bayesinf.mcmc.blocks import blocks
from bayesinf.mcmc.combinators import cycle, mixture, repeat
from bayesinf.mcmc.draws import Draws, Last
from bayesinf.mcmc.elliptical_slice import EllipticalSlice
from bayesinf.mcmc.foreign import from_blackjax, from_sampling_algorithm
from bayesinf.mcmc.gibbs import DiscreteGibbs, Gibbs
from bayesinf.mcmc.hmc import HMC, JitteredHMC
from bayesinf.mcmc.independence import Independence
from bayesinf.mcmc.involutive import Involutive, check_involution
from bayesinf.mcmc.mala import MALA
from bayesinf.mcmc.metropolis import Metropolis, symmetric
from bayesinf.mcmc.nuts import NUTS
from bayesinf.mcmc.pseudo_marginal import Estimated, PseudoMarginal
from bayesinf.mcmc.random_walk import RandomWalk
from bayesinf.mcmc.sample import resume, run, sample
from bayesinf.mcmc.state import GradState, HamiltonianInfo, Info, State
from bayesinf.mcmc.step_size import find_step_size
from bayesinf.mcmc.trace_mh import SiteProposal, trace_mh

__all__ = [
    "HMC",
    "MALA",
    "NUTS",
    "DiscreteGibbs",
    "Draws",
    "EllipticalSlice",
    "Estimated",
    "Gibbs",
    "GradState",
    "HamiltonianInfo",
    "Independence",
    "Info",
    "Involutive",
    "JitteredHMC",
    "Last",
    "Metropolis",
    "PseudoMarginal",
    "RandomWalk",
    "SiteProposal",
    "State",
    "blocks",
    "check_involution",
    "cycle",
    "find_step_size",
    "fixed",
    "from_blackjax",
    "from_sampling_algorithm",
    "mixture",
    "repeat",
    "resume",
    "run",
    "sample",
    "symmetric",
    "trace_mh",
]
