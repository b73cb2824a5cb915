"""smcx's resamplers and filters."""

import filters
import jax.numpy as jnp
import smcx
from rows import POPULATIONS, Block

from bayesinf.types import preserves


def blocks() -> list[Block]:
    schemes = (smcx.systematic, smcx.stratified, smcx.multinomial, smcx.residual)
    return [
        *(Block(each.__name__, preserves, ancestors(each), POPULATIONS) for each in schemes),
        *filters.blocks(smcx, threshold=0.9),
    ]


def ancestors(resample):
    return lambda key, log_weights, num: resample(key, jnp.exp(log_weights), num)
