"""TensorFlow Probability's resamplers, particle filter and Metropolis kernel, its JAX form."""

from functools import partial

import jax
import jax.numpy as jnp
from rows import NUM, POPULATIONS, SEQUENCES, STATES, Block, particles
from tensorflow_probability.substrates import jax as tfp

from bayesinf.types import invariant, preserves, proper

SCHEMES = ("resample_systematic", "resample_stratified", "resample_independent")


def blocks() -> list[Block]:
    resamplers = ((each, getattr(tfp.experimental.mcmc, each)) for each in SCHEMES)
    return [
        *(Block(name, preserves, ancestors(each), POPULATIONS) for name, each in resamplers),
        Block("RandomWalkMetropolis", invariant, metropolis, STATES),
        Block("particle_filter", proper, filtered, SEQUENCES),
    ]


def ancestors(resample):
    return lambda key, log_weights, num: resample(log_weights, num, (), seed=key)


def metropolis(log_probs):
    """Proposes any state."""

    def propose(states, seed):
        return [jax.random.randint(seed, x.shape, 0, log_probs.shape[0]) for x in states]

    kernel = tfp.mcmc.RandomWalkMetropolis(lambda x: log_probs[x], new_state_fn=propose)
    return lambda key, x: kernel.one_step(x, kernel.bootstrap_results(x), seed=key)[0]


def filtered(key, chain):
    after_a_move = jax.scipy.special.logsumexp(chain.start[:, None] + chain.move, axis=0)
    tfd, reads = tfp.distributions, jnp.asarray(chain.reads)
    scale = jnp.exp(-reads.max()) / 2

    def observation(step, x):
        """A binary reading, which is 1; its probability given a state is the table's, scaled."""
        return tfd.Bernoulli(probs=scale * jnp.exp(reads[step][x]))

    values, log_weights, _, increments = tfp.experimental.mcmc.particle_filter(
        jnp.ones(len(reads), int),
        tfd.Categorical(logits=after_a_move),
        lambda step, x: tfd.Categorical(logits=chain.move[x]),
        observation,
        NUM,
        resample_criterion_fn=partial(tfp.experimental.mcmc.ess_below_threshold, threshold=0.9),
        seed=key,
    )
    log_evidence = jnp.sum(increments) - len(reads) * jnp.log(scale)
    return particles(values[-1], log_weights[-1], log_evidence)
