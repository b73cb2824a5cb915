"""The networks of an experiment: how each is made, trained, written down and read again."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax

from bayesinf import training
from bayesinf.types import Key

STEPS_PER_CHUNK = 100


class Recipe(NamedTuple):
    """How a network is trained.

    Attributes:
        make: from a key to the network.
        chunks: of 100 steps.
        rate: the highest learning rate, of Adam with a warm-up and a cosine.
    """

    make: Callable[[Key], Any]
    chunks: int
    rate: float


def fit(
    recipe: Recipe,
    seed: int,
    pool: Callable,
    loss: Callable,
    batch_size: int,
    checkpoint: Path | None = None,
    num_chunks: int | None = None,
) -> tuple[Any, training.History]:
    """Returns a trained network and what happened; `pool(key, network)` draws a chunk's examples.

    A checkpoint lets a killed run go on.
    """
    num_chunks = num_chunks or recipe.chunks
    num_steps = num_chunks * STEPS_PER_CHUNK
    network_key, fit_key = jax.random.split(jax.random.key(seed))
    rate = recipe.rate
    schedule = optax.warmup_cosine_decay_schedule(0, rate, num_steps // 20, num_steps, rate / 1000)
    return training.fit(
        fit_key,
        recipe.make(network_key),
        pool,
        loss,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        num_chunks=num_chunks,
        steps_per_chunk=STEPS_PER_CHUNK,
        batch_size=batch_size,
        checkpoint=checkpoint,
    )


def train_all(
    train: Callable[[str, int, Path], tuple[Any, training.History]],
    units: Sequence[tuple[str, int]],
    out: Path,
) -> None:
    """Trains the networks of some (name, seed) that are not yet in `out`, and writes them there."""
    out.mkdir(parents=True, exist_ok=True)
    for name, seed in units:
        report = out / f"{name}_{seed}.json"
        if report.exists():
            continue  # written last, so the network is there
        begin = time.perf_counter()
        network, history = train(name, seed, out / f"{name}_{seed}.ckpt")
        minutes = (time.perf_counter() - begin) / 60
        eqx.tree_serialise_leaves(out / f"{name}_{seed}.eqx", network)
        leaves = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
        told = {
            "seed": seed,
            "minutes": round(minutes, 2),
            "device": jax.devices()[0].device_kind,
            "parameters": sum(leaf.size for leaf in leaves),
            "skipped_steps": int(np.sum(history.skipped)),
            "loss": np.round(np.asarray(history.loss, float), 3).tolist(),
        }
        report.write_text(json.dumps(told) + "\n")
        print(f"{name}, seed {seed}: {minutes:.1f} minutes, loss {told['loss'][-1]}")


def load(folder: Path, recipes: Mapping[str, Recipe], name: str, seed: int) -> Any:
    """Returns a network that `train_all` wrote."""
    skeleton = recipes[name].make(jax.random.key(0))
    return eqx.tree_deserialise_leaves(folder / f"{name}_{seed}.eqx", skeleton)


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns by network what `train_all` reported, but for the losses."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {
        name: {key: value for key, value in each.items() if key != "loss"}
        for name, each in found.items()
    }
