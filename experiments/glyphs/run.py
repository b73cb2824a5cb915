"""Few-shot glyphs: the two-level Gaussian on learned features against its rivals, on new scripts.

600 episodes of scripts that no method has seen, the same for all; accuracy, log loss and expected
calibration error, with intervals over episodes and paired differences. Ours and the prototypical
network come in two widths, of which the validation scripts choose. Rivals also come with a
temperature that was fitted there. The exact two-level Gaussian on 60 principal components is the
floor.

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
from learners import features, log_scores
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
NUM_VALIDATION_TASKS = 200
# The widths that each may have, of which the validation scripts choose; the first is ours.
WIDTHS = ("two_level", "two_level_wide"), ("prototypical", "prototypical_wide"), ("maml",)
WEIGHTS = Path(__file__).parent / "weights"


# One axis of the features: an image's feature is theta plus unit noise.
AXIS = meta_niw.init(
    NormalInverseWishart(jnp.zeros(1), 1.0, 1.0, Diagonal(jnp.ones(1))),
    lambda theta, ones: ones * theta,
    jnp.ones(1),
    meta_niw.likelihoods.Gaussian(1.0),
)
EXACT = meta_niw.Laplace(num_steps=1)


def episodes(feature):
    """Returns classes (c, n) as episodes whose theta is the mean of the class on one axis."""
    return meta_niw.Episode(jnp.ones((*feature.shape, 1)), feature, jnp.ones(feature.shape, bool))


def class_means(params, images):
    """Returns the posterior over what class means have in common, axis by axis, by the closed step.

    The prior is the one that the backbone was trained with, worth one class; the axes are a product
    of one-dimensional Normal-Inverse-Wisharts.
    """

    def axis(mean, log_sd, feature):
        scale = Diagonal(jnp.exp(2 * log_sd)[None])
        prior = NormalInverseWishart(mean[None], 1.0, 1.0, scale)
        state = AXIS._replace(prior=prior, posterior=prior)
        return meta_niw.update(state, episodes(feature), local=EXACT)[0].posterior

    found = jax.lax.map(lambda one: features(params, one / 255), images)
    return jax.jit(jax.vmap(axis, (0, 0, -1)))(params["mean"], params["log_sd"], found)


def bayes(params, means, task):
    """Returns log probabilities (N, Q, N) from the Student-t predictives of `meta_niw`."""
    support, query = (features(params, images) for images in task)

    def axis(means, support, query):
        state = AXIS._replace(posterior=means)
        posterior = meta_niw.adapt(state, episodes(support), local=EXACT)
        y = jnp.broadcast_to(query.reshape(1, -1), (len(support), query.size))
        return meta_niw.predict(posterior, jnp.ones((*y.shape, 1))).log_prob(y)

    by_axis = jax.vmap(axis, (0, -1, -1))(means, support, query)
    return jax.nn.log_softmax(by_axis.sum(0).T.reshape(*query.shape[:2], -1))


def on_validation(method, images, shots, keys):
    """Returns a method's log probabilities (tasks, N, Q, N) on 5-way validation episodes."""

    @jax.jit
    def of(key):
        return method(draw_task(key, images, 5, shots, QUERIES))

    return np.stack([np.asarray(of(key)) for key in keys])


def tempered(factor, method, task):
    return jax.nn.log_softmax(factor * method(task))


def temperature(log_probs):
    """Returns the factor on log probabilities (tasks, N, Q, N) with the least log loss."""

    def log_loss(log_factor):
        scaled = jax.nn.log_softmax(np.exp(log_factor) * log_probs)
        return -float(jnp.mean(jax.vmap(log_scores)(scaled)))

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


def resampled(probabilities, labels):
    """Returns the calibration error on all episodes and on 100 bootstrap samples of them."""
    rng, num = np.random.default_rng(0), len(probabilities)

    def of(tasks):
        return calibration_error(np.concatenate(probabilities[tasks]), np.tile(labels, num))

    return of(np.arange(num)), np.array([of(rng.integers(num, size=num)) for _ in range(100)])


def with_bootstrap(value, again):
    """Returns a value and half its 95 % interval, from the same on bootstrap samples."""
    half = float(np.subtract(*np.percentile(again, [97.5, 2.5])) / 2)
    return {"value": float(value), "ci95": half}


def compare(results, chosen, labels):
    """Returns a row a method: its measures, and those of ours less them, episode by episode."""
    errors = {name: resampled(result[2], labels) for name, result in results.items()}
    ours, (our_error, ours_again) = results[chosen[0]], errors[chosen[0]]
    return [
        {
            "method": name,
            "chosen": name in chosen,
            "accuracy": with_interval(accuracy),
            "log_loss": with_interval(log_loss),
            "ece": with_bootstrap(*errors[name]),
            "ours_minus_it": {
                "accuracy": with_interval(ours[0] - accuracy),
                "log_loss": with_interval(ours[1] - log_loss),
                "ece": with_bootstrap(our_error - errors[name][0], ours_again - errors[name][1]),
            },
        }
        for name, (accuracy, log_loss, _) in results.items()
    ]


def learned(weights, shots, splits):
    """Returns each learned method as a function from a task to log probabilities of the classes of
    its queries; ours with the closed step end in "closed step"."""
    found = {}
    for name, settings in SETTINGS.items():
        learner = settings[0][0]
        params = eqx.tree_deserialise_leaves(
            weights / f"{name}_{shots}.eqx", learner.init(jax.random.key(0))
        )
        found[name] = partial(learner.log_probs, params)
        if name in WIDTHS[0]:
            means = class_means(params, jnp.asarray(splits.train))
            found[f"{name}, closed step"] = partial(bayes, params, means)
    return found


def methods(weights, shots, splits):
    """Returns all methods, the names of those that the validation scripts chose (ours first), and
    the temperatures that were fitted there."""
    found = learned(weights, shots, splits)
    keys = jax.random.split(jax.random.key(SEED + 2), NUM_VALIDATION_TASKS)
    validation = jnp.asarray(splits.validation)
    scores = {name: on_validation(found[name], validation, shots, keys) for name in list(found)}

    def log_loss(name):
        return -np.mean(jax.vmap(log_scores)(scores[name]))

    ours, *rivals = WIDTHS
    chosen = [min([n for n in found if n.startswith(ours)], key=log_loss)]
    factors = {}
    for widths in rivals:
        best = min(widths, key=log_loss)
        factors[best] = temperature(scores[best])
        found[f"{best}, tempered"] = partial(tempered, factors[best], found[best])
        chosen += [best, f"{best}, tempered"]
    levels = two_level_on_components(np.concatenate([splits.train, splits.validation]))
    found["pca gaussian"] = partial(pca_log_probs, levels)
    return found, [*chosen, "pca gaussian"], factors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glyphs", type=Path, default=CACHE)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--tasks", type=int, default=NUM_TASKS)
    parser.add_argument("--out", type=Path, default=Path("out/glyphs"))
    arguments = parser.parse_args()
    splits, begin = load(arguments.glyphs), time.perf_counter()
    test = jnp.asarray(splits.test)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, temperatures = [], {}
    for shots in SHOTS:
        found, chosen, temperatures[shots] = methods(arguments.weights, shots, splits)
        for ways in WAYS:

            @jax.jit
            def episode(key, ways=ways, shots=shots, found=found):
                task = draw_task(key, test, ways, shots, QUERIES)
                return {name: measures(method(task)) for name, method in found.items()}

            keys = jax.random.split(jax.random.key(SEED + 3), arguments.tasks)
            bar = tqdm(keys, desc=f"{ways}-way {shots}-shot")
            results = [jax.tree.map(np.asarray, episode(key)) for key in bar]
            results = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
            labels = np.repeat(np.arange(ways), QUERIES)
            found_rows = compare(results, chosen, labels)
            rows += [{"ways": ways, "shots": shots, **row} for row in found_rows]
            print(f"\n{ways}-way {shots}-shot{'':18}accuracy        log loss         ECE")
            for row in found_rows:
                cells = [
                    f"{row[key]['value']:.4f} +- {row[key]['ci95']:.4f}"
                    for key in ("accuracy", "log_loss", "ece")
                ]
                print(f"{row['method'] + ' *' * row['chosen']:30}", "  ".join(cells))
            if ways == 5:
                figure = reliability_figure(
                    {name: np.concatenate(results[name][2]) for name in chosen},
                    np.tile(labels, arguments.tasks),
                )
                figure.savefig(arguments.out / f"reliability_{shots}.png", dpi=120)
    result = {
        "seed": SEED,
        "tasks": arguments.tasks,
        "minutes": (time.perf_counter() - begin) / 60,
        "temperatures": temperatures,
        "rows": rows,
    }
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
