"""The conjugate step against its equations in NumPy, on episodes where the local fit is exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import digamma

from bayesinf import meta_niw
from bayesinf.distributions import (
    Blocks,
    Diagonal,
    LowRank,
    NormalInverseWishart,
    full,
    low_rank,
)
from bayesinf.meta_niw.learner import blend, fit_locals
from bayesinf.meta_niw.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXACT = meta_niw.Laplace(1)
NOISE = 0.5


def linear(weights, x):
    return x @ weights


def structure(kind, dim):
    a = np.random.default_rng(7).normal(size=(dim, dim))
    return {
        "full": lambda: full(a @ a.T + np.eye(dim)),
        "diagonal": lambda: Diagonal(np.arange(1.0, dim + 1)),
        "blocks": lambda: Blocks((full(a[:2] @ a[:2].T + np.eye(2)), Diagonal(np.ones(dim - 2)))),
        "low rank": lambda: LowRank(a[:, :1], np.ones(dim)),
    }[kind]()


def learner(kind="full", dim=3, df=None):
    loc = np.linspace(-1, 1, dim)
    prior = NormalInverseWishart(loc, 0.5, dim + 2.0 if df is None else df, structure(kind, dim))
    return meta_niw.init(prior, linear, jnp.zeros(dim), Gaussian(NOISE))


def family(num, rows=4, dim=3, seed=0, ragged=True):
    """Episodes of a linear model with tasks around (1, 2, ..)."""
    rng = np.random.default_rng(seed)
    theta = np.arange(1.0, dim + 1) + rng.normal(size=(num, dim)) @ np.tril(np.ones((dim, dim)))
    x = rng.normal(size=(num, rows, dim))
    y = np.einsum("nkd,nd->nk", x, theta) + NOISE * rng.normal(size=(num, rows))
    sizes = rng.integers(1, rows + 1, size=num) if ragged else np.full(num, rows)
    mask = np.arange(rows) < sizes[:, None]
    return meta_niw.Episode(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))


def posteriors(episodes, loc, cov):
    """Means and covariances of all episodes, by dense algebra on the rows that are there."""
    precision = np.linalg.inv(cov)
    means, covs = [], []
    for x, y, mask in zip(*map(np.asarray, episodes), strict=True):
        x, y = x[mask], y[mask]
        covs.append(np.linalg.inv(x.T @ x / NOISE**2 + precision))
        means.append(covs[-1] @ (x.T @ y / NOISE**2 + precision @ loc))
    return np.array(means), np.array(covs)


def conjugate(prior, means, covs):
    """The closed form of the global step, as its equations stand."""
    l_0, loc_0, n_0 = float(prior.strength), np.asarray(prior.loc), float(prior.df)
    num, mean = len(means), means.mean(0)
    gap = mean - loc_0
    scale = np.asarray(prior.scale.dense()) + covs.sum(0) + (means - mean).T @ (means - mean)
    scale = scale + l_0 * num / (l_0 + num) * np.outer(gap, gap)
    return (l_0 * loc_0 + num * mean) / (l_0 + num), l_0 + num, n_0 + num, scale


@pytest.mark.parametrize("kind", ["full", "diagonal", "blocks"])
def test_oracle_update_is_the_conjugate_step(x64, kind):
    state, episodes = learner(kind), family(12)
    prior = state.prior
    means, covs = posteriors(episodes, prior.loc, prior.expected_precision().dense())
    loc, strength, df, scale = conjugate(prior, means, covs)
    held = np.asarray(prior.scale.dense()) != 0
    new, _ = meta_niw.update(state, episodes, local=EXACT)
    np.testing.assert_allclose(new.posterior.loc, loc, atol=1e-10)
    np.testing.assert_allclose([new.posterior.strength, new.posterior.df], [strength, df])
    np.testing.assert_allclose(new.posterior.scale.dense(), np.where(held, scale, 0), atol=1e-9)
    assert int(new.count) == 12
    # The control: the covariances of the episodes are forgotten.
    forgot = conjugate(prior, means, 0 * covs)[3]
    assert np.abs(new.posterior.scale.diagonal() - np.diag(forgot)).max() > 0.1


def test_oracle_low_rank_keeps_the_diagonal_of_the_full_step(x64):
    state, episodes = learner("low rank", dim=6, df=8.0), family(12, dim=6)
    prior = state.prior
    means, covs = posteriors(episodes, prior.loc, prior.expected_precision().dense())
    loc, _, _, scale = conjugate(prior, means, covs)
    new, _ = meta_niw.update(state, episodes, local=EXACT)
    np.testing.assert_allclose(new.posterior.loc, loc, atol=1e-10)
    np.testing.assert_allclose(new.posterior.scale.diagonal(), np.diag(scale), rtol=1e-10)

    def kl(cov):
        ratio = np.linalg.solve(np.asarray(cov), scale)
        return 0.5 * (np.trace(ratio) - 6 - np.linalg.slogdet(ratio)[1])

    # The control: the diagonal alone.
    assert kl(new.posterior.scale.dense()) < 0.5 * kl(np.diag(np.diag(scale)))


def test_oracle_local_optimum_is_that_of_a_search(x64):
    # The local closed form against BFGS on E[-log p(D | theta)] + E KL(q_i || N(mu, Sigma)).
    state = learner()
    niw = state.posterior
    one = jax.tree.map(lambda rows: rows[0], family(1, ragged=False))
    x, y = np.asarray(one.x), np.asarray(one.y)
    loc, df, scale = np.asarray(niw.loc), float(niw.df), np.asarray(niw.scale.dense())
    log_det = np.linalg.slogdet(scale)[1] - 3 * np.log(2) - digamma((df - np.arange(3)) / 2).sum()
    inverse = np.linalg.inv(scale)
    rows = np.tril_indices(3)

    def loss(point):
        mean, chol = point[:3], np.zeros((3, 3))
        chol[rows] = point[3:]
        cov = chol @ chol.T
        fit = np.sum((y - x @ mean) ** 2) + np.trace(x @ cov @ x.T)
        gap = mean - loc
        kl = (
            log_det
            - np.linalg.slogdet(cov)[1]
            + df * (np.trace(inverse @ cov) + gap @ inverse @ gap)
        )
        return 0.5 * fit / NOISE**2 + 0.5 * kl

    start = np.r_[np.zeros(3), np.eye(3)[rows]]
    point = minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).x
    point = minimize(loss, point, method="Newton-CG", jac=gradient(loss), options={"xtol": 1e-13}).x
    chol = np.zeros((3, 3))
    chol[rows] = point[3:]
    mean, cov = fit_one(state, niw.expected_precision(), one)
    np.testing.assert_allclose(mean, point[:3], atol=1e-7)
    np.testing.assert_allclose(cov, chol @ chol.T, atol=1e-7)
    # The control: the mode, the paper's prior at test time.
    narrow, _ = fit_one(state, niw.mode_covariance(), one)
    assert np.abs(narrow - point[:3]).max() > 1e-3


@eqx.filter_jit
def fit_one(state, cov, one):
    found = EXACT(state.model, state.posterior.loc, cov, one)
    return found.mean, found.dense()


def gradient(f, step=1e-5):
    def slope(x):
        moves = step * np.eye(len(x))
        # Of fourth order, so that rounding and truncation are both below 1e-9.
        return np.array(
            [(8 * (f(x + h) - f(x - h)) - f(x + 2 * h) + f(x - 2 * h)) / (12 * step) for h in moves]
        )

    return slope


@eqx.filter_jit
def natural(state):
    return state.posterior.natural()


def pick(episodes, rows):
    return jax.tree.map(lambda leaf: leaf[rows], episodes)


def close(a, b, tolerance=1e-10):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_exact_order_padding_jit_and_empty_episodes_change_nothing(x64):
    state, episodes = learner(), family(12)
    whole, info = meta_niw.update(state, episodes, local=EXACT)
    order = np.random.default_rng(1).permutation(12)
    shuffled, _ = meta_niw.update(state, pick(episodes, order), local=EXACT)
    close(whole.posterior, shuffled.posterior)
    # The control: one call after another, each of which fits under what the last one learned.
    streams = [state, state]
    for index in range(0, 12, 6):
        for at, indices in enumerate((np.arange(12), order)):
            part = pick(episodes, indices[index : index + 6])
            streams[at] = meta_niw.update(streams[at], part, local=EXACT)[0]
    with pytest.raises(AssertionError):
        close(*(each.posterior for each in streams))
    # The control: the rows that a mask hides are counted.
    told = episodes._replace(mask=jnp.ones_like(episodes.mask))
    with pytest.raises(AssertionError):
        close(whole.posterior, meta_niw.update(state, told, local=EXACT)[0].posterior)
    jitted, _ = jax.jit(lambda s, e: meta_niw.update(s, e, local=EXACT))(state, episodes)
    close(whole.posterior, jitted.posterior)
    # Two episodes without data, whose rows hold anything, and a leading axis more.
    hidden = pick(episodes, np.arange(2))._replace(mask=jnp.zeros((2, 4), bool))
    longer = jax.tree.map(
        lambda *rows: jnp.concatenate(rows).reshape(2, 7, *rows[0].shape[1:]), episodes, hidden
    )
    padded, more = meta_niw.update(state, longer, local=EXACT)
    close(whole.posterior, padded.posterior)
    assert int(padded.count) == 12
    close(more.log_evidence[:12], info.log_evidence)
    np.testing.assert_allclose(more.log_evidence[12:], 0, atol=1e-12)
    np.testing.assert_allclose(info.kl, whole.posterior.kl(state.prior), rtol=1e-12)


def test_exact_a_thousand_ragged_episodes_add_up_in_one_call(x64):
    state, episodes = learner(), family(1000, rows=10)
    whole, info = meta_niw.update(state, episodes, local=EXACT)
    assert np.isfinite(info.log_evidence).all()
    assert int(whole.count) == 1000
    prior = natural(state)
    gains = []
    for part in (slice(0, 500), slice(500, 1000)):
        new, _ = meta_niw.update(state, pick(episodes, part), local=EXACT)
        gains.append(jax.tree.map(np.subtract, natural(new), prior))
    total = jax.tree.map(lambda a, b, c: a + b + c, prior, *gains)
    close(total, natural(whole), 1e-9)
    with pytest.raises(AssertionError):  # the control: the prior counted with every part
        close(jax.tree.map(np.add, total, prior), natural(whole), 1e-9)


def test_exact_forgetting_falls_back_towards_the_prior(x64):
    state, episodes = learner(), family(12)
    once, _ = meta_niw.update(state, episodes, local=EXACT)
    kept, _ = meta_niw.update(once, episodes, local=EXACT)

    def twice(forgetting):
        return meta_niw.update(once, episodes, forgetting=forgetting, local=EXACT)[0]

    # What was known is kept to a quarter, and the prior makes up the rest.
    mixed = jax.tree.map(
        lambda prior, before, after: after - 0.75 * (before - prior),
        *map(natural, (state, once, kept)),
    )
    close(mixed, natural(twice(0.25)), 1e-9)
    np.testing.assert_allclose(twice(0.25).posterior.df, state.prior.df + 12 * (1 + 0.25))
    with pytest.raises(AssertionError):  # the control: kept to more than a quarter
        close(mixed, natural(twice(0.26)), 1e-9)


def test_a_new_rate_compiles_nothing():
    traced = []

    def local(*given):
        traced.append(1)
        return EXACT(*given)

    state, episodes = learner(), family(3)
    for rate in (0.5, 0.25):
        meta_niw.update(state, episodes, rate, local)
        meta_niw.natural_step(state, episodes, rate, 10 / rate, local)
    assert len(traced) == 2


def test_stat_several_passes_come_to_the_batch_solution(x64):
    num, size = 4000, 20
    state, episodes = learner(), family(num)
    batch, bounds = meta_niw.cavi(state, episodes, num_steps=60, local=EXACT)
    assert bounds[-1] - bounds[-2] < 1e-3
    order = np.concatenate([np.random.default_rng(i).permutation(num) for i in range(3)])

    @eqx.filter_jit
    def stream(state, num_episodes):
        def step(state, now):
            index, rows = now
            part = jax.tree.map(lambda leaf: leaf[rows], episodes)
            rate = (index + 10.0) ** -0.7
            return meta_niw.natural_step(state, part, rate, num_episodes, EXACT)

        rows = jnp.asarray(order.reshape(-1, size))
        return jax.lax.scan(step, state, (jnp.arange(1.0, len(rows) + 1), rows))[0]

    def distance(found):
        scale, exact = (np.asarray(s.posterior.scale.dense()) for s in (found, batch))
        return np.linalg.norm(scale - exact) / np.linalg.norm(exact)

    found = stream(state, jnp.asarray(float(num)))
    assert distance(found) < 0.03
    np.testing.assert_allclose(found.posterior.loc, batch.posterior.loc, atol=0.02)
    np.testing.assert_allclose(found.posterior.df, batch.posterior.df, rtol=1e-6)
    # The control: a step that takes the batch for all episodes.
    assert distance(stream(state, jnp.asarray(float(size)))) > 0.5


def test_blend_is_what_is_differentiated(x64):
    # Gradients through the step are finite, for backbones that train through it.
    state, episodes = learner(), family(4)

    def strength(scale):
        niw = eqx.tree_at(lambda niw: niw.loc, state.prior, scale * state.prior.loc)
        cov = niw.expected_precision()
        found = fit_locals(state.model, niw.loc, cov, episodes, EXACT)
        return jnp.sum(blend(niw, niw, 1.0, jnp.ones(4), found).scale.dense())

    both = jax.jit(jax.value_and_grad(strength))
    step = (both(1 + 1e-6)[0] - both(1 - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(both(1.0)[1], step, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 2.0, full(np.eye(3))), r"prior.df: 2.0 came, > 2 was expected"),
        ((-1.0, 5.0, full(np.eye(3))), "prior.strength: -1.0 came"),
        ((0.5, 5.0, Diagonal(np.array([1.0, 0.0, 1.0]))), r"prior.scale.diag: 0.0 came"),
        ((0.5, 5.0, full(np.eye(2))), "over 2 weights came, 3 was expected"),
        ((0.5, 2.0, low_rank(np.ones(3), 1)), r"prior.df: 2.0 came, > 2 was expected"),
    ],
)
def test_a_prior_that_does_not_fit_is_named(arguments, message):
    strength, df, scale = arguments
    prior = NormalInverseWishart(np.zeros(scale.dim), strength, df, scale)
    with pytest.raises(ValueError, match=message):
        meta_niw.init(prior, linear, jnp.zeros(3), Gaussian(NOISE))


def test_data_that_cannot_be_are_named():
    state, episodes = learner(), family(3)
    with pytest.raises(ValueError, match="y: nan came"):
        meta_niw.update(state, episodes._replace(y=episodes.y.at[1, 0].set(jnp.nan)))


def test_a_state_that_cannot_be_is_named():
    state, episodes = learner(), family(3)
    chol = -state.posterior.scale.chol
    broken = eqx.tree_at(lambda state: state.posterior.scale.chol, state, chol)
    for take in (meta_niw.update, meta_niw.cavi, meta_niw.adapt):
        with pytest.raises(ValueError, match=r"state.posterior.scale.chol: diagonal: -.* came"):
            take(broken, episodes)


def test_learners_are_stacked_by_vmap():
    """Values are looked at where they are known, which in a trace they are not."""

    def fresh(strength):
        prior = NormalInverseWishart(jnp.zeros(3), strength, 5.0, full(np.eye(3)))
        return meta_niw.init(prior, linear, jnp.zeros(3), Gaussian(NOISE))

    states = jax.vmap(fresh)(jnp.array([0.5, 2.0]))
    np.testing.assert_array_equal(states.posterior.strength, [0.5, 2.0])
    with pytest.raises(ValueError, match=r"prior.strength: -1.0 came"):
        fresh(-1.0)
