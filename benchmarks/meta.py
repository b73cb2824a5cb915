"""What meta-learning costs: episodes a second of the closed form, and its memory against MAML's.

- The log evidence and its gradient in all that the prior has (mean, covariance, noise), for 1,000
  ragged episodes of a head with 64 weights and 2 to 10 rows: episodes a second, the best of several
  runs, under the Gaussian of training and under the Student-t of a new task (8 Gaussians).
- One training step of a network of which the head or every weight adapts, on 64 episodes of 10 rows
  drawn from the model, as the inner steps grow from 1 to 50: time, and the peak of temporary memory
  that the compiler plans (`compiled.memory_analysis()`). MAML (Finn et al. 2017) goes back through
  its inner steps, all of them stored or each computed again (`jax.checkpoint`). Ours is minus the
  log evidence by a Gauss-Newton fit of as many steps at most, which ends where it has converged,
  and whose gradient needs nothing of the way there. Of the head one step is exact; of all weights
  a fit takes about ten to converge, so its time grows until there.

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
# Which of the layers adapt, by what they are called.
ADAPTED = {"head": (False, False, True), "all weights": (True, True, True)}
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
    return head(params, features(params, x))


def features(params, x):
    """Returns what the layers before the head make of the inputs."""
    for weights, bias in params[:-1]:
        x = jnp.tanh(x @ weights + bias)
    return x


def head(params, x):
    weights, bias = params[-1]
    return x @ weights + bias


def initial(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b)) for k, a, b in shapes]


def split(params, adapted):
    """Returns the layers that adapt and those that do not, each with None for the others."""
    return eqx.partition(params, [(flag, flag) for flag in adapted])


def parts(adapted):
    """Returns the part of the network that adapts, and what to do once with its inputs before."""
    return (network, lambda _, x: x) if any(adapted[:-1]) else (head, features)


def tasks(key, params, adapted):
    """Returns support and query of a batch of tasks, each a draw of the weights that adapt."""
    theta_key, x_key, noise_key = jax.random.split(key, 3)
    moving, fixed = split(params, adapted)
    flat, unravel = ravel_pytree(moving)
    thetas = flat + SPREAD * jax.random.normal(theta_key, (BATCH, flat.size))
    x = jax.random.uniform(x_key, (BATCH, 2 * SHOTS, 1), minval=-5, maxval=5)

    def outputs_of(theta, x):
        return network(eqx.combine(unravel(theta), fixed), x)

    outputs = jax.vmap(outputs_of)(thetas, x)
    y = outputs + NOISE * jax.random.normal(noise_key, outputs.shape)
    return (x[:, :SHOTS], y[:, :SHOTS]), (x[:, SHOTS:], y[:, SHOTS:])


def maml(num_steps, adapted, stored):
    """Returns MAML's loss: of the query, after gradient steps on the support."""

    apply, embed = parts(adapted)

    def one(params, support, query):
        moving, fixed = split(params, adapted)
        support, query = ((embed(params, x), y) for x, y in (support, query))

        def loss(moving, x, y):
            return jnp.mean((apply(eqx.combine(moving, fixed), x) - y) ** 2)

        def step(moving, _):
            slope = jax.grad(loss)(moving, *support)
            return jax.tree.map(lambda leaf, down: leaf - RATE * down, moving, slope), None

        step = step if stored else jax.checkpoint(step)
        return loss(jax.lax.scan(step, moving, length=num_steps)[0], *query)

    def total(params, support, query):
        return jnp.mean(jax.vmap(one, (None, 0, 0))(params, support, query))

    return jax.value_and_grad(total)


def fits(params, support, num_steps, adapted):
    """Returns the local posteriors of the supports under the prior around the parameters."""
    likelihood, flags = meta_niw.likelihoods.Gaussian(NOISE), [(flag, flag) for flag in adapted]
    apply, embed = parts(adapted)
    model = meta_niw.model(apply, params, likelihood, flags, embed)
    prior = Diagonal(jnp.full(model.dim, SPREAD**2))
    episodes = model.sound(meta_niw.Episode(*support, jnp.ones((BATCH, SHOTS), bool)))
    local = meta_niw.Laplace(num_steps)
    return jax.vmap(lambda one: local(model, model.initial, prior, one))(episodes)


def ours(num_steps, adapted):
    """Returns minus the mean log evidence of the supports."""

    def total(params, support, query):
        return -jnp.mean(fits(params, support, num_steps, adapted).log_evidence)

    return jax.value_and_grad(total)


def converged(params, support, num_steps, adapted):
    """Returns the share of episodes whose last step still promised less than 0.001 nats."""
    decrement = jax.jit(lambda *given: fits(*given, num_steps, adapted).decrement)
    return float(jnp.mean(decrement(params, support) < 2e-3))


def inner_steps(adapted):
    """Returns memory and time of a training step, by method and number of inner steps."""
    key, tasks_key = jax.random.split(jax.random.key(0))
    params = initial(key)
    arguments = (params, *tasks(tasks_key, params, ADAPTED[adapted]))
    methods = {
        "MAML": partial(maml, stored=True),
        "MAML, recomputed": partial(maml, stored=False),
        "ours": ours,
    }
    compiled = {
        (name, num): jax.jit(method(num, ADAPTED[adapted])).lower(*arguments).compile()
        for num in INNER_STEPS
        for name, method in methods.items()
    }
    runs = {key: partial(step, *arguments) for key, step in compiled.items()}
    seconds = best_seconds(runs, repeats=3 if any(ADAPTED[adapted][:-1]) else REPEATS)
    return [
        {
            "adapted": adapted,
            "method": name,
            "inner_steps": num,
            "temporary_mib": step.memory_analysis().temp_size_in_bytes / 2**20,
            "ms": 1e3 * seconds[name, num],
            "converged": (
                converged(*arguments[:2], num, ADAPTED[adapted]) if name == "ours" else None
            ),
        }
        for (name, num), step in compiled.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmark_meta.json"))
    arguments = parser.parse_args()
    print(f"evidence and gradient of {NUM_EPISODES} episodes, {DIM} weights, <= {NUM_ROWS} rows")
    rates = throughput()
    for row in rates:
        print(
            f"{row['task_prior']:11}{row['dtype']:9}{row['ms']:8.1f} ms "
            f"{row['episodes_per_second']:9.0f} episodes/s"
        )
    costs = []
    for adapted, flags in ADAPTED.items():
        sizes = (a * b + b for a, b in pairwise(WIDTHS))
        num = sum(size for size, flag in zip(sizes, flags, strict=True) if flag)
        print(f"a training step, {adapted} ({num}) adapt, {BATCH} episodes of {SHOTS} rows")
        found = sorted(inner_steps(adapted), key=lambda row: row["method"])
        for row in found:
            print(
                f"{row['method']:18}{row['inner_steps']:4} inner steps "
                f"{row['temporary_mib']:8.1f} MiB {row['ms']:8.2f} ms"
                + (f", {100 * row['converged']:.0f} % converged" if row["method"] == "ours" else "")
            )
        costs += found
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"device": str(jax.devices()[0]), "throughput": rates, "inner_steps": costs}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
