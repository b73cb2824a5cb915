import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bayesinf as bi
from bayesinf.distributions import NormalInverseWishart, full
from bayesinf.distributions.covariance import Blocks, Diagonal, LowRank
from bayesinf.meta_niw import likelihoods
from bayesinf.meta_niw.files import load, save
from bayesinf.meta_niw.train import _free, _positive, evidence_loss, query_loss, train

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE_STEP = bi.meta_niw.Laplace(num_steps=1)
MEAN, SD, NOISE = np.array([1.0, -0.5]), np.array([0.3, 0.8]), 0.2


def state(scale=None):
    scale = full(6 * np.eye(2, dtype=np.float32)) if scale is None else scale
    niw = NormalInverseWishart(jnp.zeros(2), 1.0, 6.0, scale)
    params = {"w": jnp.zeros(2), "bend": jnp.array(0.3)}
    return bi.meta_niw.init(
        niw,
        lambda p, x: jnp.sinh(p["bend"] * x) @ p["w"],
        params,
        likelihoods.Gaussian(0.5),
        {"w": True, "bend": False},
    )


def sample(key):
    """Returns 256 tasks: linear in sinh(x) with weights about MEAN."""
    x_key, theta_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (256, 5, 2))
    theta = MEAN + SD * jax.random.normal(theta_key, (256, 2))
    y = jnp.einsum("nkd,nd->nk", jnp.sinh(x), theta)
    y += NOISE * jax.random.normal(noise_key, y.shape)
    return bi.meta_niw.Episode(x, y, jnp.ones(y.shape, bool))


def loss(state, episodes):
    return evidence_loss(state, episodes, local=ONE_STEP)


def test_training_finds_the_network_the_noise_and_the_tasks(key):
    trained, history = train(
        key,
        state(),
        sample,
        optax.adam(0.03),
        loss,
        num_chunks=8,
        steps_per_chunk=50,
        batch_size=64,
        progress=False,
    )
    assert history.loss[-1] < history.loss[0]
    np.testing.assert_allclose(trained.model.frozen[0], 1, atol=0.03)
    np.testing.assert_allclose(trained.model.likelihood.scale, NOISE, rtol=0.1)
    np.testing.assert_allclose(trained.posterior.loc, MEAN, atol=0.15)
    cov = trained.posterior.expected_precision().dense()
    np.testing.assert_allclose(np.sqrt(np.diag(cov)), SD, rtol=0.2)
    # Not worse than the truth by more than sampling: the evidence of new tasks.
    held_out = sample(jax.random.key(1))
    exact = NormalInverseWishart(MEAN, 1.0, 6.0, full(6 * np.diag(SD**2)))
    best = trained._replace(posterior=jax.tree.map(jnp.float32, exact))
    assert loss(trained, held_out) < loss(best, held_out) + 0.1
    assert loss(state(), held_out) > loss(best, held_out) + 1  # negative control: untrained


def test_what_is_fixed_stays(key):
    def pairs(key):
        return bi.meta_niw.split(key, sample(key), 3)

    start = state()
    trained, _ = train(
        key,
        start,
        pairs,
        optax.adam(0.03),
        lambda state, pair: query_loss(state, pair, local=ONE_STEP),
        fixed=lambda state: state.model.likelihood,
        validate=lambda state: loss(state, sample(jax.random.key(2))),
        num_chunks=1,
        steps_per_chunk=3,
        batch_size=16,
        progress=False,
    )
    assert trained.model.likelihood.log_scale == start.model.likelihood.log_scale
    assert trained.model.frozen[0] != start.model.frozen[0]


def test_scales_are_free_and_come_back():
    a = np.tril(np.arange(9.0).reshape(3, 3)) + np.eye(3)
    for scale in (
        full(a @ a.T),
        Diagonal(np.array([0.1, 20.0])),
        LowRank(a[:, :1], np.array([0.1, 2.0, 3.0])),
    ):
        again = _positive(_free(scale))
        np.testing.assert_allclose(again.dense(), scale.dense(), rtol=1e-5)
        moved = _positive(jax.tree.map(lambda leaf: leaf - 3, _free(scale)))
        moved.check_values("scale")


@pytest.mark.parametrize("scale", [None, Blocks([Diagonal(np.ones(1)), full(np.eye(1))])])
def test_a_learner_survives_its_file(tmp_path, scale):
    state_, path = state(scale), tmp_path / "learner"
    state_, _ = bi.meta_niw.update(state_, sample(jax.random.key(0)), local=ONE_STEP)
    save(path, state_)
    again = load(path, state(scale))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state_), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert jax.tree.structure(again).num_leaves == jax.tree.structure(state_).num_leaves


def test_a_file_that_is_not_it_says_so(tmp_path):
    path = tmp_path / "learner"
    with pytest.raises(ValueError, match="learner: file: No such file or directory came"):
        load(path, state())
    save(path, state())
    with pytest.raises(ValueError, match=r"arrays\[.*\]: .* came, .* was expected"):
        load(path, state(Diagonal(np.ones(2, np.float32))))
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(ValueError, match="bytes that are no sound archive"):
        load(path, state())
    path.write_bytes(content)
    with path.open("rb") as file:
        members = dict(np.load(file, allow_pickle=False))
    members["leaf_000"] = members["leaf_000"] + 1
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **members)
    with pytest.raises(ValueError, match="sha256: content of another digest came"):
        load(path, state())
    header = json.loads(members["header"].tobytes()) | {"kind": "something else"}
    members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **members)
    with pytest.raises(ValueError, match="kind: 'something else' came"):
        load(path, state())
    broken = eqx.tree_at(lambda s: s.posterior.loc, state(), jnp.array([jnp.nan, 0.0]))
    with pytest.raises(ValueError, match=r"state.posterior.loc: NaN or infinite values came"):
        save(path, broken)
