"""From a support to predictions: exact cases, calibration, networks of any make, bad input."""

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bayesinf as bi
from bayesinf.distributions import NormalInverseWishart, full
from bayesinf.distributions.covariance import Diagonal
from bayesinf.meta_niw import likelihoods, task_prior
from bayesinf.meta_niw.adapt import Prediction
from bayesinf.meta_niw.sgld import closed_form

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOISE = 0.4
PLUG_IN = task_prior.expected_precision
ONE_STEP = bi.meta_niw.Laplace(num_steps=1)


def times(weights, x):
    return x @ weights


student_t = eqx.filter_jit(task_prior.student_t)


def learner(dim=3, likelihood=None, df=6.0, apply_fn=None, params=None):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(dim, dim))
    niw = NormalInverseWishart(
        jnp.asarray(rng.normal(size=dim)), 4.0, df, full(a @ a.T + np.eye(dim))
    )
    params = jnp.zeros(dim) if params is None else params
    apply_fn = apply_fn or times
    return bi.meta_niw.init(niw, apply_fn, params, likelihood or likelihoods.Gaussian(NOISE))


def rows(num, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)), rng.normal(size=num)


def test_oracle_student_t_prediction(x64):
    """With theta ~ t, as a scale mixture of normals: posterior, evidence and predictive density by
    a fine integral over the scale, each conditional exact by dense algebra."""
    state = learner()
    (x, y), (query, target) = rows(2), rows(2, seed=1)
    marginal = state.posterior.marginal()
    df, shape = float(marginal.df), np.asarray(marginal.scale.dense())
    loc, nodes = np.asarray(state.posterior.loc), 4000
    u = stats.gamma(df / 2, scale=2 / df).ppf((np.arange(nodes) + 0.5) / nodes)

    def log_density(x, y):
        given = [
            stats.multivariate_normal(
                x @ loc, x @ shape @ x.T / each + NOISE**2 * np.eye(len(y))
            ).logpdf(y)
            for each in u
        ]
        return np.log(np.mean(np.exp(given)))

    def prior(niw):
        return task_prior.student_t(niw, 32)

    posterior = bi.meta_niw.adapt(state, bi.meta_niw.episode(x, y), prior, ONE_STEP)
    assert abs(posterior.log_evidence - log_density(x, y)) < 1e-3
    prediction = bi.meta_niw.predict(posterior, query)
    for i in range(2):
        joint = log_density(np.vstack([x, query[i]]), np.append(y, target[i]))
        ours = prediction.log_prob(jnp.asarray(target))[i]
        assert abs(ours - (joint - log_density(x, y))) < 1e-3
    narrow = bi.meta_niw.adapt(state, bi.meta_niw.episode(x, y), task_prior.mode, ONE_STEP)
    with pytest.raises(AssertionError):  # negative control: the paper's mode
        assert abs(narrow.log_evidence - log_density(x, y)) < 1e-3


def test_a_prediction_has_the_moments_and_draws_of_its_density(x64, key):
    state = learner()
    posterior = bi.meta_niw.adapt(state, bi.meta_niw.episode(*rows(2)), local=ONE_STEP)
    prediction = bi.meta_niw.predict(posterior, rows(1, seed=2)[0])
    grid = jnp.linspace(-60, 60, 24_001)
    many = Prediction(
        prediction.likelihood,
        jnp.repeat(prediction.log_weights, grid.size, 0),
        jnp.repeat(prediction.output_means, grid.size, 0),
        jnp.repeat(prediction.output_covs, grid.size, 0),
    )
    density = np.exp(many.log_prob(grid)) * (grid[1] - grid[0])
    assert abs(density.sum() - 1) < 1e-6
    mean = density @ grid
    np.testing.assert_allclose(prediction.mean()[0, 0], mean, atol=1e-5)
    np.testing.assert_allclose(prediction.cov()[0, 0, 0], density @ (grid - mean) ** 2, rtol=1e-3)
    draws = jax.vmap(prediction.sample)(jax.random.split(key, 4000))[:, 0, 0]
    cdf = np.interp(draws, grid, np.cumsum(density))
    assert stats.kstest(cdf, "uniform").pvalue > 1e-4  # false alarm 1e-4
    sampled = bi.meta_niw.predict_sampled(key, posterior, rows(1, seed=2)[0], 2000)
    exact = prediction.log_prob(jnp.zeros(1))[0]
    assert abs(sampled.log_prob(jnp.zeros(1))[0] - exact) < 0.15


def test_no_support_predicts_with_the_prior(x64):
    state = learner()
    query, target = rows(4, seed=1)
    for empty in (
        bi.meta_niw.episode(np.zeros((0, 3)), np.zeros(0)),
        bi.meta_niw.episode(*rows(1), mask=[False]),
    ):
        posterior = bi.meta_niw.adapt(state, empty)
        prior = student_t(state.posterior)
        assert abs(posterior.log_evidence) < 1e-14
        np.testing.assert_allclose(posterior.log_weights, prior.log_weights, atol=1e-14)
        np.testing.assert_array_equal(posterior.locals.mean, prior.loc)
        prediction = bi.meta_niw.predict(posterior, query)
        var = np.sum((query @ np.asarray(prior.cov.chol)) ** 2, axis=-1).T + NOISE**2
        each = stats.norm(query @ np.asarray(prior.loc).T, np.sqrt(var)).pdf(target[:, None])
        exact = np.log(each @ np.exp(prior.log_weights))
        np.testing.assert_allclose(prediction.log_prob(jnp.asarray(target)), exact, atol=1e-9)


def test_one_episode_or_a_thousand_ragged_ones(x64):
    state = learner()
    rng = np.random.default_rng(0)
    many = bi.meta_niw.batch([bi.meta_niw.episode(*rows(n, seed=n)) for n in (1, 3, 2)])
    episodes = jax.tree.map(lambda leaf: jnp.resize(leaf, (1000, *leaf.shape[1:])), many)
    posterior = bi.meta_niw.adapt(state, episodes, local=ONE_STEP)
    assert posterior.log_weights.shape == (1000, 8)
    query = rng.normal(size=(1000, 2, 3))
    prediction = bi.meta_niw.predict(posterior, query)
    assert prediction.mean().shape == (1000, 2, 1)
    one = bi.meta_niw.adapt(state, bi.meta_niw.episode(*rows(2, seed=2)), local=ONE_STEP)
    assert abs(posterior.log_evidence[2] - one.log_evidence) < 1e-10
    alone = bi.meta_niw.predict(one, query[2])
    np.testing.assert_allclose(prediction.mean()[2], alone.mean(), atol=1e-10)
    # Two leading axes, and inside of a caller's jit.
    stacked = jax.tree.map(lambda leaf: leaf.reshape(2, 500, *leaf.shape[1:]), episodes)
    evidence = eqx.filter_jit(bi.meta_niw.log_evidence)(state, stacked, local=ONE_STEP)
    np.testing.assert_allclose(evidence.reshape(-1), posterior.log_evidence, atol=1e-10)
    # The control: padding that is counted.
    told = stacked._replace(mask=jnp.ones_like(stacked.mask))
    evidence = eqx.filter_jit(bi.meta_niw.log_evidence)(state, told, local=ONE_STEP)
    assert abs(evidence[0, 2] - one.log_evidence) > 1e-3


def ranks(state, prior, num, seed=0):
    """Returns the normal scores of the truth under its posterior, along a fixed direction."""
    rng = np.random.default_rng(seed)
    niw = state.posterior
    chol = np.asarray(niw.scale.chol) / np.sqrt(float(niw.df))
    theta = np.asarray(niw.loc) + rng.normal(size=(num, 3)) @ chol.T
    x = rng.normal(size=(num, 2, 3))
    y = np.einsum("nkd,nd->nk", x, theta) + NOISE * rng.normal(size=(num, 2))
    episodes = bi.meta_niw.Episode(*map(jnp.asarray, (x, y, np.ones((num, 2), bool))))
    posterior = bi.meta_niw.adapt(state, episodes, prior, ONE_STEP)
    direction = jnp.array([1.0, -0.5, 0.3])

    @jax.jit
    @jax.vmap
    @jax.vmap
    def along(local):
        return local.mean @ direction, local.covariance_of(direction[None])[0, 0]

    mean, var = (np.asarray(each)[:, 0] for each in along(posterior.locals))
    return (theta @ np.asarray(direction) - mean) / np.sqrt(var)


def test_stat_posteriors_are_calibrated(x64):
    """SBC over 2,000 tasks drawn from the prior: the truth's probability under its posterior is
    uniform, by a Kolmogorov-Smirnov test with a false-alarm rate of 1e-4."""
    state = learner()
    assert stats.kstest(stats.norm.cdf(ranks(state, PLUG_IN, 2000)), "uniform").pvalue > 1e-4
    # Negative control: the mode, narrower than what the tasks are drawn from.
    scores = ranks(state, task_prior.mode, 2000)
    assert stats.kstest(stats.norm.cdf(scores), "uniform").pvalue < 1e-6


def test_the_papers_diagonal_form_costs_what_the_couplings_are_worth(x64):
    """d = 20, K = 10, correlation .7: the default scores the exact 2.007 nats, the diagonal form
    (diagonal curvature at the least-squares fit, diagonal prior) about 15.1."""
    dim, num, noise = 20, 600, 0.1**0.5
    rng = np.random.default_rng(0)
    sigma = 0.3 * np.eye(dim) + 0.7
    chol = np.linalg.cholesky(sigma)
    x, query = rng.normal(size=(num, 10, dim)), rng.normal(size=(num, 10, dim))
    theta = rng.normal(size=(num, dim)) @ chol.T
    y = np.einsum("nkd,nd->nk", x, theta) + noise * rng.normal(size=(num, 10))
    target = np.einsum("nkd,nd->nk", query, theta) + noise * rng.normal(size=(num, 10))
    df = 40.0
    niw = NormalInverseWishart(jnp.zeros(dim), 1.0, df, full(df * sigma))
    state = bi.meta_niw.init(niw, times, jnp.zeros(dim), likelihoods.Gaussian(noise))
    support = bi.meta_niw.Episode(jnp.asarray(x), jnp.asarray(y), jnp.ones((num, 10), bool))

    def score(posterior):
        return -bi.meta_niw.predict(posterior, query).log_prob(jnp.asarray(target)).mean(1)

    default = score(bi.meta_niw.adapt(state, support, PLUG_IN))
    gain = np.einsum("nkd,de->nke", x, sigma)
    inner = np.einsum("nke,nje->nkj", gain, x) + noise**2 * np.eye(10)
    mean = np.einsum("nke,nk->ne", gain, np.linalg.solve(inner, y[..., None])[..., 0])
    post = sigma - np.einsum("nke,nkf->nef", gain, np.linalg.solve(inner, gain))
    var = np.einsum("nkd,nde,nke->nk", query, post, query) + noise**2
    residual = target - np.einsum("nkd,nd->nk", query, mean)
    exact = 0.5 * np.mean(np.log(2 * np.pi * var) + residual**2 / var, 1)
    np.testing.assert_allclose(default, exact, atol=0.01)

    def diagonal(model, loc, cov, episode):
        curvature = jnp.sum(episode.x**2, 0) / noise**2
        gram = episode.x.T @ episode.x / noise**2 + 1e-3 * jnp.eye(dim)
        center = jnp.linalg.solve(gram, episode.x.T @ episode.y / noise**2)
        return closed_form(loc, cov, center, curvature, jnp.zeros(()))

    paper = score(bi.meta_niw.adapt(state, support, PLUG_IN, diagonal))
    error = np.sqrt(np.var(exact) / num), np.sqrt(np.var(paper) / num)
    print(
        f"exact {exact.mean():.3f} +- {error[0]:.3f}, paper's {paper.mean():.2f} +- {error[1]:.2f}"
    )
    assert abs(exact.mean() - 2.007) < 5 * error[0]
    assert abs(paper.mean() - 15.13) < 5 * error[1]


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(flax.linen.Dense(4)(x))
        return flax.linen.Dense(3)(hidden)


class Nnx(flax.nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = flax.nnx.Linear(2, 4, rngs=rngs), flax.nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def networks(key):
    """Returns one network, written in four ways: (apply_fn, params, which leaves adapt)."""
    linen = Linen()
    params = linen.init(key, jnp.zeros((1, 2)))["params"]
    first, second = params["Dense_0"], params["Dense_1"]
    head = {"Dense_0": False, "Dense_1": True}
    yield lambda p, x: linen.apply({"params": p}, x), params, head, None

    network = Nnx(flax.nnx.Rngs(0))
    for layer, given in ((network.first, first), (network.second, second)):
        layer.kernel[...], layer.bias[...] = given["kernel"], given["bias"]
    graph, state = flax.nnx.split(network)
    which = jax.tree_util.tree_map_with_path(lambda path, _: "second" in str(path), state)
    yield lambda p, x: flax.nnx.merge(graph, p)(x), state, which, None

    network = Equinox(eqx.nn.Linear(2, 4, key=key), eqx.nn.Linear(4, 3, key=key))
    for name, given in (("first", first), ("second", second)):
        network = eqx.tree_at(
            lambda net, name=name: (getattr(net, name).weight, getattr(net, name).bias),
            network,
            (given["kernel"].T, given["bias"]),
        )
    which = eqx.tree_at(
        lambda net: (net.first, net.second), network, (False, True), is_leaf=lambda x: x is None
    )
    yield lambda net, x: jax.vmap(net)(x), network, which, None

    # The frozen part by itself, which a local fit then goes through once.
    yield (
        lambda p, h: h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"],
        params,
        head,
        lambda p, x: jnp.tanh(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]),
    )


def test_flax_and_equinox_give_the_same_numbers(key):
    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(2, 4, 2)).astype(np.float32)
    support = bi.meta_niw.episode(x, [0, 2, 1, 2])
    found = []
    for apply_fn, params, which, features in networks(key):
        niw = NormalInverseWishart(jnp.zeros(15), 2.0, 6.0, Diagonal(jnp.full(15, 6.0)))
        state = bi.meta_niw.init(niw, apply_fn, params, likelihoods.Categorical(), which, features)
        posterior = bi.meta_niw.adapt(state, support, PLUG_IN, ONE_STEP)
        found.append((posterior.log_evidence, bi.meta_niw.predict(posterior, query).mean()))
        # A pytree: through a flatten and a jit, to the bit.
        leaves, structure = jax.tree.flatten(state)
        again = jax.tree.unflatten(structure, leaves)
        assert jax.tree.structure(again) == structure
        same = bi.meta_niw.adapt(again, support, PLUG_IN, ONE_STEP)
        assert same.log_evidence == posterior.log_evidence
    for evidence, mean in found[1:]:
        np.testing.assert_allclose(evidence, found[0][0], rtol=1e-6)
        np.testing.assert_allclose(mean, found[0][1], atol=1e-6)


def test_a_class_that_is_missing_is_predicted_all_the_same():
    state = learner(6, likelihoods.Categorical(), 9.0, times, jnp.zeros((2, 3)))
    rng = np.random.default_rng(0)
    support = bi.meta_niw.episode(rng.normal(size=(4, 2)), [0, 0, 2, 2])

    def loss(state):
        posterior = bi.meta_niw.adapt(state, support, local=ONE_STEP)
        prediction = bi.meta_niw.predict(posterior, np.ones((3, 2), np.float32))
        return -jnp.sum(prediction.log_prob(jnp.array([0, 1, 2]))), prediction.mean()

    slope_of = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))
    (value, probabilities), slope = slope_of(state)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities > 0).all()
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def hand_made(**changes):
    x, y = (jnp.asarray(part, jnp.float32) for part in rows(3))
    return bi.meta_niw.Episode(x, y, jnp.ones(3, bool))._replace(**changes)


def classes(y):
    state = learner(6, likelihoods.Categorical(), 9.0, times, jnp.zeros((3, 2)))
    return bi.meta_niw.adapt(state, hand_made(y=jnp.asarray(y)))


def shaped(function):
    return bi.meta_niw.adapt(learner(apply_fn=function), hand_made())


def predicted(x):
    return bi.meta_niw.predict(bi.meta_niw.adapt(learner(), hand_made(), local=ONE_STEP), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classes([0, 1, 2]), r"y: 2 came in row \(2,\), a value in the support of the Cat"),
        (lambda: classes([0, -1, 1]), r"y: -1 came in row \(1,\)"),
        (
            lambda: bi.meta_niw.adapt(learner(), hand_made(x=jnp.full((3, 3), jnp.nan))),
            r"x: \[nan nan nan\] came in row \(0,\), finite numbers were expected",
        ),
        (
            lambda: bi.meta_niw.adapt(learner(), hand_made(y=jnp.array([0, jnp.inf, 0]))),
            r"y: inf came in row \(1,\)",
        ),
        (
            lambda: bi.meta_niw.adapt(learner(), hand_made(y=jnp.zeros((3, 2)))),
            r"y: rows of shape \(2,\) came for 1 outputs of apply_fn, 1 numbers were expected",
        ),
        (lambda: bi.meta_niw.adapt(learner(), hand_made(mask=jnp.ones(2, bool))), "x: shape"),
        (lambda: shaped(lambda w, x: jnp.sum(x @ w)), r"apply_fn: outputs of shape \(\) and dtype"),
        (lambda: shaped(lambda w, x: (x @ w)[:, None, None]), "apply_fn: outputs of shape"),
        (lambda: shaped(lambda w, x: (x @ w)[:-1]), "apply_fn: outputs of shape"),
        (lambda: shaped(lambda w, x: (x @ w) > 0), "apply_fn: outputs of shape .* bool"),
        (lambda: predicted(np.full((2, 3), np.nan)), "query_x: NaN or an infinity came"),
        (lambda: predicted(np.float32(1.0)), r"query_x: shape \(\) came"),
        (
            lambda: predicted(np.zeros((2, 3), np.float32)).log_prob(jnp.zeros(3)),
            r"y: shape \(3,\) came, rows \(2,\) of 1 numbers expected",
        ),
        (
            lambda: bi.meta_niw.model(lambda w, x: x, {"a": 1}, likelihoods.Bernoulli()),
            "adapt: no leaf of params that holds floats",
        ),
        (
            lambda: bi.meta_niw.model(
                lambda w, x: x, {"a": jnp.zeros(1)}, likelihoods.Bernoulli(), {"b": True}
            ),
            "adapt: no prefix of the tree of params",
        ),
        (
            lambda: bi.meta_niw.model(
                lambda w, x: x, {"a": jnp.zeros(1)}, likelihoods.Bernoulli(), {"a": "yes"}
            ),
            "adapt: leaves other than True and False",
        ),
        (
            lambda: bi.meta_niw.predict_sampled(
                *(jax.random.key(0), bi.meta_niw.adapt(learner(), hand_made(), local=ONE_STEP)),
                *(np.zeros((1, 3)), 0),
            ),
            "num_samples: 0 came",
        ),
    ],
)
def test_bad_input_says_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_traced_rows_that_are_bad_are_hidden_and_gradients_stay_finite():
    state = learner()
    broken = hand_made(x=hand_made().x.at[1].set(jnp.nan), y=hand_made().y.at[2].set(jnp.inf))
    alone = hand_made(mask=jnp.array([True, False, False]))

    def evidence(state, one):
        return bi.meta_niw.log_evidence(state, one, local=ONE_STEP)

    slope_of = eqx.filter_jit(eqx.filter_value_and_grad(evidence))
    value, slope = slope_of(state, broken)
    expected, wanted = slope_of(state, alone)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(slope), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
