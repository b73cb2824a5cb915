"""Diagnostics of samplers: of chains, of importance ratios, of posteriors by their coverage."""

from bayesinf.diagnostics.chains import (
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    mcse_quantile,
    rhat,
    split_rhat,
)
from bayesinf.diagnostics.coverage import Coverage, coverage
from bayesinf.diagnostics.psis import Smoothed, k_hat_bound, psis

__all__ = [
    "Coverage",
    "Smoothed",
    "coverage",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "k_hat_bound",
    "mcse_mean",
    "mcse_quantile",
    "psis",
    "rhat",
    "split_rhat",
]
