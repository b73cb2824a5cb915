"""The paper's form: a mixture out for any sources, without a density."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.programs import Reading, StateSpace, linear_gaussian
from bayesinf.transformers_gmm import AbsoluteTransformer


def no_density(state, context):
    raise AssertionError("a simulator has no density to ask for")


MODEL = StateSpace(
    gaussian(jnp.zeros(2), jnp.eye(2)),
    linear_gaussian(jnp.eye(2), jnp.eye(2)),
    {"image": no_density, "flag": no_density},
)
READINGS = {
    "image": Reading(
        jnp.arange(8.0).reshape(2, 2, 2), {"time": jnp.array([0.5, 1.5])}, jnp.array([True, True])
    ),
    "flag": Reading(jnp.ones(1), None, jnp.array([True])),
}
PRIOR = GaussianMixture(
    jnp.log(jnp.array([0.2, 0.3, 0.5])),
    jnp.array([[0.0, 1.0], [2.0, -1.0], [1e4, -1e4]]),
    jnp.array([[[1.0, 0.0], [0.5, 1.0]], [[1e-4, 0.0], [0.0, 1.0]], [[1e4, 0.0], [3.0, 1e-4]]]),
)


@eqx.filter_jit
def update(dt, prior, readings):
    return dt.update(MODEL, prior, readings)


@pytest.fixture(scope="module")
def dt():
    sizes = {"image": 5, "flag": 1}
    return AbsoluteTransformer(jax.random.key(0), 2, sizes, 3, width=16, num_blocks=1, num_heads=2)


def gap(one, other):
    return max(
        float(jnp.abs(a - b).max())
        for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    )


def test_it_returns_a_mixture_that_depends_on_prior_and_readings(dt):
    posterior, info = update(dt, PRIOR, READINGS)
    posterior.check_values("posterior")
    assert jnp.isnan(info.log_evidence)
    flag = {**READINGS, "flag": READINGS["flag"]._replace(value=jnp.array([2.0]))}
    assert gap(update(dt, PRIOR, flag)[0], posterior) > 1e-3
    image = READINGS["image"]
    later = {**READINGS, "image": image._replace(context={"time": jnp.array([0.5, 9.0])})}
    assert gap(update(dt, PRIOR, later)[0], posterior) > 1e-3
    prior = GaussianMixture(PRIOR.log_weights, PRIOR.means + 1, PRIOR.chols)
    assert gap(update(dt, prior, READINGS)[0], posterior) > 1e-3


def test_permutations_and_masks(dt):
    posterior = update(dt, PRIOR, READINGS)[0]
    order = jnp.array([2, 0, 1])
    permuted = update(dt, jax.tree.map(lambda leaf: leaf[order], PRIOR), READINGS)[0]
    assert gap(permuted, jax.tree.map(lambda leaf: leaf[order], posterior)) < 1e-5
    image = READINGS["image"]
    turned = {**READINGS, "image": jax.tree.map(lambda leaf: leaf[::-1], image)}
    assert gap(update(dt, PRIOR, turned)[0], posterior) < 1e-5
    masked = {**READINGS, "image": image._replace(mask=jnp.array([True, False]))}
    filled = {**masked, "image": masked["image"]._replace(value=image.value.at[1].set(jnp.nan))}
    unseen = update(dt, PRIOR, masked)[0]
    assert gap(update(dt, PRIOR, filled)[0], unseen) == 0
    assert gap(unseen, posterior) > 1e-3


def test_empty_slots_stay_empty_and_nothing_may_be_read(dt):
    empty = GaussianMixture(jnp.log(jnp.array([0.5, 0.0, 0.5])), PRIOR.means, PRIOR.chols)
    posterior = update(dt, empty, READINGS)[0]
    posterior.check_values("posterior")
    assert posterior.log_weights[1] == -jnp.inf
    blind = {name: r._replace(mask=jnp.zeros_like(r.mask)) for name, r in READINGS.items()}
    assert gap(update(dt, PRIOR, blind)[0], dt(MODEL, PRIOR, {})) < 1e-5


def test_what_it_was_not_built_for_is_named(dt):
    flag = READINGS["flag"]
    with pytest.raises(ValueError, match=r"prior: means of shape \(1, 2\) came, .* \(3, 2\)"):
        dt(MODEL, MODEL.initial, READINGS)
    with pytest.raises(ValueError, match="source 'sound' came, one of image, flag was expected"):
        dt(MODEL, PRIOR, {"sound": flag})
    with pytest.raises(ValueError, match=r"readings\['flag'\]: 2 numbers .* built for 1"):
        dt(MODEL, PRIOR, {"flag": flag._replace(value=jnp.ones((1, 2)))})
    for name, arguments in {
        "dim": (0, {"flag": 1}, 3), "num_components": (2, {"flag": 1}, 0), "sizes": (2, {}, 3),
        "sizes.'flag'.": (2, {"flag": 0}, 3),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: "):
            AbsoluteTransformer(jax.random.key(0), *arguments)
    with pytest.raises(ValueError, match="width: 10 came"):
        AbsoluteTransformer(jax.random.key(0), 2, {"flag": 1}, 3, width=10)
