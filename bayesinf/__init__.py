"""Approximate Bayesian inference in JAX: functions between representations of one distribution.

`import bayesinf as bi` loads nothing but this file; each subpackage loads when it is first used,
as in `bi.programs.StateSpace`.

- `distributions`: Gaussian mixtures, with densities, draws, moments, exact maps and fits.
- `programs`: what a model means: state-space models, readings, local quadratics of any sensor.
- `mcmc`: Markov chain kernels, kernels of kernels, and the loop that runs them.
- `smc`: resamplers, particle filters, tempering, particle MCMC.
- `validation`: whether a block keeps its law, exactly or by independent runs.
- `laws`: every block of the package with the problem on which its law is checked.
- `diagnostics`: effective sample size and R-hat of chains, Pareto k-hat, coverage.
- `kalman`: the Kalman family behind one call, the exact oracle of the linear-Gaussian case.
- `transformers_gmm`: the Distribution Transformer, from a mixture prior and readings to a mixture.
- `meta_niw`: learning from many small tasks by a Normal-Inverse-Wishart posterior.
- `trust`: fast posteriors corrected, calibrated and guarded.
- `training`: the one optimisation loop.
- `fusion`: localising a robot from its odometry and ranges.
- `plots`: figures; the only place that needs Matplotlib.
- `linalg`, `types`: square-root linear algebra, and the vocabulary that all of the above share.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayesinf import (
        diagnostics,
        distributions,
        fusion,
        kalman,
        laws,
        linalg,
        mcmc,
        meta_niw,
        plots,
        programs,
        smc,
        training,
        transformers_gmm,
        trust,
        types,
        validation,
    )

__all__ = [
    "diagnostics",
    "distributions",
    "fusion",
    "kalman",
    "laws",
    "linalg",
    "mcmc",
    "meta_niw",
    "plots",
    "programs",
    "smc",
    "training",
    "transformers_gmm",
    "trust",
    "types",
    "validation",
]

__version__ = metadata.version("bayesinf")


def __getattr__(name: str):
    if name in __all__:
        return import_module(f"bayesinf.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
