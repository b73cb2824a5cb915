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


def prototypical(num_features: int = FEATURES) -> Learner:
    """Snell, Swersky and Zemel (2017): the class whose mean of features is nearest."""
    network = Backbone(num_features)

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

        def step(inner, rates):
            slopes = jax.grad(loss)(inner)
            return jax.tree.map(lambda w, g, r: w - jnp.exp(r) * g, inner, slopes, rates), None

        inner = params["network"], head
        inner, _ = jax.lax.scan(step, inner, (params["rates"], params["head"]))
        return score(inner, task.query)

    return Learner(init, log_probs)


def two_level(num_features: int = FEATURES) -> Learner:
    """A class is an episode: theta_c ~ N(mu, Sigma), and its features are theta_c plus unit noise.

    Unit noise and a diagonal Sigma are no restriction: one linear map makes any two covariances
    such, and the backbone's last layer is linear. The posterior of theta_c is the closed form, axis
    by axis, and a query's class is by Bayes; nearest means are the limit of a flat prior.
    """
    network = Backbone(num_features)

    def init(key):
        mean, log_sd = jnp.zeros(num_features), jnp.ones(num_features)
        return {"network": _start(network, key), "mean": mean, "log_sd": log_sd}

    def log_probs(params, task: Task):
        support, query = (features(params, images) for images in task)
        prior = params["mean"], jnp.exp(-2 * params["log_sd"])
        return jax.nn.log_softmax(log_predictive(*prior, support, query))

    return Learner(init, log_probs)


def features(params, images):
    """Returns what a two-level learner's backbone makes of images."""
    return _features(Backbone(len(params["mean"])), params["network"], images)


def log_predictive(mean, precision, support, query):
    """Returns log densities (N, Q, N), up to a constant, of queries under each class's predictive
    normal, all of one covariance."""
    total = precision + support.shape[1]
    centre = (precision * mean + support.sum(1)) / total
    gaps = query[:, :, None] - centre
    return -0.5 * jnp.sum(gaps**2 / (1 + 1 / total), -1)


def log_scores(log_probs):
    """Returns the log probability of each query's own class."""
    return jnp.take_along_axis(log_probs, jnp.arange(len(log_probs))[:, None, None], -1)[..., 0]
