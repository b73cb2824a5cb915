"""Few-shot learners on one backbone: a prototypical network, MAML, and the two-level Gaussian.

A learner is two functions: `init(key)` to parameters, and `log_probs(params, task)` to the log
probabilities (N, Q, N) of the classes of every query image.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from data import Task
from flax import linen as nn

WIDTH, FEATURES = 32, 64
INNER_STEPS = 5


class Learner(NamedTuple):
    init: Callable
    log_probs: Callable


class Backbone(nn.Module):
    """Three strided convolutions and a linear layer, normalised over each image's own channels."""

    num_outputs: int

    @nn.compact
    def __call__(self, images):
        x = images[..., None]
        for width in (WIDTH, 2 * WIDTH, 2 * WIDTH):
            x = nn.gelu(nn.GroupNorm(num_groups=8)(nn.Dense(width)(_patches(x))))
        return nn.Dense(self.num_outputs)(x.reshape(*x.shape[:-3], -1))


def _patches(x):
    """Returns the 3 x 3 patches at every second pixel, of which a dense layer makes a convolution.

    XLA's own convolution is eight times slower inside a loop on CPU.
    """
    num = (x.shape[1] + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ends = [slice(i, i + 2 * num - 1, 2) for i in range(3)]
    return jnp.concatenate([padded[:, i, j] for i in ends for j in ends], axis=-1)


def _features(network, params, images):
    flat = images.reshape(-1, *images.shape[-2:])
    return network.apply(params, flat).reshape(*images.shape[:-2], -1)


def _start(network, key):
    return network.init(key, jnp.zeros((1, 28, 28)))


def prototypical() -> Learner:
    """Snell, Swersky and Zemel (2017): the class whose mean of features is nearest."""
    network = Backbone(FEATURES)

    def log_probs(params, task: Task):
        support, query = (_features(network, params, images) for images in task)
        gaps = query[:, :, None] - support.mean(1)
        return jax.nn.log_softmax(-jnp.sum(gaps**2, -1))

    return Learner(lambda key: _start(network, key), log_probs)


def maml(rate: float) -> Learner:
    """Finn, Abbeel and Levine (2017): five gradient steps on all weights, second order, from a
    start that is learned, each step and each leaf with a rate of its own (Antoniou et al. 2019).

    The head starts at zero for every class: classes of an episode come in no order.
    """
    network = Backbone(FEATURES)

    def init(key):
        params = _start(network, key)
        rates = jax.tree.map(lambda _: jnp.full(INNER_STEPS, jnp.log(rate)), params)
        return {"network": params, "rates": rates, "head": jnp.full(INNER_STEPS, jnp.log(rate))}

    def log_probs(params, task: Task):
        num_classes = len(task.support)
        head = jnp.zeros((FEATURES + 1, num_classes))

        def score(inner, images):
            weights, head = inner
            features = _features(network, weights, images)
            return jax.nn.log_softmax(features @ head[:-1] + head[-1])

        def loss(inner):
            of_class = jnp.arange(num_classes)[:, None, None]
            return -jnp.mean(jnp.take_along_axis(score(inner, task.support), of_class, -1))

        inner = params["network"], head
        for step in range(INNER_STEPS):
            slope, head_slope = jax.grad(loss)(inner)
            inner = (
                jax.tree.map(
                    lambda w, g, r, step=step: w - jnp.exp(r[step]) * g,
                    inner[0],
                    slope,
                    params["rates"],
                ),
                inner[1] - jnp.exp(params["head"][step]) * head_slope,
            )
        return score(inner, task.query)

    return Learner(init, log_probs)


class View(NamedTuple):
    """What the backbone makes of an image: features, and how much each can be trusted.

    Both are what a linear-Gaussian episode needs: with theta the mean of the class,
    `root * feature = root * theta + noise`, the noise standard normal.
    """

    feature: jax.Array
    root: jax.Array


def by_image(raw):
    """Returns the root precision of each feature of an image, within e^3 one way or the other in
    all: the features carry the scale."""
    return jnp.exp(1.5 * jnp.tanh(raw / 3))


def two_level(root: Callable = by_image) -> Learner:
    """A class is an episode: theta_c ~ N(mu, Sigma), its features theta_c plus noise of the image.

    The posterior of theta_c is the closed form, axis by axis, and a query's class is by Bayes from
    the predictive densities. `root` is what the backbone's second half of outputs says of the
    noise; with `jnp.ones_like` all images share one, and nearest means are the limit of a flat
    prior then.
    """
    network = Backbone(2 * FEATURES)

    def init(key):
        return {
            "network": _start(network, key),
            "mean": jnp.zeros(FEATURES),
            "log_sd": jnp.zeros(FEATURES),
        }

    def log_probs(params, task: Task):
        prior = params["mean"], jnp.exp(-2 * params["log_sd"])
        return jax.nn.log_softmax(log_predictive(*prior, *(view(root, params, x) for x in task)))

    return Learner(init, log_probs)


def view(root, params, images) -> View:
    """Returns what a two-level learner's backbone makes of images."""
    feature, raw = jnp.split(_features(Backbone(2 * FEATURES), params["network"], images), 2, -1)
    return View(feature, root(raw))


def log_predictive(mean, precision, support: View, query: View):
    """Returns log densities (N, Q, N) of query features under each class's predictive normal."""
    information = support.root**2
    total = precision + information.sum(1)
    centre = (precision * mean + jnp.sum(information * support.feature, 1)) / total
    variance = 1 / query.root[:, :, None] ** 2 + 1 / total
    gaps = query.feature[:, :, None] - centre
    return -0.5 * jnp.sum(gaps**2 / variance + jnp.log(2 * jnp.pi * variance), -1)


def log_scores(log_probs):
    """Returns the log probability of each query's own class."""
    return jnp.take_along_axis(log_probs, jnp.arange(len(log_probs))[:, None, None], -1)[..., 0]
