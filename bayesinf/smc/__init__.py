"""Sequential Monte Carlo: particles, resampled, propagated, reweighted and moved.

Algorithms are compositions of the transformations in `transform`. SMC is `run`; one step of it is
`resample`, `propagate`, `reweight`. Resample-move along a path is `along`; one step of it is
`reweight`, `resample`, `move`, all at one level.
"""

from bayesinf.smc.along import along
from bayesinf.smc.bootstrap import bootstrap
from bayesinf.smc.conditional import ancestor_sampling, conditional_smc
from bayesinf.smc.data_tempering import data_temper
from bayesinf.smc.filter import run, step, stream
from bayesinf.smc.guided import gaussian_transition, guided, local
from bayesinf.smc.history import history, trajectories
from bayesinf.smc.particle_gibbs import particle_gibbs
from bayesinf.smc.pmmh import LogEvidence, pmmh
from bayesinf.smc.resampling import (
    adaptive,
    always,
    multinomial,
    residual,
    stratified,
    systematic,
)
from bayesinf.smc.tempering import temper, temper_fixed
from bayesinf.smc.transform import (
    collapse,
    hoist,
    importance,
    marginal,
    move,
    normalise,
    propagate,
    resample,
    reweight,
    spawn,
)
from bayesinf.smc.tuned import tuned

__all__ = [
    "LogEvidence",
    "adaptive",
    "along",
    "always",
    "ancestor_sampling",
    "bootstrap",
    "collapse",
    "conditional_smc",
    "data_temper",
    "gaussian_transition",
    "guided",
    "history",
    "hoist",
    "importance",
    "local",
    "marginal",
    "move",
    "multinomial",
    "normalise",
    "particle_gibbs",
    "pmmh",
    "propagate",
    "resample",
    "residual",
    "reweight",
    "run",
    "spawn",
    "step",
    "stratified",
    "stream",
    "systematic",
    "temper",
    "temper_fixed",
    "trajectories",
    "tuned",
]
