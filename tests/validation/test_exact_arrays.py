"""Equations between numbers, evaluated in many worlds, give what JAX gives in each."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from bayesinf.validation import exact

pytestmark = pytest.mark.usefixtures("x64")

TABLE = np.random.default_rng(0).normal(size=(5, 2, 3))
NAN = np.where(np.arange(6).reshape(2, 3) % 2, np.nan, TABLE)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

FUNCTIONS = {
    "arithmetic": lambda x: (x + x[:1] * 2 - 1 / x, -x, x**3, x**-2, jnp.abs(x) ** 0.3),
    "functions": lambda x: (jnp.exp(x), jnp.log(x), jnp.log1p(x), jnp.expm1(x), jnp.sqrt(x)),
    "trigonometry": lambda x: (jnp.sin(x), jnp.cos(x), jnp.tan(x), jnp.tanh(x), jnp.arctan2(x, 1)),
    "special": lambda x: (
        jax.scipy.special.gammaln(jnp.abs(x)),
        jax.scipy.special.digamma(jnp.abs(x)),
        lax.erf(x),
        lax.erfc(x),
        lax.erf_inv(jnp.tanh(x)),
        jax.nn.sigmoid(x),
        jax.scipy.stats.norm.logcdf(x),
    ),
    "rounding": lambda x: (
        jnp.floor(3 * x),
        jnp.ceil(3 * x),
        jnp.round(2 * x),
        jnp.sign(x),
        lax.round(2 * x),
    ),
    "casts": lambda x: (
        (3 * x).astype(int),
        x > 0,
        (x > 0) * 1.0,
        x.astype(jnp.float32),
        (9 * x).astype(jnp.int8),
    ),
    "integers": lambda x: (
        lambda n: (n // 3, n % 3, lax.div(n, 2), lax.rem(n, 2), n & 3, n | 1, n ^ 2, ~n, n << 1)
    )((10 * x).astype(int)),
    "booleans": lambda x: ((x > 0) & (x < 1), (x > 0) | (x < -1), ~(x > 0), (x > 0) ^ (x > 1)),
    "division by zero": lambda x: (
        lax.div((x * 2).astype(int), jnp.zeros((2, 3), int)),
        lax.rem((x * 2).astype(int), jnp.zeros((2, 3), int)),
        lax.div((x**2).astype(jnp.uint32), jnp.zeros((2, 3), jnp.uint32)),
        x / 0,
    ),
    "reductions": lambda x: (
        x.sum(),
        x.mean(0),
        x.max(1),
        x.min(),
        x.prod(0),
        x.argmax(1),
        x.argmin(0),
    ),
    "logic reductions": lambda x: ((x > 0).any(0), (x > 0).all(), x.std(), jnp.linalg.norm(x)),
    "cumulative": lambda x: (
        jnp.cumsum(x, 1),
        jnp.cumprod(x, 0),
        lax.cummax(x),
        lax.cummin(x, axis=1, reverse=True),
        lax.cumlogsumexp(x),
    ),
    "log-sum-exp": lambda x: (jax.nn.logsumexp(x, 0), jax.nn.softmax(x), jax.nn.log_softmax(x, 0)),
    "shapes": lambda x: (
        x.T,
        x.reshape(3, 2),
        x.ravel(),
        x[None, :, 0],
        jnp.flip(x, 1),
        jnp.tile(x, 2),
    ),
    "joining": lambda x: (
        jnp.concatenate([x, x[:, :1]], 1),
        jnp.stack([x, 2 * x], 1),
        jnp.split(x, 3, 1),
    ),
    "slices": lambda x: (x[:, ::2], x[0], x[-1, 1:], lax.dynamic_slice(x, (0, 1), (2, 2))),
    "moving slices": lambda x: (
        lax.dynamic_slice(x, (0, (3 * x[0, 0]).astype(int)), (1, 2)),
        lax.dynamic_update_slice(x, x[:1, :1], (1, (3 * x[0, 0]).astype(int))),
        x.at[0].set(7.0),
        x.at[:, 1].add(1.0),
    ),
    "gathers": lambda x: (
        lambda i: (x[0, i], x[:, i], x[i[0] % 2], jnp.take(x, i, 1), x.at[1, i].get(mode="clip"))
    )(jnp.abs(4 * x[0]).astype(int)),
    "gathers in pairs": lambda x: (
        lambda i: (x[i % 2, i % 3], jnp.take_along_axis(x, i[None] % 3, 1))
    )(jnp.abs(4 * x[0]).astype(int)),
    "gathers under vmap": lambda x: jax.vmap(lambda row, i: (row[i], row[::-1][i], x[i % 2, 0]))(
        x, (3 * jnp.abs(x[:, 0])).astype(int)
    ),
    "scatters": lambda x: (
        lambda i: (
            x.at[0, i].set(x[1]),
            x.at[1, i].add(1.0),
            x.at[i % 2].add(x[0]),
            x.at[0, i].max(0.0),
        )
    )(jnp.arange(3) + (3 * x[0, 0]).astype(int)),
    "scatters under vmap": lambda x: jax.vmap(lambda row, i: row.at[i].add(1.0))(
        x, (3 * jnp.abs(x[:, 0])).astype(int)
    ),
    "histogram": lambda x: jnp.zeros(4).at[jnp.abs(4 * x).astype(int)].add(x),
    "products": lambda x: (x @ x.T, x.T @ x, x @ x[0], jnp.einsum("ij,kj->jik", x, x), x[0] @ x[1]),
    "products under vmap": lambda x: jax.vmap(lambda a, b: (a @ b, jnp.outer(a, b)))(x, 2 * x),
    "sorting": lambda x: (jnp.sort(x, 1), jnp.argsort(x, 0), lax.top_k(x, 2), jnp.median(x)),
    "searching": lambda x: (
        jnp.searchsorted(jnp.sort(x[0]), x[1]),
        jnp.interp(x[0], jnp.sort(x[1]), x[0]),
    ),
    "selection": lambda x: (
        jnp.where(x > 0, x, 0),
        jnp.clip(x, -0.5, 0.5),
        lax.select_n((3 * jnp.abs(x)).astype(int) % 3, x, 2 * x, 3 * x),
    ),
    "padding": lambda x: (jnp.pad(x, 1), lax.pad(x, 0.5, ((1, 0, 1), (-1, 2, 0)))),
    "branches": lambda x: lax.switch((x > 0).sum() % 3, [jnp.sin, jnp.cos, lambda y: y * 2], x),
    "loops": lambda x: (
        lax.fori_loop(0, 3, lambda i, y: y + i * x, x),
        lax.scan(lambda c, row: (c + row, c * row), x[0], x, reverse=True),
        lax.while_loop(lambda y: jnp.sum(y**2) < 50, lambda y: 2 * y, x),
        lax.map(lambda row: row.sum(), x),
        lax.scan(lambda c, _: (c * 0.9, None), x, length=100)[0],
    ),
    "linear algebra": lambda x: (
        jnp.linalg.cholesky(x @ x.T + jnp.eye(2)),
        jnp.linalg.solve(x @ x.T + jnp.eye(2), x),
        jnp.linalg.qr(x)[1],
    ),
    "gradients": lambda x: (
        jax.grad(lambda y: jnp.sum(jax.nn.relu(y) * doubled(jnp.sin(y))))(x),
        jax.hessian(lambda y: jnp.log(jnp.sum(jnp.exp(y))))(x[0]),
        jax.jacfwd(lambda y: jnp.sort(y) ** 2)(x[0]),
        jax.checkpoint(jnp.tanh)(x),
    ),
    "complex": lambda x: jnp.abs(jnp.fft.fft(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("table", [TABLE, NAN], ids=["numbers", "some not numbers"])
def test_every_world_agrees_with_jax(key, name, table):
    fn = FUNCTIONS[name]
    if table is NAN and name in ("linear algebra", "complex", "loops", "casts", "integers"):
        pytest.skip("what becomes of numbers that are none is not defined")

    def program(key):
        world = jr.randint(key, (), 0, 5)
        return world, fn(jnp.asarray(table)[world])

    measure = exact(program, key)
    worlds, outputs = measure.atoms
    assert sorted(worlds.tolist()) == list(range(5))
    expected = jax.vmap(fn)(table[worlds])
    for found, right in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_allclose(found, right, rtol=1e-11, atol=1e-13)
