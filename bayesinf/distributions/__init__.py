"""Values with `log_prob`, `sample` and moments; `fit` turns samples or a density into one.

What needs NumPyro (`WrappedNormal`, `wrap`, `sample_niw`, and conversions `*_to_numpyro`,
`*_from_numpyro`) is imported when it is asked for.
"""

from bayesinf.distributions.covariance import (
    Blocks,
    Covariance,
    Diagonal,
    Full,
    full,
)
from bayesinf.distributions.em import FitInfo
from bayesinf.distributions.enumerated import Enumerated
from bayesinf.distributions.fit import fit
from bayesinf.distributions.fit_density import fit_density
from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.distributions.low_rank import LowRank, low_rank
from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.distributions.particles import Particles, uniform_particles
from bayesinf.distributions.reduction import reduce, split
from bayesinf.distributions.student_t import StudentT

_NUMPYRO = (
    "WrappedNormal",
    "mixture_from_numpyro",
    "mixture_to_numpyro",
    "sample_niw",
    "student_t_to_numpyro",
    "wrap",
)

__all__ = [
    "Blocks",
    "Covariance",
    "Diagonal",
    "Enumerated",
    "FitInfo",
    "Full",
    "GaussianMixture",
    "LowRank",
    "NormalInverseWishart",
    "Particles",
    "StudentT",
    "fit",
    "fit_density",
    "full",
    "gaussian",
    "low_rank",
    "reduce",
    "split",
    "uniform_particles",
]


def __getattr__(name: str):
    if name in _NUMPYRO:
        from bayesinf.distributions import numpyro

        return getattr(numpyro, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
