"""What the Distribution Transformer obeys whatever its weights are.

The networks here are random, with heads so large that their corrections matter.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.kalman import extended
from bayesinf.programs import Frame, Reading, StateSpace, linear_gaussian
from bayesinf.transformers_gmm import AbsoluteTransformer, DistributionTransformer, network, stream
from bayesinf.transformers_gmm.objective import Example, forward_kl


def wild(dim, sensors=("range", "count")):
    """Returns a random network with heads up to 30 times as large as an ordinary layer's."""
    dt = DistributionTransformer(
        jax.random.key(dim), dim, sensors, width=16, num_blocks=1, num_heads=2
    )
    # The heads of the components start at a hundredth of an ordinary layer.
    dt = eqx.tree_at(lambda dt: dt.head.linear.weight, dt, replace_fn=lambda w: 3000 * w)
    # What the last one sees carries the rounding of the first, so it may be 5 times as large.
    dt = eqx.tree_at(lambda dt: dt.last_head.linear.weight, dt, replace_fn=lambda w: 500 * w)
    return eqx.tree_at(lambda dt: dt.view_head.layers[-1].weight, dt, replace_fn=lambda w: 300 * w)


@eqx.filter_jit
def update(dt, model, prior, readings):
    """Returns posterior and info; one function, so that tests of equal shapes compile once."""
    return dt.update(model, prior, readings)


def mixture(rng, k, dim):
    log_weights = rng.normal(size=k)
    chols = np.tril(0.3 * rng.normal(size=(k, dim, dim)), -1)
    chols += np.exp(0.4 * rng.normal(size=(k, dim, 1))) * np.eye(dim)
    parts = log_weights - logsumexp(log_weights), 1.5 * rng.normal(size=(k, dim)), chols
    return GaussianMixture(*(part.astype(np.float32) for part in parts))


def errors(one, other):
    """Returns the largest differences of weights, means and covariances."""
    one, other = jax.tree.map(np.asarray, (one, other))
    covariances = [m.chols @ np.swapaxes(m.chols, 1, 2) for m in (one, other)]
    return np.array(
        [
            np.abs(np.exp(one.log_weights) - np.exp(other.log_weights)).max(),
            np.abs(one.means - other.means).max(),
            np.abs(covariances[0] - covariances[1]).max(),
        ]
    )


# Linear-Gaussian readings: one number of a row, and pairs


def row_sensor(state, context):
    return dist.Normal(context["row"] @ state + context["offset"], context["sd"])


def pair_sensor(state, context):
    return dist.MultivariateNormal(context["matrix"] @ state, scale_tril=context["chol"])


def linear_model(dim):
    return StateSpace(
        gaussian(jnp.zeros(dim), jnp.eye(dim)),
        linear_gaussian(jnp.eye(dim), jnp.eye(dim)),
        {"range": row_sensor, "pair": pair_sensor},
    )


def linear_readings(rng, dim):
    """Returns three rows, of which one is missing, and two pairs, of which one is missing."""
    rows = {"row": rng.normal(size=(3, dim)), "offset": rng.normal(size=3), "sd": np.full(3, 0.6)}
    chol = np.array([[0.7, 0], [0.2, 0.5]])
    pairs = {"matrix": rng.normal(size=(2, 2, dim)), "chol": np.stack([chol, 1.5 * chol])}
    readings = {
        "range": Reading(3 * rng.normal(size=3), rows, np.array([True, False, True])),
        "pair": Reading(2 * rng.normal(size=(2, 2)), pairs, np.array([False, True])),
    }
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, leaf.dtype if leaf.dtype == bool else np.float32), readings
    )


def condition(prior, readings):
    """Returns the exact posterior and log evidence, from the joint Gaussian of all readings."""
    prior, readings = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (prior, readings))
    rows, pairs = readings["range"], readings["pair"]
    matrices, values, noises = [], [], []
    for i in np.flatnonzero(rows.mask):
        matrices.append(rows.context["row"][i : i + 1])
        values.append(rows.value[i : i + 1] - rows.context["offset"][i])
        noises.append(rows.context["sd"][i : i + 1, None] ** 2)
    for i in np.flatnonzero(pairs.mask):
        matrices.append(pairs.context["matrix"][i])
        values.append(pairs.value[i])
        noises.append(pairs.context["chol"][i] @ pairs.context["chol"][i].T)
    matrix, value = np.concatenate(matrices), np.concatenate(values)
    noise = np.zeros((len(value), len(value)))
    start = 0
    for block in noises:
        noise[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    log_weights, means, covariances = [], [], []
    for log_weight, mean, chol in zip(prior.log_weights, prior.means, prior.chols, strict=True):
        covariance = chol @ chol.T
        innovation = matrix @ covariance @ matrix.T + noise
        gain = np.linalg.solve(innovation, matrix @ covariance).T
        means.append(mean + gain @ (value - matrix @ mean))
        covariances.append(covariance - gain @ matrix @ covariance)
        log_density = multivariate_normal.logpdf(value, matrix @ mean, innovation)
        log_weights.append(log_weight + log_density)
    log_evidence = logsumexp(log_weights)
    chols = np.linalg.cholesky(np.stack(covariances))
    with jax.enable_x64(True):
        posterior = GaussianMixture(np.array(log_weights) - log_evidence, np.stack(means), chols)
    return posterior, log_evidence


@pytest.mark.parametrize(("dim", "k"), [(1, 1), (4, 5), (6, 1)])
def test_oracle_linear_gaussian_readings_are_answered_exactly(dim, k):
    # In single precision, against double: 1e-5 is a few dozen roundings of numbers of size 1.
    dt, model = wild(dim), linear_model(dim)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        prior, readings = mixture(rng, k, dim), linear_readings(rng, dim)
        posterior, info = update(dt, model, prior, readings)
        exact, log_evidence = condition(prior, readings)
        assert errors(posterior, exact).max() < 1e-5
        np.testing.assert_allclose(info.log_evidence, log_evidence, rtol=1e-5, atol=1e-5)


def test_oracle_readings_far_from_the_prior_are_answered_exactly():
    # Log densities of minus 1e5 to 1e9, whose rounding alone is many nats, open no gate.
    dt, model = wild(4), linear_model(4)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        prior, readings = mixture(rng, 5, 4), linear_readings(rng, 4)
        far = 10.0 ** (3 + seed % 3)
        readings = {name: r._replace(value=far * r.value) for name, r in readings.items()}
        posterior = update(dt, model, prior, readings)[0]
        exact, _ = condition(prior, readings)
        np.testing.assert_allclose(posterior.means, exact.means, rtol=1e-4, atol=1e-5 * far)
        np.testing.assert_allclose(
            np.exp(posterior.log_weights), np.exp(exact.log_weights), atol=1e-5
        )
        assert errors(posterior, exact)[2] < 1e-5


def test_far_from_the_origin_rounding_opens_no_gate():
    # The state is known to 1e-4 there, a linearised update of it no better.
    dt, model = wild(4), linear_model(4)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        prior, readings = mixture(rng, 5, 4), linear_readings(rng, 4)
        far = GaussianMixture(prior.log_weights, prior.means + 1000, prior.chols)
        row, pair = readings["range"], readings["pair"]
        readings = {
            "range": row._replace(value=row.value + 1000 * row.context["row"].sum(1)),
            "pair": pair._replace(value=pair.value + 1000 * pair.context["matrix"].sum(2)),
        }
        posterior = update(dt, model, far, readings)[0]
        linearised, _ = eqx.filter_jit(extended.update)(model, far, readings)
        assert errors(posterior, linearised)[0] < 1e-4
        assert errors(posterior, linearised)[1:].max() < 1e-3


def test_oracle_without_the_gate_nothing_is_exact(monkeypatch):
    monkeypatch.setattr(network, "gate", jnp.ones_like)
    rng = np.random.default_rng(0)
    prior, readings = mixture(rng, 2, 1), linear_readings(rng, 1)
    # Not the compiled `update`, which may have been traced with the gate.
    posterior = eqx.filter_jit(lambda dt, *a: dt(*a))(wild(1), linear_model(1), prior, readings)
    assert errors(posterior, condition(prior, readings)[0]).max() > 0.1


def test_no_reading_gives_the_prior_back():
    rng = np.random.default_rng(0)
    prior, readings = mixture(rng, 5, 4), linear_readings(rng, 4)
    missing = {name: r._replace(mask=jnp.zeros_like(r.mask)) for name, r in readings.items()}
    posterior, info = update(wild(4), linear_model(4), prior, missing)
    assert errors(posterior, prior).max() < 1e-6
    assert abs(info.log_evidence) < 1e-6
    assert wild(4)(linear_model(4), prior, {}) is prior


# Where the corrections matter: ranges and counts, in any units of the state


def place(state, context):
    return (state - context["origin"]) / context["unit"]


def range_sensor(state, context):
    return dist.StudentT(4.0, jnp.linalg.norm(place(state, context) - context["beacon"]), 0.3)


def count_sensor(state, context):
    return dist.Poisson(jnp.exp(place(state, context)[0]))


def bent_model(dim):
    return StateSpace(
        gaussian(jnp.zeros(dim), jnp.eye(dim)),
        linear_gaussian(jnp.eye(dim), jnp.eye(dim)),
        {"range": range_sensor, "count": count_sensor},
    )


BENT = bent_model(2)


def bent_readings(rng, dim, num_ranges=3):
    shape = (num_ranges, dim)
    context = {
        "beacon": 3 * rng.normal(size=shape),
        "origin": np.zeros(shape),
        "unit": np.ones(shape),
    }
    count = {"origin": np.zeros((1, dim)), "unit": np.ones((1, dim))}
    readings = {
        "range": Reading(4 * rng.random(num_ranges), context, np.ones(num_ranges, bool)),
        "count": Reading(np.array([2.0]), count, np.ones(1, bool)),
    }
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, leaf.dtype if leaf.dtype == bool else np.float32), readings
    )


@pytest.fixture(scope="module")
def dt():
    return wild(2)


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    return mixture(rng, 3, 2), bent_readings(rng, 2)


def test_the_corrections_matter(dt, problem):
    linearised, _ = eqx.filter_jit(extended.update)(BENT, *problem)
    assert (errors(update(dt, BENT, *problem)[0], linearised) > 0.1).all()


def test_permuting_components_permutes_the_posterior(dt, problem):
    prior, readings = problem
    order = np.array([2, 0, 1])
    posterior = update(dt, BENT, prior, readings)[0]
    permuted = update(dt, BENT, jax.tree.map(lambda leaf: leaf[order], prior), readings)[0]
    expected = jax.tree.map(lambda leaf: leaf[order], posterior)
    assert errors(permuted, expected).max() < 1e-4
    assert errors(permuted, posterior).max() > 0.1


def test_permuting_readings_changes_nothing(dt, problem):
    prior, readings = problem
    shuffled = {"range": jax.tree.map(lambda leaf: leaf[::-1], readings["range"])}
    posterior = update(dt, BENT, prior, readings)[0]
    for other in ({**readings, **shuffled}, dict(reversed(readings.items()))):
        assert errors(update(dt, BENT, prior, other)[0], posterior).max() < 1e-4


def test_a_masked_reading_is_an_absent_one(dt, problem):
    prior, readings = problem
    shown = readings["range"]
    masked = {**readings, "range": shown._replace(mask=jnp.array([True, True, False]))}
    absent = {**readings, "range": jax.tree.map(lambda leaf: leaf[:2], shown)}
    posterior, info = update(dt, BENT, prior, masked)
    expected, said = update(dt, BENT, prior, absent)
    assert errors(posterior, expected).max() < 1e-4
    np.testing.assert_allclose(info.log_evidence, said.log_evidence, rtol=1e-5)
    other = {**masked, "range": masked["range"]._replace(value=shown.value.at[2].set(77.0))}
    assert errors(update(dt, BENT, prior, other)[0], posterior).max() == 0
    assert errors(update(dt, BENT, prior, readings)[0], posterior).max() > 0.01


def unit_error(network, model, prior, readings, unit, origin):
    """Returns the largest difference between the answer in other units, turned back, and the
    answer; in log weights, means and factors."""
    moved = GaussianMixture(
        prior.log_weights, prior.means * unit + origin, unit[:, None] * prior.chols
    )
    composed = {
        name: reading._replace(
            context={
                **reading.context,
                "unit": jnp.broadcast_to(unit, reading.context["unit"].shape),
                "origin": jnp.broadcast_to(origin, reading.context["origin"].shape),
            }
        )
        for name, reading in readings.items()
    }
    posterior = update(network, model, prior, readings)[0]
    there = update(network, model, moved, composed)[0]
    back = GaussianMixture(
        there.log_weights, (there.means - origin) / unit, there.chols / unit[:, None]
    )
    gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), back, posterior)
    return max(map(float, jax.tree.leaves(gaps)))


UNITS = [
    (jnp.array([0.02, 50.0]), jnp.array([0.1, -30.0])),
    (jnp.array([50.0, 0.02]), jnp.array([100.0, 0.05])),
    (jnp.array([50.0, 50.0]), jnp.array([0.0, 0.0])),
]


def last_axis(sensor, seed):
    """Returns how far the last of two axes moves in each component's own frame, given the first."""
    rng = np.random.default_rng(seed)
    prior = mixture(rng, 3, 2)
    model = StateSpace(prior, linear_gaussian(jnp.eye(2), jnp.eye(2)), {"range": sensor})
    readings = {"range": Reading(jnp.array([1.5]), None, jnp.array([True]))}
    posterior, _ = update(wild(2), model, prior, readings)
    whiten = jax.vmap(lambda chol, b: jax.scipy.linalg.solve_triangular(chol, b, lower=True))
    moved = whiten(prior.chols, (posterior.means - prior.means)[..., None])[:, 1]
    factors = whiten(prior.chols, posterior.chols)[:, 1]
    return max(np.abs(moved).max(), np.abs(factors - np.array([0.0, 1.0])).max())


def test_oracle_what_no_reading_depends_on_keeps_its_law_given_what_they_do():
    """p(x, y | reading) = p(x | reading) p(y | x) where the reading depends on x alone."""
    for seed in range(3):
        assert last_axis(lambda x, _: dist.Normal(jnp.sqrt(1 + x[0] ** 2), 0.3), seed) < 1e-5
        # The control: the reading depends on y as well, and the law of y given x changes.
        assert (
            last_axis(lambda x, _: dist.Normal(jnp.sqrt(1 + x[0] ** 2 + x[1] ** 2), 0.3), seed)
            > 1e-2
        )


@pytest.mark.parametrize(("unit", "origin"), UNITS)
def test_other_units_and_origins_give_the_same_answer(dt, unit, origin):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        prior, readings = mixture(rng, 3, 2), bent_readings(rng, 2)
        assert unit_error(dt, BENT, prior, readings, unit, origin) < 1e-4


def test_the_absolute_form_depends_on_units(problem):
    sizes = {"range": 7, "count": 5}
    absolute = AbsoluteTransformer(
        jax.random.key(0), 2, sizes, 3, width=16, num_blocks=1, num_heads=2
    )
    assert unit_error(absolute, BENT, *problem, *UNITS[0]) > 0.1


def test_empty_slots_stay_empty_and_are_not_seen(dt, problem):
    prior, readings = problem
    log_weights = jnp.array([jnp.log(0.4), -jnp.inf, jnp.log(0.6)])
    empty = GaussianMixture(log_weights, prior.means, prior.chols)
    means, chols = prior.means.at[1].add(100.0), prior.chols.at[1].multiply(9.0)
    moved = GaussianMixture(log_weights, means, chols)
    posterior = update(dt, BENT, empty, readings)[0]
    other = update(dt, BENT, moved, readings)[0]
    assert posterior.log_weights[1] == other.log_weights[1] == -jnp.inf
    assert jnp.isfinite(posterior.log_weights[jnp.array([0, 2])]).all()
    alive = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], (posterior, other))
    assert errors(*alive).max() < 1e-5
    # A slot that is not empty is seen.
    full = update(dt, BENT, GaussianMixture(prior.log_weights, means, chols), readings)[0]
    assert errors(full, update(dt, BENT, prior, readings)[0])[0] > 0.01


def test_any_number_of_components_and_a_sensor_it_has_never_seen(dt, problem):
    rng = np.random.default_rng(2)
    model = StateSpace(BENT.initial, BENT.dynamics, {"sonar": range_sensor})
    readings = {"sonar": problem[1]["range"]}
    posterior, info = update(dt, model, mixture(rng, 7, 2), readings)
    assert posterior.means.shape == (7, 2)
    posterior.check_values("posterior")
    assert jnp.isfinite(info.log_evidence)
    with pytest.raises(
        ValueError, match="readings: sensor 'radar' came, one of sonar was expected"
    ):
        update(dt, model, problem[0], {"radar": readings["sonar"]})
    with pytest.raises(ValueError, match="prior: dimension 4 came, the network was built for 2"):
        update(dt, model, mixture(rng, 2, 4), readings)


# Bounds


def numbers(low, high, *shape):
    size = int(np.prod(shape))
    floats = st.floats(low, high, width=32)
    return st.lists(floats, min_size=size, max_size=size).map(lambda x: np.reshape(x, shape))


@st.composite
def extreme_problems(draw, dim, k=3):
    """Draws priors with scales from 1e-4 to 1e4 and weights down to 1e-12, and readings that lie
    as far as 1e4 prior standard deviations from them."""
    scales = 10.0 ** draw(numbers(-4, 4, k, dim))
    shears = draw(numbers(-1, 1, k, dim, dim))
    chols = scales[:, :, None] * (np.tril(shears, -1) + np.eye(dim))
    weights = 10.0 ** draw(numbers(-12, 0, k))
    means = draw(numbers(-1e4, 1e4, k, dim))
    directions = draw(numbers(-1, 1, 3, dim))
    beacons = means[0] + 1e4 * scales[0] * directions
    values = np.abs(draw(numbers(0, 1e4, 3)))
    prior = [np.log(weights / weights.sum()), means, chols]
    readings = bent_readings(np.random.default_rng(0), dim)
    context = {**readings["range"].context, "beacon": jnp.asarray(beacons, np.float32)}
    mask = jnp.asarray(draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    shown = Reading(jnp.asarray(values, np.float32), context, mask)
    count = readings["count"]._replace(
        value=jnp.round(jnp.asarray(draw(numbers(0, 1e4, 1)), np.float32))
    )
    prior = GaussianMixture(*(jnp.asarray(part, np.float32) for part in prior))
    return prior, {"range": shown, "count": count}


@pytest.mark.parametrize("dim", [2, 4])
def test_extreme_problems_give_mixtures(dim):
    dt, model = wild(dim), bent_model(dim)

    @settings(max_examples=150, derandomize=True, deadline=None, database=None)
    @given(extreme_problems(dim))
    def check(problem):
        posterior, info = update(dt, model, *problem)
        posterior.check_values("posterior")
        assert jnp.isfinite(posterior.log_weights).all()
        assert jnp.isfinite(info.log_evidence)

    check()


# Compilation and gradients


def test_a_stream_compiles_once_whatever_is_missing(dt):
    traces = []

    def counted(state, context):
        traces.append(None)
        return range_sensor(state, context)

    model = StateSpace(BENT.initial, BENT.dynamics, {"range": counted, "count": count_sensor})
    readings = bent_readings(np.random.default_rng(0), 2)
    seen = []
    for mask in ([True, True, True], [False, True, False], [False, False, False]):
        shown = {**readings, "range": readings["range"]._replace(mask=jnp.array(mask))}
        frame = Frame(jnp.ones(()), None, shown)
        for belief, _ in stream(dt, model, [frame, frame], gaussian(jnp.zeros(2), jnp.eye(2))):
            belief.check_values("belief")
        seen.append(len(traces))
    assert seen[0] > 0
    assert len(set(seen)) == 1


def test_gradients_are_finite_where_readings_are_missing_or_linear():
    # By the network and by the prior; one dimension, since this compiles for long.
    dt, model = (
        wild(1),
        StateSpace(
            gaussian(jnp.zeros(1), jnp.eye(1)),
            linear_gaussian(jnp.eye(1), jnp.eye(1)),
            {"range": range_sensor, "row": row_sensor},
        ),
    )
    rng = np.random.default_rng(0)
    prior = mixture(rng, 2, 1)
    empty = GaussianMixture(jnp.array([0, -jnp.inf]), prior.means, prior.chols)
    both = {
        "range": bent_readings(rng, 1, 1)["range"],
        "row": jax.tree.map(lambda leaf: leaf[:1], linear_readings(rng, 1)["range"]),
    }

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(learned, readings):
        dt, prior = learned
        example = Example(prior, readings, jnp.array([0.5]))
        return forward_kl(dt, model, jax.tree.map(lambda leaf: leaf[None], example))

    def by(prior, *missing):
        readings = {
            name: r._replace(mask=r.mask & (name not in missing)) for name, r in both.items()
        }
        by_network, by_prior = gradients((dt, prior), readings)
        for leaf in jax.tree.leaves((by_network, by_prior)):
            assert jnp.isfinite(leaf).all()
        return by_network, by_prior

    for absent in (["row"], ["range"], ["row", "range"]):
        by(empty, *absent)
        assert jnp.abs(by(prior, *absent)[1].means).max() > 0
    by_network, _ = by(prior)
    for head in (
        by_network.head.linear.weight,
        by_network.last_head.linear.weight,
        by_network.view_head.layers[0].weight,
    ):
        assert jnp.abs(head).max() > 0
