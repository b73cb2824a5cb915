"""coix's combinators over NumPyro programs."""

import coix
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from rows import NUM, PROGRAMS, Block, particles

from bayesinf.types import proper


def blocks() -> list[Block]:
    coix.set_backend("coix.numpyro")
    return [
        Block("propose", proper, sampled(lambda program: program), PROGRAMS),
        Block("propose, resample", proper, sampled(coix.resample), PROGRAMS),
    ]


def sampled(transform):
    def run(key, given):
        prior, likelihood = given.log_prior.table, given.log_likelihood.table

        def target():
            logits = jnp.broadcast_to(prior, (NUM, prior.size))
            x = numpyro.sample("x", dist.Categorical(logits=logits))
            numpyro.factor("likelihood", likelihood[x])
            return x

        def proposal():
            """Draws from a law that is not the prior."""
            logits = jnp.broadcast_to(jnp.log(jnp.arange(1.0, prior.size + 1)), (NUM, prior.size))
            return numpyro.sample("x", dist.Categorical(logits=logits))

        program = transform(coix.propose(target, proposal))
        _, trace, metrics = coix.traced_evaluate(program, seed=key)()
        return particles(trace["x"]["value"], metrics["log_weight"] - jnp.log(NUM), 0.0)

    return run
