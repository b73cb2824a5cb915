"""Training with early stopping, the same for every method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tasks import MAX_SHOTS, at_shots, random_shots

from bayesinf.meta_niw.episodes import Episode
from bayesinf.training import fit
from bayesinf.types import Key

COPIES, BATCH, CHUNK, NUM_CHUNKS, PATIENCE = 8, 64, 100, 160, 20


class Setting(NamedTuple):
    """What the search chooses among.

    Attributes:
        make: from a key to a network.
        rate: of AdamW.
        decay: its weight decay.
    """

    make: Callable[[Key], Any]
    rate: float
    decay: float


def query_loss(network, examples: tuple[Episode, Episode]):
    """Returns minus the mean log density of the query's rows."""
    support, query = examples
    prediction = jax.vmap(network)(support, query.x)
    log_probs = jnp.where(query.mask, prediction.log_prob(query.y), 0)
    return -jnp.sum(log_probs) / jnp.sum(query.mask)


def held_out(network, tasks: Episode):
    """Returns minus the mean log density on whole tasks over 1 to 10 shots."""

    def one(num_shots):
        return query_loss(network, at_shots(tasks, num_shots))

    return jnp.mean(jax.lax.map(one, jnp.arange(1, MAX_SHOTS + 1)))


def learn(
    key: Key,
    setting: Setting,
    tasks: Episode,
    validation: Episode,
    loss: Callable = query_loss,
    score: Callable = held_out,
):
    """Returns the network with the best validation score on the way, that score, and when training
    stopped."""
    init_key, fit_key = jax.random.split(key)
    rate = optax.cosine_decay_schedule(setting.rate, NUM_CHUNKS * CHUNK, 0.03)
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adamw(rate, weight_decay=setting.decay)
    )
    network, history = fit(
        fit_key,
        setting.make(init_key),
        lambda key, _: random_shots(key, tasks, COPIES),
        loss,
        optimizer,
        num_chunks=NUM_CHUNKS,
        steps_per_chunk=CHUNK,
        batch_size=BATCH,
        validate=lambda network: score(network, validation),
        patience=PATIENCE,
        progress=False,
    )
    return network, float(np.nanmin(history.score)), len(history.score)


@eqx.filter_jit
def scores(network, tasks: Episode):
    """Returns the scores at every number of shots, (shots, tasks, queries)."""

    def one(num_shots):
        support, query = at_shots(tasks, num_shots)
        return jax.vmap(network)(support, query.x).score(query.y)

    return jax.lax.map(one, jnp.arange(1, MAX_SHOTS + 1))
