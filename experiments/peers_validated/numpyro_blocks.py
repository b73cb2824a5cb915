"""NumPyro's draws of a model with the log density of what was observed."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Predictive, log_likelihood
from rows import NUM, PROGRAMS, Block, particles

from bayesinf.types import proper


def blocks() -> list[Block]:
    return [Block("Predictive, log_likelihood", proper, importance, PROGRAMS)]


def importance(key, program):
    """One binary reading; its probability given a state is a table."""
    table = jnp.exp(program.log_likelihood.table)
    scale = 1 / (2 * table.max())

    def model(read=None):
        x = numpyro.sample("x", dist.Categorical(logits=program.log_prior.table))
        numpyro.sample("read", dist.Bernoulli(scale * table[x]), obs=read)

    draws = {"x": Predictive(model, num_samples=NUM)(key)["x"]}
    weights = log_likelihood(model, draws, read=jnp.asarray(1))["read"]
    return particles(draws["x"], weights - jnp.log(NUM), -jnp.log(scale))
