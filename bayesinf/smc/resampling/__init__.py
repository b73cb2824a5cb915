"""Resamplers, `(key, log_weights, num) -> ancestors`, and the policies of when to resample."""

from bayesinf.smc.resampling.multinomial import multinomial
from bayesinf.smc.resampling.policy import adaptive, always
from bayesinf.smc.resampling.residual import residual
from bayesinf.smc.resampling.stratified import stratified
from bayesinf.smc.resampling.systematic import systematic

__all__ = ["adaptive", "always", "multinomial", "residual", "stratified", "systematic"]
