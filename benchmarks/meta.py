"""What meta-learning costs: episodes a second of the closed form, and its memory against MAML's.

- The log evidence and its gradient in all that the prior has (mean, covariance, noise), for 1,000
  ragged episodes of a head with 64 weights and 2 to 10 rows: episodes a second, the best of several
  runs, under the Gaussian of training and under the Student-t of a new task (8 Gaussians).
- One training step of a network of which every weight adapts, on 64 episodes of 10 rows drawn from
  the model, as the inner steps grow from 1 to 50: time, and the peak of temporary memory that the
  compiler plans (`compiled.memory_analysis()`). MAML (Finn et al. 2017) goes back through its inner
  steps, all of them stored or each computed again (`jax.checkpoint`). Ours is minus the log
  evidence by a Gauss-Newton fit of as many steps at most, which ends where it has converged, and
  whose gradient needs nothing of the way there.

Run: ./run python benchmarks/meta.py [--out FILE]
"""

import argparse
import json
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bayesinf import meta_niw
from bayesinf.distributions import NormalInverseWishart
from bayesinf.distributions.covariance import Diagonal, Full
from bayesinf.meta_niw import task_prior

NUM_EPISODES, DIM, NUM_ROWS = 1_000, 64, 10
BATCH, SHOTS, WIDTHS = 64, 10, (1, 64, 64, 1)
INNER_STEPS, RATE = (1, 2, 5, 10, 20, 50), 0.01
SPREAD, NOISE = 0.05, 0.1  # of the weights over tasks, and of the outputs
REPEATS = 10


def best_seconds(runs, repeats=REPEATS):
    """Returns the best seconds of each run; they take turns, so that all meet the same machine."""
    seconds = dict.fromkeys(runs, np.inf)
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def ragged_episodes():
    """Returns linear episodes of 2 to 10 rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EPISODES, NUM_ROWS, DIM))
    theta = rng.normal(size=(NUM_EPISODES, DIM))
    y = np.einsum("nkd,nd->nk", x, theta) + 0.3 * rng.normal(size=x.shape[:2])
    mask = np.arange(NUM_ROWS) < rng.integers(2, NUM_ROWS + 1, NUM_EPISODES)[:, None]
    return meta_niw.Episode(*map(jnp.asarray, (x, y, mask)))


def head_learner(dtype):
    """Returns a learner of the 64 weights of a linear head."""
    scale = Full(np.sqrt(2 * DIM) * jnp.eye(DIM, dtype=dtype))
    prior = NormalInverseWishart(jnp.zeros(DIM, dtype), 1.0, 2.0 * DIM, scale)
    noise = meta_niw.likelihoods.Gaussian(jnp.asarray(0.3, dtype))
    return meta_niw.init(prior, lambda head, x: x @ head, jnp.zeros(DIM, dtype), noise)


@eqx.filter_jit
@eqx.filter_value_and_grad
def evidence(state, episodes, prior):
    exact = meta_niw.Laplace(1)  # one step is enough where the outputs are linear
    return jnp.sum(meta_niw.log_evidence(state, episodes, prior, exact))


def throughput():
    """Returns episodes a second of evidence and gradient, by task prior and precision."""
    priors = {"Gaussian": task_prior.expected_precision, "Student-t": task_prior.student_t}
    rows = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            episodes = ragged_episodes()
            state = head_learner(episodes.x.dtype)
            runs = {name: partial(evidence, state, episodes, each) for name, each in priors.items()}
            for name, seconds in best_seconds(runs).items():
                rows.append(
                    {
                        "task_prior": name,
                        "dtype": str(episodes.x.dtype),
                        "ms": 1e3 * seconds,
                        "episodes_per_second": NUM_EPISODES / seconds,
                    }
                )
    return rows


def network(params, x):
    for weights, bias in params[:-1]:
        x = jnp.tanh(x @ weights + bias)
    weights, bias = params[-1]
    return x @ weights + bias


def initial(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b)) for k, a, b in shapes]


def tasks(key, params):
    """Returns support and query of a batch of tasks, each a draw of the network's weights."""
    theta_key, x_key, noise_key = jax.random.split(key, 3)
    flat, unravel = ravel_pytree(params)
    thetas = flat + SPREAD * jax.random.normal(theta_key, (BATCH, flat.size))
    x = jax.random.uniform(x_key, (BATCH, 2 * SHOTS, 1), minval=-5, maxval=5)
    outputs = jax.vmap(lambda theta, x: network(unravel(theta), x))(thetas, x)
    y = outputs + NOISE * jax.random.normal(noise_key, outputs.shape)
    return (x[:, :SHOTS], y[:, :SHOTS]), (x[:, SHOTS:], y[:, SHOTS:])


def maml(num_steps, stored):
    """Returns MAML's loss: of the query, after gradient steps on the support."""

    def loss(params, x, y):
        return jnp.mean((network(params, x) - y) ** 2)

    def one(params, support, query):
        def step(params, _):
            slope = jax.grad(loss)(params, *support)
            return jax.tree.map(lambda leaf, down: leaf - RATE * down, params, slope), None

        step = step if stored else jax.checkpoint(step)
        return loss(jax.lax.scan(step, params, length=num_steps)[0], *query)

    def total(params, support, query):
        return jnp.mean(jax.vmap(one, (None, 0, 0))(params, support, query))

    return jax.value_and_grad(total)


def ours(num_steps):
    """Returns minus the log evidence of the support under the prior around the parameters."""

    def total(params, support, query):
        model = meta_niw.model(network, params, meta_niw.likelihoods.Gaussian(NOISE))
        prior = Diagonal(jnp.full(model.dim, SPREAD**2))
        episodes = meta_niw.Episode(*support, jnp.ones((BATCH, SHOTS), bool))
        local = meta_niw.Laplace(num_steps)

        def one(episode):
            return local(model, model.initial, prior, episode).log_evidence

        return -jnp.mean(jax.vmap(one)(episodes))

    return jax.value_and_grad(total)


def converged(params, support, num_steps):
    """Returns the share of episodes whose last step still promised less than 0.001 nats."""
    model = meta_niw.model(network, params, meta_niw.likelihoods.Gaussian(NOISE))
    prior = Diagonal(jnp.full(model.dim, SPREAD**2))
    episodes = meta_niw.Episode(*support, jnp.ones((BATCH, SHOTS), bool))
    local = meta_niw.Laplace(num_steps)
    fit = jax.jit(jax.vmap(lambda one: local(model, model.initial, prior, one).decrement))
    return float(jnp.mean(fit(episodes) < 2e-3))


def inner_steps():
    """Returns memory and time of a training step, by method and number of inner steps."""
    key, tasks_key = jax.random.split(jax.random.key(0))
    params = initial(key)
    arguments = (params, *tasks(tasks_key, params))
    methods = {
        "MAML": partial(maml, stored=True),
        "MAML, recomputed": partial(maml, stored=False),
        "ours": ours,
    }
    compiled = {
        (name, num): jax.jit(method(num)).lower(*arguments).compile()
        for num in INNER_STEPS
        for name, method in methods.items()
    }
    runs = {key: partial(step, *arguments) for key, step in compiled.items()}
    seconds = best_seconds(runs, repeats=3)
    return [
        {
            "method": name,
            "inner_steps": num,
            "temporary_mib": step.memory_analysis().temp_size_in_bytes / 2**20,
            "ms": 1e3 * seconds[name, num],
            "converged": converged(*arguments[:2], num) if name == "ours" else None,
        }
        for (name, num), step in compiled.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmark_meta.json"))
    arguments = parser.parse_args()
    num_weights = sum(a * b + b for a, b in pairwise(WIDTHS))
    print(f"evidence and gradient of {NUM_EPISODES} episodes, {DIM} weights, <= {NUM_ROWS} rows")
    rates = throughput()
    for row in rates:
        print(
            f"{row['task_prior']:11}{row['dtype']:9}{row['ms']:8.1f} ms "
            f"{row['episodes_per_second']:9.0f} episodes/s"
        )
    print(f"a training step of {num_weights} weights on {BATCH} episodes of {SHOTS} rows")
    costs = inner_steps()
    for row in sorted(costs, key=lambda row: row["method"]):
        print(
            f"{row['method']:18}{row['inner_steps']:4} inner steps "
            f"{row['temporary_mib']:8.1f} MiB {row['ms']:8.1f} ms"
            + ("" if row["converged"] is None else f", {100 * row['converged']:.0f} % converged")
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"device": str(jax.devices()[0]), "throughput": rates, "inner_steps": costs}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
