"""The particle filters of smcjax and of its successor smcx, which share their calls."""

import jax
import jax.numpy as jnp
from rows import NUM, SEQUENCES, Block, drawn, particles

from bayesinf.types import proper


def blocks(package, threshold: float) -> list[Block]:
    """Returns the bootstrap and the auxiliary filter of a package; resampled below a threshold."""

    def run(key, chain, make, *more):
        after_a_move = jax.scipy.special.logsumexp(chain.start[:, None] + chain.move, axis=0)
        posterior = make(
            key,
            lambda key, num: drawn(key, lambda key: jax.random.categorical(key, after_a_move), num),
            lambda key, x: jax.random.categorical(key, chain.move[x]),
            lambda read, x: read[x],
            *more,
            jnp.asarray(chain.reads),
            NUM,
            resampling_threshold=threshold,
        )
        return particles(
            posterior.filtered_particles[-1],
            posterior.filtered_log_weights[-1],
            posterior.marginal_loglik,
        )

    def bootstrap(key, chain):
        return run(key, chain, package.bootstrap_filter)

    def auxiliary(key, chain):
        """Looks ahead by some function of the state, which the weights take back."""
        return run(key, chain, package.auxiliary_filter, lambda read, x: 0.5 * read[x] - 0.3 * x)

    return [
        Block("bootstrap_filter", proper, bootstrap, SEQUENCES),
        Block("auxiliary_filter", proper, auxiliary, SEQUENCES),
    ]
