"""dynamax's draw of a hidden Markov model's states, with its evidence."""

import jax
import jax.numpy as jnp
from dynamax.hidden_markov_model import hmm_posterior_sample
from rows import SEQUENCES, Block, particles

from bayesinf.types import proper


def blocks() -> list[Block]:
    return [Block("hmm_posterior_sample", proper, last_state, SEQUENCES)]


def last_state(key, chain):
    after_a_move = jax.scipy.special.logsumexp(chain.start[:, None] + chain.move, axis=0)
    log_evidence, states = hmm_posterior_sample(
        key, jnp.exp(after_a_move), jnp.exp(chain.move), jnp.asarray(chain.reads)
    )
    return particles(states[-1:], jnp.zeros(1), log_evidence)
