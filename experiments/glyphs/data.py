"""Glyphs by split of scripts, and few-shot episodes of them."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from render import CACHE, IMAGES_A_CLASS

NUM_VALIDATION = 18  # of the scripts that are not for the test


class Splits(NamedTuple):
    """Images (classes, 20, 28, 28) in 0 to 255; no script is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Task(NamedTuple):
    """An episode: the images of N classes, to learn from and to name."""

    support: jax.Array  # (N, K, 28, 28)
    query: jax.Array  # (N, Q, 28, 28)


def load(cache: Path = CACHE) -> Splits:
    """Returns the splits: two thirds of the scripts to learn from, of which 18 to choose by."""
    if not cache.exists():
        raise SystemExit(f"{cache}: no glyphs; make them with experiments/glyphs/render.py")
    with np.load(cache) as file:
        images, scripts = file["images"], file["scripts"]
    names = np.random.default_rng(5).permutation(np.unique(scripts))
    first = len(names) * 2 // 3
    parts = names[: first - NUM_VALIDATION], names[first - NUM_VALIDATION : first], names[first:]
    return Splits(*(images[np.isin(scripts, part)] for part in parts))


def draw_task(key, images, num_classes: int, shots: int, queries: int) -> Task:
    """Returns an episode of distinct classes and distinct images, scaled to 0 to 1."""
    class_key, *keys = jax.random.split(key, 1 + num_classes)
    chosen = jax.random.choice(class_key, len(images), (num_classes,), replace=False)

    def rows(key):
        return jax.random.permutation(key, IMAGES_A_CLASS)[: shots + queries]

    found = images[chosen[:, None], jax.vmap(rows)(jnp.stack(keys))] / 255
    return Task(found[:, :shots], found[:, shots:])


def turn(key, task: Task) -> Task:
    """Returns the episode with all its images turned by the same random number of quarter turns,
    as if its letters were of another script."""

    def by(num):
        return lambda task: jax.tree.map(lambda images: jnp.rot90(images, num, (-2, -1)), task)

    return jax.lax.switch(jax.random.randint(key, (), 0, 4), [by(num) for num in range(4)], task)
