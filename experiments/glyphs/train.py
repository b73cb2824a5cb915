"""Trains the few-shot learners, each by the same search on the validation scripts.

For every method and number of shots a few settings are trained shortly, the best of them, by its
log loss on 5-way validation episodes, at length. Weights and curves go to a folder, from which
`run.py` goes on. A training that was stopped goes on from its checkpoints there.

Run: ./run python experiments/glyphs/train.py [--methods NAME ...] [--shots N ...] [--out DIR]
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
from data import draw_task, load, turn
from learners import FEATURES, log_scores, maml, prototypical, two_level
from render import CACHE

from bayesinf import training

SEED, SHOTS, QUERIES = 0, (1, 5), 5
EPISODES = 4  # a step
CHUNK, SEARCH_CHUNKS, CHUNKS = 250, 2, 40  # steps, of them 500 and 10,000
NUM_VALIDATION_TASKS = 200
RATES = (1e-3, 3e-3, 1e-2)
# (learner, classes of a training episode, learning rate). Prototypical networks, the Gaussian and
# MAML have six settings each. More classes than at the test serve nearest means (Snell et al.) and
# the Gaussian; MAML trains with as many.
SETTINGS = {
    "prototypical": [(prototypical(), 20, rate) for rate in RATES],
    "prototypical_wide": [(prototypical(2 * FEATURES), 20, rate) for rate in RATES],
    "two_level": [(two_level(), 20, rate) for rate in RATES],
    "two_level_wide": [(two_level(2 * FEATURES), 20, rate) for rate in RATES],
    "maml": [(maml(inner), 5, rate) for inner in (0.03, 0.1, 0.3) for rate in (1e-3, 3e-3)],
}


def loss(learner, draw, params, keys):
    """Returns the mean log loss over the episodes that the keys draw."""

    def one(key):
        return -jnp.mean(log_scores(learner.log_probs(params, draw(key))))

    return jnp.mean(jax.lax.map(one, keys, batch_size=EPISODES))


def optimizer(rate, steps):
    """Returns Adam with cosine decay; its rate is part of its state, so that settings which differ
    in it alone share one program."""

    @optax.inject_hyperparams
    def adam(rate):
        decay = optax.cosine_decay_schedule(1.0, steps)
        parts = optax.scale_by_adam(), optax.scale_by_schedule(decay), optax.scale(-rate)
        return optax.chain(optax.clip_by_global_norm(10.0), *parts)

    return adam(rate=rate)


def fit(setting, shots, splits, num_chunks, checkpoint):
    """Returns trained parameters and what happened."""
    learner, num_classes, rate = setting
    tasks = jax.random.split(jax.random.key(SEED + 1), NUM_VALIDATION_TASKS)
    train, validation = (jnp.asarray(part) for part in (splits.train, splits.validation))

    def draw(key):
        task_key, turn_key = jax.random.split(key)
        return turn(turn_key, draw_task(task_key, train, num_classes, shots, QUERIES))

    def draw_validation(key):
        return draw_task(key, validation, 5, shots, QUERIES)

    return training.fit(
        jax.random.key(SEED),
        learner.init(jax.random.key(SEED)),
        lambda key, _: jax.random.split(key, CHUNK * EPISODES),
        partial(loss, learner, draw),
        optimizer(rate, num_chunks * CHUNK),
        num_chunks=num_chunks,
        steps_per_chunk=CHUNK,
        batch_size=EPISODES,
        validate=lambda params: loss(learner, draw_validation, params, tasks),
        checkpoint=checkpoint,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=list(SHOTS))
    parser.add_argument("--glyphs", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path, default=Path("out/glyphs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = load(arguments.glyphs)
    for method in arguments.methods:
        for shots in arguments.shots:
            name, begin = f"{method}_{shots}", time.perf_counter()

            def train(i, num_chunks, method=method, shots=shots, name=name):
                checkpoint = arguments.out / f"{name}_{i}_{num_chunks}.checkpoint"
                return fit(SETTINGS[method][i], shots, splits, num_chunks, checkpoint)

            searched = [train(i, SEARCH_CHUNKS)[1] for i in range(len(SETTINGS[method]))]
            best = int(np.argmin([np.min(history.score) for history in searched]))
            params, history = train(best, CHUNKS)
            eqx.tree_serialise_leaves(arguments.out / f"{name}.eqx", params)
            record = {
                "search": [np.asarray(h.score, float).tolist() for h in searched],
                "best": best,
                "rate": SETTINGS[method][best][2],
                "score": np.asarray(history.score, float).tolist(),
                "device": jax.devices()[0].device_kind,
                "minutes": (time.perf_counter() - begin) / 60,
            }
            (arguments.out / f"{name}.json").write_text(json.dumps(record) + "\n")
            print(f"{name}: setting {best}, validation log loss {min(record['score']):.3f}")


if __name__ == "__main__":
    main()
