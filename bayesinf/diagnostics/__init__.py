"""Diagnostics of samplers."""

from bayesinf.diagnostics.chains import (
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    mcse_quantile,
    rhat,
    split_rhat,
)

__all__ = [
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "mcse_mean",
    "mcse_quantile",
    "rhat",
    "split_rhat",
]
