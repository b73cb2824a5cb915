"""Classes as episodes: handwritten digits never seen, told apart after a few pictures of each.

theta of an episode is the mean of a class. Bayes' rule over the predictive densities of the classes
is then the two-level Gaussian classifier, and the nearest class mean is its limit.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal as normal

import bayesinf as bi
from bayesinf.distributions import NormalInverseWishart, full

DIGITS = Path(__file__).parents[1] / "data" / "digits.npz"
FEATURES, QUERIES, EPISODES = 10, 5, 40
EXACT = bi.meta_niw.Laplace(num_steps=1)


@functools.cache
def digits():
    """Returns the pictures, principal components in which digits 0 to 4 vary about their means by
    unit noise, and the labels."""
    with np.load(DIGITS) as data:
        pictures, labels = data["images"].reshape(-1, 64) / 16, data["labels"]
    train = pictures[labels < 5]
    axes = np.linalg.svd(train - train.mean(0), full_matrices=False)[2][:FEATURES].T
    scores = (pictures - train.mean(0)) @ axes
    inner = np.concatenate([scores[labels == k] - scores[labels == k].mean(0) for k in range(5)])
    return pictures, scores @ np.linalg.inv(np.linalg.cholesky(np.cov(inner.T))).T, labels


@functools.cache
def drawn():
    """Returns rows (episodes, 5, 1 + queries) of digits 5 to 9, the first of them the one shown."""
    labels, rng = digits()[2], np.random.default_rng(0)
    where = [np.flatnonzero(labels == k) for k in range(5, 10)]
    take = 1 + QUERIES
    return np.array([[rng.permutation(rows)[:take] for rows in where] for _ in range(EPISODES)])


def episodes(features):
    lead = features.shape[:-1]
    return bi.meta_niw.Episode(jnp.zeros((*lead, 1)), jnp.asarray(features), jnp.ones(lead, bool))


def repeated(theta, x):
    """The network of a class: whatever the input, its mean."""
    return jnp.broadcast_to(theta, (len(x), FEATURES))


def fresh(spread, df=FEATURES + 2.0):
    """Returns a learner of class means in features with unit noise."""
    prior = NormalInverseWishart(np.zeros(FEATURES), 1.0, df, full(spread * df * np.eye(FEATURES)))
    return bi.meta_niw.init(
        prior,
        repeated,
        jnp.zeros(FEATURES),
        bi.meta_niw.likelihoods.Gaussian(1.0),
    )


@functools.cache
def learned():
    """Returns the learner after one pass over digits 0 to 4, each an episode of 170 pictures."""
    _, features, labels = digits()
    seen = np.stack([features[labels == k][:170] for k in range(5)])
    return bi.meta_niw.update(fresh(4.0), episodes(jnp.asarray(seen, float)), local=EXACT)[0]


def log_probs(state):
    """Returns the log probabilities (episodes, queries, 5) of every query's classes, by Bayes."""
    features = jnp.asarray(digits()[1][drawn()])
    posterior = bi.meta_niw.adapt(state, episodes(features[:, :, :1]), local=EXACT)
    query = features[:, :, 1:].reshape(EPISODES, 1, -1, FEATURES)
    query = jnp.broadcast_to(query, (EPISODES, 5, *query.shape[2:]))
    prediction = bi.meta_niw.predict(posterior, jnp.zeros((*query.shape[:3], 1)))
    return jax.nn.log_softmax(jnp.moveaxis(prediction.log_prob(query), 1, -1))


def distances(features):
    """Returns the squared distances (episodes, queries, 5) to the pictures shown."""
    query = features[:, :, 1:].reshape(EPISODES, -1, 1, features.shape[-1])
    return ((query - features[:, None, :, 0]) ** 2).sum(-1)


def scores(table):
    """Returns accuracy and log loss of each episode."""
    own = np.repeat(np.arange(5), QUERIES)
    table = np.asarray(table, float)
    loss = -np.take_along_axis(table, own[None, :, None], -1)[..., 0]
    return (table.argmax(-1) == own).mean(-1), loss.mean(-1)


def z_score(differences):
    return differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences)))


@jax.jit
def nodes(family):
    """Returns log weights and covariances of the Gaussians that make up the task prior."""
    prior = bi.meta_niw.task_prior.student_t(family)
    return prior.log_weights, jax.vmap(lambda cov: cov.dense())(prior.cov)


def test_oracle_bayes_over_classes(x64):
    """Every Gaussian of the task prior is conditioned and weighted by dense normal densities."""
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(FEATURES, FEATURES))
    between, loc = factor @ factor.T + np.eye(FEATURES), rng.normal(size=FEATURES)
    family = NormalInverseWishart(loc, 4.0, 12.0, full(12.0 * between))
    found = log_probs(fresh(1.0)._replace(posterior=family))

    log_weights, covs = nodes(family)
    unit = np.eye(FEATURES)
    for episode, table in zip(digits()[1][drawn()[:2]], found[:2], strict=True):
        shown, query = episode[:, 0], episode[:, 1:].reshape(-1, FEATURES)
        weights, densities = np.empty((2, len(covs), len(query), 5))
        for q, cov in enumerate(covs):
            gain = np.linalg.solve(cov + unit, cov).T
            weights[q] = log_weights[q] + normal(loc, cov + unit).logpdf(shown)
            for k, mean in enumerate(loc + (shown - loc) @ gain.T):
                densities[q, :, k] = normal(mean, cov - gain @ cov + unit).logpdf(query)
        logs = logsumexp(weights + densities, 0) - logsumexp(weights, 0)
        np.testing.assert_allclose(table, log_softmax(logs, -1), atol=1e-9)


def test_oracle_nearest_class_mean_is_the_limit(x64):
    """With means that may be anywhere, the predictive covariance is twice the identity."""
    nearest = log_softmax(-0.25 * distances(digits()[1][drawn()]), -1)
    # Of squared distances up to 100 a prior of variance 1e6 takes about 1e-4.
    np.testing.assert_allclose(log_probs(fresh(1e6)), nearest, atol=1e-3)
    # What is not the limit: means known to be near zero are shrunk towards it.
    assert np.abs(log_probs(fresh(1.0)) - nearest).max() > 0.1


def test_stat_uncertain_means_have_the_smaller_log_loss(x64):
    """At one shot Bayes' log loss is less than where means are taken for known, and so are the
    covariances; z > 4 has a false-alarm rate of 3e-5."""
    _, loss = scores(log_probs(learned()))
    _, plugged = scores(log_softmax(-0.5 * distances(digits()[1][drawn()]), -1))
    assert z_score(plugged - loss) > 4


def test_stat_five_classes_are_too_few_for_accuracy(x64):
    """The covariances of digits 0 to 4 mislead about 5 to 9: the nearest of the raw pictures is
    right more often, by z > 3 (false alarms 1e-3). Chance is .2."""
    right, _ = scores(log_probs(learned()))
    raw, _ = scores(-distances(digits()[0][drawn()]))
    assert z_score(raw - right) > 3
    assert z_score(right - 0.2) > 4
