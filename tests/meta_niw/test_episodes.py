import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf.meta_niw.episodes import Episode, batch, episode, hide, split


def ragged(sizes=(2, 5, 3)):
    rng = np.random.default_rng(0)
    return [episode(rng.normal(size=(n, 2)), np.arange(n) + 10.0) for n in sizes]


def test_an_episode_hides_rows_behind_copies_of_one_that_is_there():
    one = episode([[np.nan], [2.0], [3.0]], [1, -7, 0], mask=[0, 1, 1])
    np.testing.assert_array_equal(one.x, [[2.0], [2.0], [3.0]])
    np.testing.assert_array_equal(one.y, [-7, -7, 0])
    assert one.mask.tolist() == [False, True, True]


def test_nothing_becomes_one_hidden_row():
    for one in (
        episode(np.zeros((0, 3)), np.zeros(0)),
        hide(Episode(jnp.zeros((0, 3)), jnp.zeros(0), jnp.zeros(0, bool)), jnp.ones(0, bool)),
        episode([[np.inf, 0, 0]], [np.nan], [False]),
    ):
        assert one.x.shape == (1, 3)
        assert one.y.shape == (1,)
        assert not one.mask.any()
        assert jnp.isfinite(one.x).all()
        assert jnp.isfinite(one.y).all()


def test_a_batch_pads_with_hidden_rows():
    episodes = ragged()
    many = batch(episodes)
    assert many.x.shape == (3, 5, 2)
    assert many.mask.sum(1).tolist() == [2, 5, 3]
    for i, one in enumerate(episodes):
        np.testing.assert_array_equal(many.x[i][many.mask[i]], one.x)
        np.testing.assert_array_equal(many.y[i][many.mask[i]], one.y)
    assert (many.y[~many.mask] >= 10).all()  # copies, not zeros


def test_a_split_parts_the_rows_that_are_there(key):
    many = batch(ragged())
    support, query = jax.jit(split, static_argnums=2)(key, many, 2)
    assert support.mask.all()
    assert query.mask.sum(1).tolist() == [0, 3, 1]
    for i in range(3):
        parts = [part.y[i][part.mask[i]] for part in (support, query)]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), many.y[i][many.mask[i]])
        rows = jnp.concatenate([support.x[i], query.x[i]])
        order = np.concatenate([support.y[i], query.y[i]]).astype(int) - 10
        there = np.concatenate([support.mask[i], query.mask[i]])
        np.testing.assert_array_equal(rows[there], many.x[i][order[there]])
    other, _ = split(jax.random.key(1), many, 2)
    assert (other.y != support.y).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: episode([[1.0], [np.nan]], [0.0, 0.0]), "x: NaN or an infinity came in row 1"),
        (lambda: episode([[1.0]], [np.inf]), "y: NaN or an infinity came in row 0"),
        (lambda: episode([[1.0]], [0.0, 1.0]), "y: 2 rows came, the 1 of x"),
        (lambda: episode([[1.0]], [0.0], [True, False]), r"mask: shape \(2,\) came"),
        (lambda: episode([[1.0]], [0.0], [0.5]), "mask: numbers other than 0 and 1"),
        (lambda: episode(["a"], [0.0]), "x: dtype <U1 came"),
        (lambda: episode(1.0, [0.0]), "x: a scalar came"),
        (lambda: batch([]), "episodes: none came"),
        (lambda: batch([*ragged(), episode([[1.0]], [0.0])]), "rows of x of shapes"),
        (lambda: split(jax.random.key(0), ragged()[0], 2), "num_support: 2 came, between 1 and 1"),
    ],
)
def test_bad_data_say_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
