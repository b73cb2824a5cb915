"""Few-shot glyphs: the two-level Gaussian on learned features against its rivals, on new scripts.

600 episodes of scripts that no method has seen, the same for all; accuracy, log loss and expected
calibration error, with intervals over episodes and paired differences. Rivals also come with a
temperature that was fitted on the validation scripts. The exact two-level Gaussian on 60 principal
components is the floor.

Run: ./run python experiments/glyphs/run.py [--weights DIR] [--out DIR]
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
from data import draw_task, load
from learners import by_image, log_scores, view
from pca import log_probs as pca_log_probs
from pca import two_level_on_components
from render import CACHE
from scipy.optimize import minimize_scalar
from tqdm import tqdm
from train import SETTINGS, SHOTS

from bayesinf import meta_niw
from bayesinf.distributions import Diagonal, NormalInverseWishart
from bayesinf.plots.meta import reliability, reliability_figure

SEED, NUM_TASKS, QUERIES, WAYS, BINS = 0, 600, 10, (5, 20), 15
NIW = ("two_level", "one_noise")
WEIGHTS = Path(__file__).parent / "weights"


# One axis of the features: a view of an image is its root times theta plus unit noise.
AXIS = meta_niw.init(
    NormalInverseWishart(jnp.zeros(1), 1.0, 1.0, Diagonal(jnp.ones(1))),
    lambda theta, root: root * theta,
    jnp.ones(1),
    meta_niw.likelihoods.Gaussian(1.0),
)
EXACT = meta_niw.Laplace(num_steps=1)


def episodes(feature, root):
    """Returns classes (c, n) as episodes whose theta is the mean of the class on one axis."""
    return meta_niw.Episode(root[..., None], root * feature, jnp.ones(root.shape, bool))


def class_means(root, params, images):
    """Returns the posterior over what class means have in common, axis by axis, by the closed step.

    The prior is the one that the backbone was trained with, worth one class; the axes are a product
    of one-dimensional Normal-Inverse-Wisharts.
    """
    views = jax.lax.map(lambda one: view(root, params, one), images)

    def axis(mean, log_sd, feature, root):
        scale = Diagonal(jnp.exp(2 * log_sd)[None])
        prior = NormalInverseWishart(mean[None], 1.0, 1.0, scale)
        state = AXIS._replace(prior=prior, posterior=prior)
        return meta_niw.update(state, episodes(feature, root), local=EXACT)[0].posterior

    return jax.jit(jax.vmap(axis, (0, 0, -1, -1)))(params["mean"], params["log_sd"], *views)


def bayes(root, params, means, task):
    """Returns log probabilities (N, Q, N) from the Student-t predictives of `meta_niw`."""
    support, query = (view(root, params, images) for images in task)

    def axis(means, feature, root, query_feature, query_root):
        state = AXIS._replace(posterior=means)
        posterior = meta_niw.adapt(state, episodes(feature, root), local=EXACT)
        roots = jnp.broadcast_to(query_root.reshape(1, -1, 1), (len(root), query_root.size, 1))
        y = roots[..., 0] * query_feature.reshape(1, -1)
        return meta_niw.predict(posterior, roots).log_prob(y)

    by_axis = jax.vmap(axis, (0, -1, -1, -1, -1))(means, *support, *query)
    # The roots' Jacobian is the same for every class.
    return jax.nn.log_softmax(by_axis.sum(0).T.reshape(*query.root.shape[:2], -1))


def choose(found, validation, shots, keys):
    """Returns which of ours has the smaller log loss on the validation scripts."""

    def log_loss(name):
        @jax.jit
        def of(key):
            return measures(found[name](draw_task(key, validation, 5, shots, QUERIES)))[1]

        return np.mean([of(key) for key in keys])

    return min((name for name in found if name.startswith("niw")), key=log_loss)


def tempered(factor, method, task):
    return jax.nn.log_softmax(factor * method(task))


def temperature(log_probs, keys):
    """Returns the factor on log probabilities with the least log loss on validation tasks."""
    found = np.concatenate([np.asarray(log_probs(key)).reshape(-1, 5) for key in keys])
    own = np.tile(np.repeat(np.arange(5), QUERIES), len(keys))

    def log_loss(log_factor):
        scaled = jax.nn.log_softmax(np.exp(log_factor) * found)
        return -float(np.mean(np.asarray(scaled)[np.arange(len(own)), own]))

    return float(np.exp(minimize_scalar(log_loss, bounds=(-4, 3), method="bounded").x))


def measures(log_probs):
    """Returns accuracy, log loss and probabilities (N Q, N) of one episode."""
    own = jnp.arange(len(log_probs))[:, None]
    accuracy = jnp.mean(jnp.argmax(log_probs, -1) == own)
    flat = log_probs.reshape(-1, log_probs.shape[-1])
    return accuracy, -jnp.mean(log_scores(log_probs)), jnp.exp(flat)


def calibration_error(probabilities, labels):
    """Returns the expected calibration error over 15 equal bins of confidence."""
    confidence, accuracy, share = reliability(probabilities, labels, BINS)
    return float(np.sum(share * np.abs(confidence - accuracy)))


def with_interval(values):
    return {
        "value": float(np.mean(values)),
        "ci95": float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values))),
    }


def calibration_interval(probabilities, labels):
    """Returns the calibration error and half its 95 % bootstrap interval over episodes."""
    rng, num = np.random.default_rng(0), len(probabilities)

    def of(tasks):
        return calibration_error(np.concatenate(probabilities[tasks]), np.tile(labels, num))

    again = [of(rng.integers(num, size=num)) for _ in range(100)]
    half = float(np.subtract(*np.percentile(again, [97.5, 2.5])) / 2)
    return {"value": of(np.arange(num)), "ci95": half}


def methods(weights, shots, splits):
    """Returns each method as a function from a task to log probabilities of its queries' classes,
    and which of them want a temperature."""
    params = {
        name: eqx.tree_deserialise_leaves(
            weights / f"{name}_{shots}.eqx", settings[0][0].init(jax.random.key(0))
        )
        for name, settings in SETTINGS.items()
    }
    levels = two_level_on_components(np.concatenate([splits.train, splits.validation]))
    ours = {}
    for name, root in (("two_level", by_image), ("one_noise", jnp.ones_like)):
        means = class_means(root, params[name], jnp.asarray(splits.train))
        ours[f"niw {name}, closed step"] = partial(bayes, root, params[name], means)
    trained = {
        ("niw " * (name in NIW) + name): partial(SETTINGS[name][0][0].log_probs, params[name])
        for name in SETTINGS
    }
    return {
        **ours,
        **trained,
        "pca gaussian": partial(pca_log_probs, levels),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glyphs", type=Path, default=CACHE)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--tasks", type=int, default=NUM_TASKS)
    parser.add_argument("--out", type=Path, default=Path("out/glyphs"))
    arguments = parser.parse_args()
    splits, begin = load(arguments.glyphs), time.perf_counter()
    validation, test = jnp.asarray(splits.validation), jnp.asarray(splits.test)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for shots in SHOTS:
        found = methods(arguments.weights, shots, splits)
        keys = jax.random.split(jax.random.key(SEED + 2), 100)
        chosen = choose(found, validation, shots, keys)
        factors = {}
        for name in ("prototypical", "maml"):

            @jax.jit
            def scored(key, name=name, shots=shots, found=found):
                return found[name](draw_task(key, validation, 5, shots, QUERIES))

            factors[name] = temperature(scored, keys)
            found[f"{name}, tempered"] = partial(tempered, factors[name], found[name])
        for ways in WAYS:

            @jax.jit
            def episode(key, ways=ways, shots=shots, found=found):
                task = draw_task(key, test, ways, shots, QUERIES)
                return {name: measures(method(task)) for name, method in found.items()}

            keys = jax.random.split(jax.random.key(SEED + 3), arguments.tasks)
            bar = tqdm(keys, desc=f"{ways}-way {shots}-shot")
            results = [jax.tree.map(np.asarray, episode(key)) for key in bar]
            results = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
            ours, labels = results[chosen], np.repeat(np.arange(ways), QUERIES)
            print(f"\n{ways}-way {shots}-shot{'':18}accuracy        log loss         ECE")
            for name, (accuracy, log_loss, probabilities) in results.items():
                row = {
                    "method": name,
                    "chosen": name == chosen,
                    "ways": ways,
                    "shots": shots,
                    "accuracy": with_interval(accuracy),
                    "log_loss": with_interval(log_loss),
                    "ece": calibration_interval(probabilities, labels),
                    "ours_minus_it": {
                        "accuracy": with_interval(ours[0] - accuracy),
                        "log_loss": with_interval(ours[1] - log_loss),
                    },
                }
                rows.append(row)
                cells = [
                    f"{row[key]['value']:.4f} +- {row[key]['ci95']:.4f}"
                    for key in ("accuracy", "log_loss", "ece")
                ]
                print(f"{name + ' *' * (name == chosen):30}", "  ".join(cells))
            if ways == 5:
                figure = reliability_figure(
                    {name: np.concatenate(result[2]) for name, result in results.items()},
                    np.tile(labels, arguments.tasks),
                )
                figure.savefig(arguments.out / f"reliability_{shots}.png", dpi=120)
    result = {
        "seed": SEED,
        "tasks": arguments.tasks,
        "minutes": (time.perf_counter() - begin) / 60,
        "rows": rows,
    }
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
