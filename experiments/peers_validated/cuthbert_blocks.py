"""cuthbert's resamplers and particle filter."""

import cuthbert
import jax
import jax.numpy as jnp
from cuthbert.smc import particle_filter
from cuthbertlib.resampling import adaptive, killing, multinomial, systematic
from rows import NUM, POPULATIONS, SEQUENCES, Block, particles

from bayesinf.types import preserves, proper

SCHEMES = {"systematic": systematic, "multinomial": multinomial, "killing": killing}


def blocks() -> list[Block]:
    return [
        *(
            Block(f"{name}.resampling", preserves, resampled(scheme.resampling), POPULATIONS)
            for name, scheme in SCHEMES.items()
        ),
        Block(
            "adaptive.ess_decorator(systematic)",
            preserves,
            resampled(adaptive.ess_decorator(systematic.resampling, 0.9)),
            POPULATIONS,
        ),
        *(
            Block(
                f"{name}.conditional_resampling",
                preserves,
                conditional(scheme.conditional_resampling),
                POPULATIONS,
            )
            for name, scheme in SCHEMES.items()
        ),
        Block("smc.particle_filter", proper, filtered(lambda state, key: state), SEQUENCES),
        Block("smc.particle_filter, repaired", proper, filtered(fresh_key), SEQUENCES),
    ]


def resampled(resample):
    """The logits that come back weigh the particles up to a constant."""

    def run(key, given):
        _, logits, values = resample(key, given.log_weights, given.values, given.num_particles)
        return particles(values, jax.nn.log_softmax(logits), given.log_evidence)

    return run


def conditional(resample):
    """One ancestor is drawn by the weights, its place at random, the others given these."""

    def run(key, given):
        pivot_key, place_key, key = jax.random.split(key, 3)
        num = given.num_particles
        ancestor = jax.random.categorical(pivot_key, given.log_weights)
        place = jax.random.randint(place_key, (), 0, num)
        _, logits, values = resample(key, given.log_weights, given.values, num, place, ancestor)
        return particles(values, jax.nn.log_softmax(logits), given.log_evidence)

    return run


def fresh_key(state, key):
    """The first state keeps the key that its particles were drawn with; this one is another."""
    return state._replace(key=key)


def filtered(change):
    def run(key, chain):
        start_key, other_key, key = jax.random.split(key, 3)
        filter_ = particle_filter.build_filter(
            lambda key: jax.random.categorical(key, chain.start),
            lambda key, x, read: jax.random.categorical(key, chain.move[x]),
            lambda before, after, read: read[after],
            NUM,
            systematic.resampling,
        )
        start = change(filter_.init_prepare(key=start_key), other_key)
        states = cuthbert.filter(filter_, jnp.asarray(chain.reads), start, key=key)
        last = jax.tree.map(lambda leaf: leaf[-1], states)
        log_weights = jax.nn.log_softmax(last.log_weights)
        return particles(last.particles, log_weights, last.log_normalizing_constant)

    return run
