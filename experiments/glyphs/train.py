"""Trains the few-shot learners, each by the same search on the validation scripts.

For every method and number of shots three settings are trained shortly, the best of them, by its
log loss on 5-way validation episodes, at length. Weights and curves go to a folder, from which
`run.py` goes on.

Run: ./run python experiments/glyphs/train.py [--methods NAME ...] [--out DIR]
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import draw_task, load
from learners import log_scores, maml, prototypical, two_level
from render import CACHE

from bayesinf import training

SEED, SHOTS, QUERIES = 0, (1, 5), 5
CHUNK, SEARCH_CHUNKS, CHUNKS = 100, 8, 40
NUM_VALIDATION_TASKS = 200
# (learner, classes of a training episode, learning rate): the same number of settings each. More
# classes than at the test serve nearest means (Snell et al.) and the two-level model; MAML trains
# with as many.
SETTINGS = {
    "prototypical": [(prototypical(), 20, rate) for rate in (3e-4, 1e-3, 3e-3)],
    "two_level": [(two_level(), 20, rate) for rate in (3e-4, 1e-3, 3e-3)],
    "one_noise": [(two_level(jnp.ones_like), 20, rate) for rate in (3e-4, 1e-3, 3e-3)],
    "maml": [(maml(inner), 5, rate) for inner, rate in ((0.1, 1e-3), (0.4, 1e-3), (0.1, 3e-3))],
}


def loss(learner, images, num_classes, shots, params, keys):
    """Returns the mean log loss over the episodes that the keys draw."""

    def one(key):
        task = draw_task(key, images, num_classes, shots, QUERIES)
        return -jnp.mean(log_scores(learner.log_probs(params, task)))

    return jnp.mean(jax.lax.map(one, keys))


def fit(setting, shots, splits, num_chunks, checkpoint=None):
    """Returns trained parameters and what happened."""
    learner, num_classes, rate = setting
    steps = num_chunks * CHUNK
    tasks = jax.random.split(jax.random.key(SEED + 1), NUM_VALIDATION_TASKS)
    train, validation = (jnp.asarray(part) for part in (splits.train, splits.validation))
    return training.fit(
        jax.random.key(SEED),
        learner.init(jax.random.key(SEED)),
        lambda key, _: jax.random.split(key, CHUNK),
        partial(loss, learner, train, num_classes, shots),
        optax.chain(
            optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(rate, steps))
        ),
        num_chunks=num_chunks,
        steps_per_chunk=CHUNK,
        batch_size=1,
        validate=lambda params: loss(learner, validation, 5, shots, params, tasks),
        checkpoint=checkpoint,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--glyphs", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path("out/glyphs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = load(arguments.glyphs)
    for method in arguments.methods:
        for shots in SHOTS:
            name, begin = f"{method}_{shots}", time.perf_counter()
            searched = [fit(s, shots, splits, SEARCH_CHUNKS)[1] for s in SETTINGS[method]]
            best = int(np.argmin([np.min(history.score) for history in searched]))
            params, history = fit(
                SETTINGS[method][best], shots, splits, CHUNKS, arguments.out / f"{name}.checkpoint"
            )
            eqx.tree_serialise_leaves(arguments.out / f"{name}.eqx", params)
            record = {
                "search": [np.asarray(h.score, float).tolist() for h in searched],
                "best": best,
                "rate": SETTINGS[method][best][2],
                "score": np.asarray(history.score, float).tolist(),
                "minutes": (time.perf_counter() - begin) / 60,
            }
            (arguments.out / f"{name}.json").write_text(json.dumps(record) + "\n")
            print(f"{name}: setting {best}, validation log loss {min(record['score']):.3f}")


if __name__ == "__main__":
    main()
