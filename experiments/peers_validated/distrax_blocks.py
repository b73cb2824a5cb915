"""distrax's importance ratios."""

import distrax
import jax.numpy as jnp
from rows import NUM, PROGRAMS, Block, particles

from bayesinf.types import proper


def blocks() -> list[Block]:
    return [Block("importance_sampling_ratios", proper, importance, PROGRAMS)]


def importance(key, program):
    prior = program.log_prior.table
    target = distrax.Categorical(logits=prior)
    proposal = distrax.Categorical(probs=jnp.arange(1.0, prior.size + 1) / 6)
    x = proposal.sample(seed=key, sample_shape=(NUM,))
    ratios = distrax.importance_sampling_ratios(target, proposal, x)
    log_weights = jnp.log(ratios) + program.log_likelihood.table[x] - jnp.log(NUM)
    return particles(x, log_weights, 0.0)
