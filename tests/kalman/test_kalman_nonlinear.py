"""Where the model bends: the filters against quadrature and samples, and angles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.distributions.numpyro import WrappedNormal
from bayesinf.kalman import extended, gaussian_sum, run, unscented
from bayesinf.kalman.gaussian_sum import bend
from bayesinf.programs import Dynamics, Frame, StateSpace, linear_gaussian, reading

# A range from the origin to a position known as N((2, 0), I)


def distance(state, context):
    return dist.Normal(jnp.linalg.norm(state), 0.3)


RANGE_MODEL = StateSpace(
    gaussian(jnp.array([2.0, 0.0]), jnp.eye(2)),
    linear_gaussian(jnp.eye(2), jnp.zeros((2, 0))),
    {"distance": distance},
)


def tiled(spacing):
    """Returns N((2, 0), I) as a mixture of components that stand `spacing` apart, a convolution of
    a grid of weights with a Gaussian, which is close to exact for such overlap."""
    scale = 0.9 * spacing
    steps = np.arange(-3, 3.01, spacing)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    log_weights = -0.5 * (centres**2).sum(1) / (1 - scale**2)
    chols = np.broadcast_to(scale * np.eye(2), (len(centres), 2, 2))
    return GaussianMixture(log_weights - logsumexp(log_weights), centres + np.array([2, 0]), chols)


@eqx.filter_jit
def log_prob(belief, points):
    return belief.log_prob(points)


@eqx.filter_jit
def place_log_prob(belief, points):
    return belief.marginal([0, 1]).log_prob(points)


def kl_by_quadrature(belief, posterior):
    """Returns KL(exact posterior || posterior) and the log evidence of a range of 2.5."""
    axis = np.linspace(-4, 8, 121)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    ranges = jnp.linalg.norm(points, axis=1)
    log_joint = log_prob(belief, points) + dist.Normal(ranges, 0.3).log_prob(2.5)
    area = (axis[1] - axis[0]) ** 2
    log_evidence = logsumexp(log_joint) + np.log(area)
    weights = np.exp(log_joint - log_evidence) * area
    gaps = log_joint - log_evidence - log_prob(posterior, points)
    return float(np.sum(weights * gaps)), log_evidence


@pytest.mark.parametrize("method", [extended, unscented], ids=["extended", "unscented"])
def test_oracle_a_range_update_of_fine_components_is_near_exact(method, x64):
    gaps, errors = [], []
    for belief in (gaussian(jnp.array([2.0, 0.0]), jnp.eye(2)), tiled(0.5), tiled(0.3)):
        posterior, info = eqx.filter_jit(method.update)(
            RANGE_MODEL, belief, {"distance": reading([2.5])}
        )
        gap, log_evidence = kl_by_quadrature(belief, posterior)
        gaps.append(gap)
        errors.append(abs(info.log_evidence - log_evidence))
    # Nats. One component misses the ring; the error falls with the square of the spacing or better.
    assert gaps[0] > 0.1
    assert 0 <= gaps[1] < 0.02
    assert 0 <= gaps[2] < 0.5 * gaps[1]
    assert errors[2] < 0.01


# A robot that drives ten metres along a heading it does not know


def drive(state, noise, elapsed, input):
    x, y, heading = state
    heading = heading + 0.01 * noise[1]
    along = input + 0.1 * noise[0]
    return jnp.stack([x + along * jnp.cos(heading), y + along * jnp.sin(heading), heading])


def far_range(state, context):
    return dist.Normal(jnp.linalg.norm(state[:2] - 20), 1.0)


def wrapping(state, noise, elapsed, input):
    moved = drive(state, noise, elapsed, input)
    return moved.at[2].set((moved[2] + np.pi) % (2 * np.pi) - np.pi)


def heading_model(function):
    initial = gaussian(jnp.zeros(3), jnp.eye(3))
    return StateSpace(initial, Dynamics(function, 2), {"distance": far_range}, angles=(2,))


DRIVE, WRAPPING = heading_model(drive), heading_model(wrapping)
SUM = gaussian_sum(num_splits=8, tolerance=1e-3)


@eqx.filter_jit
def predict(method, model, belief, length):
    return method.predict(model, belief, Frame(jnp.ones(()), length, {}))


def uniform_heading(components):
    """Returns a belief at the origin with a heading all round, as overlapping components."""
    headings = np.arange(components) * 2 * np.pi / components - np.pi
    chol = np.diag([0.2, 0.2, np.pi / components])
    means = np.stack([0 * headings, 0 * headings, headings], 1)
    chols = np.broadcast_to(chol, (components, 3, 3))
    return GaussianMixture(np.full(components, -np.log(components)), means, chols)


def drives(method, belief, legs, length):
    for _ in range(legs):
        belief = predict(method, DRIVE, belief, jnp.asarray(length))
    return belief


@pytest.mark.parametrize("legs", [1, 4])
def test_stat_splitting_beats_the_extended_filter_on_a_bend(legs, x64):
    start = uniform_heading(8)

    @jax.jit
    @jax.vmap
    def sample(key):
        start_key, noise_key = jax.random.split(key)
        state = start.sample(start_key)
        for noise in jax.random.normal(noise_key, (legs, 2)):
            state = drive(state, noise, 1.0, 10.0 / legs)
        return state

    states = sample(jax.random.split(jax.random.key(0), 10_000))

    def score(method):
        belief = drives(method, start, legs, 10.0 / legs)
        assert belief.num_components == 8
        belief.check_values("belief")
        return np.asarray(place_log_prob(belief, states[:, :2]))

    gain = score(SUM) - score(extended)
    z = gain.mean() / (gain.std() / np.sqrt(len(states)))
    # 3.1 sds: a false alarm in 1,000 runs. The mean gain is a difference of KL divergences.
    assert z > 3.1


def test_oracle_the_bend_of_a_parabola(x64):
    model = StateSpace(
        gaussian(jnp.zeros(2), jnp.eye(2)),
        Dynamics(lambda state, noise, elapsed, input: state.at[1].add(0.3 * state[0] ** 2), 0),
        {"none": distance},
    )
    chol = jnp.diag(jnp.array([2.0, 0.5]))
    frame = Frame(jnp.ones(()), None, {})
    got = jax.jit(lambda mean, chol: bend(model, frame, mean, chol))(jnp.zeros(2), chol)
    # Second difference 2 * 0.3 * 2^2 in sds of 0.5 along the first axis; none along the second.
    np.testing.assert_allclose(got, [2 * 0.3 * 4 / 0.5, 0], atol=1e-12)


def test_nothing_that_does_not_bend_is_split(x64):
    belief, length = uniform_heading(8), jnp.asarray(0.0)
    still = predict(extended, DRIVE, belief, length)
    kept = predict(SUM, DRIVE, belief, length)
    for got, expected in zip(jax.tree.leaves(kept), jax.tree.leaves(still), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", [unscented, gaussian_sum()], ids=["unscented", "gaussian_sum"])
def test_dynamics_may_wrap_a_heading(method, x64):
    """A heading that straddles the cut moves as it does elsewhere."""
    chol = jnp.diag(jnp.array([0.2, 0.2, 0.3]))
    belief = gaussian(jnp.array([0.0, 0.0, np.pi - 0.05]), chol)
    free, wrapped = (
        predict(method, model, belief, jnp.asarray(2.0)) for model in (DRIVE, WRAPPING)
    )
    turns = (free.means - wrapped.means)[:, 2] / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-9)
    np.testing.assert_allclose(free.means[:, :2], wrapped.means[:, :2], atol=1e-9)
    np.testing.assert_allclose(free.chols, wrapped.chols, atol=1e-9)


def test_components_a_turn_apart_merge(x64):
    """Splitting, driving and merging does not depend on which turn a heading is counted in."""
    belief = uniform_heading(8)
    # Unequal weights, so that no tie between merges is left to rounding.
    log_weights = np.log(np.random.default_rng(0).dirichlet(3 * np.ones(8)))
    belief = GaussianMixture(log_weights, belief.means, belief.chols)
    turned = GaussianMixture(log_weights, belief.means.at[::2, 2].add(2 * np.pi), belief.chols)
    one, other = (drives(SUM, start, 2, 5.0) for start in (belief, turned))
    points = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)) * 7)
    np.testing.assert_allclose(
        place_log_prob(one, points), place_log_prob(other, points), atol=1e-6
    )


@pytest.mark.parametrize("family", ["wrapped", "von-mises"])
def test_an_angle_is_read_across_the_cut_by_the_unscented_filter(family, x64):
    def at(turn, value):
        def sensor(state, context):
            angle = state[0] + turn
            if family == "wrapped":
                return WrappedNormal(angle, 0.2)
            return dist.VonMises(angle, 25.0)

        model = StateSpace(
            gaussian(jnp.zeros(1), 0.4 * jnp.eye(1)),
            linear_gaussian(jnp.eye(1), jnp.eye(1)),
            {"bearing": sensor},
        )
        return eqx.filter_jit(unscented.update)(
            model, model.initial, {"bearing": reading([value])}
        )[0]

    across, within = at(np.pi - 0.01, -np.pi + 0.09), at(1.0, 1.1)
    np.testing.assert_allclose(across.means, within.means, atol=1e-9)
    np.testing.assert_allclose(across.chols, within.chols, atol=1e-9)
    # The normal update with noise .2; a von Mises angle of concentration 25 is one to 3 %.
    np.testing.assert_allclose(across.means[0, 0], 0.1 * 0.16 / (0.16 + 0.04), rtol=0.03)


def test_a_sensor_without_moments_is_refused_by_the_unscented_filter():
    class Bare(dist.Distribution):
        support = dist.constraints.real

        def log_prob(self, value):
            return 0.0 * value

    model = StateSpace(
        gaussian(jnp.zeros(1), jnp.eye(1)),
        linear_gaussian(jnp.eye(1), jnp.eye(1)),
        {"bare": lambda state, _: Bare()},
    )
    words = r"sensors\['bare'\]: a distribution of type Bare without mean or variance came"
    with pytest.raises(ValueError, match=words):
        unscented.update(model, model.initial, {"bare": reading([0.0])})


def test_bad_options_of_the_gaussian_sum_are_named():
    with pytest.raises(ValueError, match="num_splits: 0 came"):
        gaussian_sum(num_splits=0)
    for tolerance in (-1.0, np.nan):
        with pytest.raises(ValueError, match=f"tolerance: {tolerance} came"):
            gaussian_sum(tolerance=tolerance)


def test_single_precision_stays_single_where_double_is_enabled(x64):
    belief = jax.tree.map(jnp.float32, uniform_heading(3))
    frames = Frame(
        jnp.ones(2, jnp.float32),
        jnp.ones(2, jnp.float32),
        {"distance": reading(np.float32([[28.0], [27.0]]))},
    )
    for method in (extended, unscented):
        beliefs, info = run(method, DRIVE, frames, belief)
        leaves = jax.tree.leaves((beliefs, info))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
