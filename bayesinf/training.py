"""The one optimisation loop: Optax in jitted chunks, with checkpoints that resume bit for bit."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int, PyTree
from tqdm import tqdm

from bayesinf.types import Key

# What the running average of the networks keeps of itself at every step.
AVERAGE = 0.99
Network = TypeVar("Network", bound=PyTree)


class History(NamedTuple):
    """What happened in training, one entry a chunk.

    Attributes:
        loss: mean training loss over the chunk's finite steps.
        score: the validation loss after the chunk, NaN where there is no validation.
        skipped: steps of the chunk whose loss or gradient was not finite.
    """

    loss: Float[Array, " chunks"]
    score: Float[Array, " chunks"]
    skipped: Int[Array, " chunks"]


class TrainingState(NamedTuple):
    """Everything that a resumed run needs, and so everything that a checkpoint holds."""

    params: PyTree
    average: PyTree
    opt_state: PyTree
    best: PyTree
    best_score: Float[Array, ""]
    stale: Int[Array, ""]
    chunk: Int[Array, ""]
    history: History


def fit(
    key: Key,
    network: Network,
    pool: Callable[[Key, Network], PyTree],
    loss: Callable[[Network, PyTree], Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    *,
    num_chunks: int,
    steps_per_chunk: int,
    batch_size: int,
    validate: Callable[[Network], Float[Array, ""]] | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> tuple[Network, History]:
    """Returns the trained network and what happened.

    Each chunk draws one `pool(key, network)`, a pytree with a leading axis of examples, and takes
    `steps_per_chunk` optimiser steps on `loss(network, batch)` with batches drawn from it. The pool
    may use the network as it stands, so examples may come from its own rollouts (on-policy) or from
    a meta-prior alone.

    What is validated and returned is the running average of the steps' networks (Polyak and
    Juditsky 1992), over the last `1 / (1 - AVERAGE)` of them or so. The pool meets the newest.

    With `validate`, a loss on held-out problems, the best network of all chunks is returned, and
    training ends early once `patience` chunks bring no better one. With `checkpoint`, a file, the
    state is written after every chunk, and a run that was killed goes on from there to the same
    bits: keys are folded from the chunk's number, so nothing else is remembered.

    Steps whose loss or gradient is not finite are skipped and counted.

    Raises:
        ValueError: a count is below 1, or the checkpoint is damaged or of another run.
        FloatingPointError: more than half of a chunk's steps were skipped, or no chunk's validation
            loss was finite.
    """
    counts = {"num_chunks": num_chunks, "steps_per_chunk": steps_per_chunk}
    patiently = {} if patience is None else {"patience": patience}
    for name, count in {**counts, "batch_size": batch_size, **patiently}.items():
        if count < 1:
            raise ValueError(f"{name}: {count} came, at least 1 was expected")
    params, static = eqx.partition(network, eqx.is_inexact_array)
    empty = History(
        jnp.full(num_chunks, jnp.nan), jnp.full(num_chunks, jnp.nan), jnp.zeros(num_chunks, int)
    )
    infinity, zero = jnp.full((), jnp.inf), jnp.zeros((), int)
    state = TrainingState(
        params, params, optimizer.init(params), params, infinity, zero, zero, empty
    )
    state = _strong(state)
    if checkpoint is not None and Path(checkpoint).exists():
        state = _resume(checkpoint, state)

    @jax.jit
    def train_chunk(key: Key, state: TrainingState) -> TrainingState:
        pool_key, steps_key = jax.random.split(jax.random.fold_in(key, state.chunk))
        examples = pool(pool_key, eqx.combine(state.params, static))
        size = jax.tree.leaves(examples)[0].shape[0]

        def step(carry, key):
            params, average, opt_state, count = carry
            rows = jax.random.randint(key, (batch_size,), 0, size)
            batch = jax.tree.map(lambda leaf: leaf[rows], examples)
            value, grads = jax.value_and_grad(lambda p: loss(eqx.combine(p, static), batch))(params)
            updates, new_opt_state = optimizer.update(grads, opt_state, params)
            finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
            new_params = optax.apply_updates(params, updates)
            # The window grows with the steps, so that a short training forgets its start.
            share = jnp.maximum(1 - AVERAGE, 9 / (9 + count))
            new_average = optax.incremental_update(new_params, average, share)
            proposed = (new_params, new_average, new_opt_state, count + 1)
            carry = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, carry)
            return carry, jnp.where(finite, value, jnp.nan)

        keys = jax.random.split(steps_key, steps_per_chunk)
        count = (state.chunk * steps_per_chunk + 1).astype(jax.tree.leaves(state.params)[0].dtype)
        first = (state.params, state.average, state.opt_state, count)
        (params, average, opt_state, _), losses = jax.lax.scan(step, first, keys)
        score = jnp.nan if validate is None else validate(eqx.combine(average, static))
        better = (score < state.best_score) | (validate is None)
        history = History(
            state.history.loss.at[state.chunk].set(jnp.nanmean(losses)),
            state.history.score.at[state.chunk].set(score),
            state.history.skipped.at[state.chunk].set(jnp.sum(jnp.isnan(losses))),
        )
        new_state = TrainingState(
            params,
            average,
            opt_state,
            jax.tree.map(lambda new, old: jnp.where(better, new, old), average, state.best),
            jnp.where(better, score, state.best_score),
            jnp.where(better, 0, state.stale + 1),
            state.chunk + 1,
            history,
        )
        return _strong(new_state)

    first = int(state.chunk)
    with tqdm(total=num_chunks, initial=first, disable=not progress, unit="chunk") as bar:
        for chunk in range(first, num_chunks):
            if patience is not None and int(state.stale) >= patience:
                break
            state = train_chunk(key, state)
            skipped = int(state.history.skipped[chunk])
            if 2 * skipped > steps_per_chunk:
                raise FloatingPointError(
                    f"loss: not finite in {skipped} of the {steps_per_chunk} steps of chunk {chunk}"
                )
            if checkpoint is not None:
                _write(checkpoint, state)
            bar.set_postfix(
                loss=f"{float(state.history.loss[chunk]):.4f}",
                score=f"{float(state.history.score[chunk]):.4f}",
                skipped=int(np.sum(state.history.skipped)),
            )
            bar.update()
    done = int(state.chunk)
    if validate is not None and not np.isfinite(state.best_score):
        raise FloatingPointError(f"validate: not finite after any of {done} chunks")
    return eqx.combine(state.best, static), jax.tree.map(lambda leaf: leaf[:done], state.history)


def _strong(state: TrainingState) -> TrainingState:
    """Returns the state without weak types, with which the second chunk would compile anew."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)


def _write(path: str | Path, state: TrainingState) -> None:
    """Writes beside the file and renames, so that a kill leaves the old checkpoint or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    # Opened here, since Equinox gives a path without a suffix one of its own.
    with fresh.open("wb") as file:
        eqx.tree_serialise_leaves(file, state)
    os.replace(fresh, path)


def _resume(path: str | Path, state: TrainingState) -> TrainingState:
    """Returns the state in a checkpoint of a run like the one whose first state came."""
    try:
        with Path(path).open("rb") as file:
            return eqx.tree_deserialise_leaves(file, state)
    except (RuntimeError, ValueError, EOFError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"checkpoint: {path} came, one of this network, optimizer and num_chunks was expected "
            f"({cause})"
        ) from None
