"""BlackJAX's resamplers, kernels on finite states and SMC samplers, as the package ships them."""

import blackjax
import jax
import jax.numpy as jnp
from blackjax.smc import from_mcmc, resampling
from blackjax.smc.waste_free import waste_free_smc
from rows import DATA, POPULATIONS, PROGRAMS, STATES, Block, drawn, particles

from bayesinf.types import consistent, invariant, preserves, proper

LEVELS = (0.4, 1.0)
MOST_LEVELS = 4


def blocks() -> list[Block]:
    resamplers = {
        each.__name__: ancestors(each)
        for each in (
            resampling.systematic,
            resampling.stratified,
            resampling.multinomial,
            resampling.residual,
        )
    }
    return [
        *(Block(f"resampling.{n}", preserves, each, POPULATIONS) for n, each in resamplers.items()),
        Block("rmh", invariant, rmh, STATES),
        Block("rmh, asymmetric", invariant, rmh_asymmetric, STATES),
        Block("irmh", invariant, irmh, STATES),
        Block("tempered_smc", proper, tempered, PROGRAMS),
        Block("tempered_smc, waste-free", proper, waste_free, PROGRAMS),
        Block("adaptive_tempered_smc", consistent, adaptive_tempered, PROGRAMS),
        Block("persistent_sampling_smc", consistent, persistent, PROGRAMS),
        Block("partial_posteriors_smc", proper, partial_posteriors, DATA),
        Block("partial_posteriors_smc, repaired", proper, repaired, DATA),
    ]


def ancestors(resample):
    return lambda key, log_weights, num: resample(key, jnp.exp(log_weights), num)


def rmh(log_probs):
    """Proposes any state."""
    num = log_probs.shape[0]
    kernel = blackjax.rmh(
        lambda x: log_probs[x], lambda key, x: jax.random.randint(key, (), 0, num)
    )
    return lambda key, x: kernel.step(key, kernel.init(x))[0].position


def rmh_asymmetric(log_probs):
    """Proposes the next state, or any; the density takes the states from and to."""
    num = log_probs.shape[0]
    table = jnp.log(0.8 * jnp.roll(jnp.eye(num), 1, axis=1) + 0.2 / num)
    kernel = blackjax.rmh(
        lambda x: log_probs[x],
        lambda key, x: jax.random.categorical(key, table[x]),
        lambda start, end: table[start.position, end.position],
    )
    return lambda key, x: kernel.step(key, kernel.init(x))[0].position


def irmh(log_probs):
    proposal = jax.nn.log_softmax(jnp.log(jnp.arange(1.0, log_probs.shape[0] + 1)))
    kernel = blackjax.irmh(
        lambda x: log_probs[x],
        lambda key: jax.random.categorical(key, proposal),
        lambda start, end: proposal[end.position],
    )
    return lambda key, x: kernel.step(key, kernel.init(x))[0].position


def move(num_states):
    """Returns a step of `rmh` as the SMC samplers take it."""
    kernel = blackjax.rmh.build_kernel()

    def propose(key, x):
        return jax.random.randint(key, (), 0, num_states).astype(x.dtype)

    def step(key, state, log_density):
        return kernel(key, state, log_density, propose)

    return step, blackjax.rmh.init, {}, resampling.systematic


def densities(program):
    return program.log_prior, program.log_likelihood, *move(program.log_prior.table.shape[0])


def run(key, sampler, start, steps, *init):
    """Returns particles after `sampler.step` with each of `steps`."""
    state, log_evidence = sampler.init(start, *init), 0.0
    for step_key, step in zip(jax.random.split(key, len(steps)), steps, strict=True):
        state, info = sampler.step(step_key, state, step)
        log_evidence += info.log_likelihood_increment
    return particles(state.particles, jnp.log(state.weights), log_evidence)


def tempered(key, program):
    start_key, key = jax.random.split(key)
    sampler = blackjax.tempered_smc(*densities(program), num_mcmc_steps=1)
    return run(key, sampler, drawn(start_key, program.sample), LEVELS)


def waste_free(key, program):
    """Four particles, of which two are resampled and each moved once."""
    start_key, key = jax.random.split(key)
    sampler = blackjax.tempered_smc(
        *densities(program), num_mcmc_steps=None, update_strategy=waste_free_smc(4, 2)
    )
    return run(key, sampler, drawn(start_key, program.sample, 4), LEVELS)


def adaptive_tempered(key, program):
    """Levels by the effective sample size; the last is 1 within these steps in every run."""
    start_key, key = jax.random.split(key)
    sampler = blackjax.adaptive_tempered_smc(*densities(program), target_ess=0.6, num_mcmc_steps=1)
    state, log_evidence = sampler.init(drawn(start_key, program.sample)), 0.0
    for step_key in jax.random.split(key, MOST_LEVELS):
        state, info = sampler.step(step_key, state)
        log_evidence += info.log_likelihood_increment
    return particles(state.particles, jnp.log(state.weights), log_evidence)


def persistent(key, program):
    """The particles of all levels, with the evidence that the state holds."""
    start_key, key = jax.random.split(key)
    step = move(program.log_prior.table.shape[0])
    sampler = blackjax.persistent_sampling_smc(
        # The state keeps all particles in an array of floats.
        lambda x: program.log_prior(x.astype(int)),
        lambda x: program.log_likelihood(x.astype(int)),
        len(LEVELS),
        *step,
        num_mcmc_steps=1,
    )
    state = sampler.init(drawn(start_key, program.sample))
    for step_key, level in zip(jax.random.split(key, len(LEVELS)), LEVELS, strict=True):
        state, _ = sampler.step(step_key, state, level)
    values, weights = state.persistent_particles.reshape(-1), state.persistent_weights.reshape(-1)
    return particles(values.astype(int), jnp.log(weights / weights.sum()), state.log_Z)


def posterior(program):
    """Returns the log posterior given the data that a mask names."""
    return lambda mask: lambda x: program.log_prior(x) + mask @ program.data[:, x]


def masks(program):
    num = program.data.shape[0]
    return jnp.tril(jnp.ones((num, num)))


def partial_posteriors(key, program):
    """One datum after the other."""
    start_key, key = jax.random.split(key)
    step, init, parameters, resample = move(program.log_prior.table.shape[0])
    sampler = blackjax.partial_posteriors_smc(
        step, init, parameters, resample, 1, posterior(program)
    )
    start = drawn(start_key, program.sample)
    return run(key, sampler, start, masks(program), program.data.shape[0])


def repaired(key, program):
    """The same kernel and resampler, but moves leave the current posterior as it is."""
    start_key, key = jax.random.split(key)
    step, init, parameters, resample = move(program.log_prior.table.shape[0])
    advance = from_mcmc.build_kernel(step, init, resample)
    given = posterior(program)
    state = blackjax.smc.base.init(drawn(start_key, program.sample), parameters)
    log_evidence, old = 0.0, jnp.zeros(program.data.shape[0])
    for step_key, new in zip(jax.random.split(key, len(old)), masks(program), strict=True):
        log_ratio = lambda x, old=old, new=new: given(new)(x) - given(old)(x)  # noqa: E731
        state, info = advance(step_key, state, 1, parameters, given(old), log_ratio)
        log_evidence, old = log_evidence + info.log_likelihood_increment, new
    return particles(state.particles, jnp.log(state.weights), log_evidence)
