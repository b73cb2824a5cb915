"""Effective draws a second of NUTS, on the second run, against NumPyro in one run.

Eight schools (non-centred) and a logistic regression with 25 coefficients, 4 chains of 1,000
warm-up steps and 1,000 draws. Each package runs once to compile; then each runs again with another
key, taking turns, and the best time counts. Draws are compared by the smallest bulk effective
sample size over all coordinates, which differs by a tenth from key to key: the mean over the keys
counts, and ratios come with the standard error that this mean gives them. `compiled` is how many
programs the second run compiled.

- `MCMC.run`: NumPyro's own loop, chains vectorised, or a device each (`parallel`).
- core: NumPyro's functional core, `hmc(potential_fn, algo="NUTS")`, scanned and mapped here, by
  `vmap` or over devices.

Everything runs with as many CPU devices as there are chains, whatever the number of cores, so that
either package may give each chain its own.

Run: ./run python benchmarks/nuts.py [--out FILE]
"""

import argparse
import json
import logging
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import infer
from numpyro.infer.hmc import hmc

from bayesinf import diagnostics, mcmc
from bayesinf.programs import from_numpyro

NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES, REPEATS = 4, 1_000, 1_000, 20
EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools(effects, errors):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("effect", dist.Normal(mu + tau * theta, errors), obs=effects)


def logistic(x, y):
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def simulated(num=1_000, dim=25):
    """Returns correlated regressors with an intercept, and outcomes."""
    rng = np.random.default_rng(0)
    mix = np.eye(dim - 1) + 0.1 * rng.normal(size=(dim - 1, dim - 1))
    x = np.c_[np.ones(num), rng.normal(size=(num, dim - 1)) @ mix / 2]
    y = rng.random(num) < 1 / (1 + np.exp(-x @ (0.5 * rng.normal(size=dim))))
    return jnp.asarray(x), jnp.asarray(y, int)


def ours(model, args):
    program = from_numpyro(model, *args)

    def run(key):
        draws = mcmc.sample(
            key,
            program,
            mcmc.NUTS(),
            num_chains=NUM_CHAINS,
            num_warmup=NUM_WARMUP,
            num_samples=NUM_SAMPLES,
            progress=False,
        )
        return draws.positions

    return run


def numpyro_run(chain_method, model, args):
    sampler = infer.MCMC(
        infer.NUTS(model),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method=chain_method,
        progress_bar=False,
    )

    def run(key):
        sampler.run(key, *args)
        return sampler.get_samples(group_by_chain=True)

    return run


def numpyro_core(over_chains, model, args):
    program = from_numpyro(model, *args)
    target = program.target()
    init, step = hmc(lambda x: -target.log_density(x), algo="NUTS")

    def chain(key):
        start_key, chain_key = jax.random.split(key)
        state = init(program.sample(start_key), num_warmup=NUM_WARMUP, rng_key=chain_key)

        def body(state, _):
            state = step(state)
            return state, state.z

        total = NUM_WARMUP + NUM_SAMPLES
        positions = jax.lax.scan(body, state, length=total)[1]
        return jax.tree.map(lambda leaf: leaf[NUM_WARMUP:], positions)

    mapped = over_chains(chain)
    return lambda key: mapped(jax.random.split(key, NUM_CHAINS))


class Compilations(logging.Handler):
    """Counts the programs that JAX says it compiles."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def emit(self, record):
        self.count += "Finished XLA compilation" in record.getMessage()


def least_ess(positions) -> float:
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(positions)]
    return float(min(np.min(diagnostics.ess_bulk(leaf)) for leaf in leaves))


def relative_error(values) -> float:
    """Returns the standard error of the mean of independent values, as a share of it."""
    return float(np.std(values, ddof=1) / np.mean(values) / np.sqrt(len(values)))


def measure(model, args):
    """Returns by package: seconds and programs compiled of later runs, and effective draws."""
    makers = {
        "ours": ours,
        "MCMC.run": partial(numpyro_run, "vectorized"),
        "MCMC.run, parallel": partial(numpyro_run, "parallel"),
        "core": partial(numpyro_core, lambda chain: jax.jit(jax.vmap(chain))),
        "core, parallel": partial(numpyro_core, jax.pmap),
    }
    runs = {name: make(model, args) for name, make in makers.items()}
    keys = jax.random.split(jax.random.key(0), 1 + REPEATS)
    for run in runs.values():
        jax.block_until_ready(run(keys[0]))
    found = {name: {"seconds": np.inf, "ess": [], "compiled": 0} for name in runs}
    counter = Compilations()
    loggers = [logging.getLogger(f"jax._src.{name}") for name in ("dispatch", "interpreters.pxla")]
    for logger in loggers:
        logger.addHandler(counter)
        logger.propagate = False
    with jax.log_compiles():
        for key in keys[1:]:
            for name, run in runs.items():
                before, begin = counter.count, time.perf_counter()
                positions = jax.block_until_ready(run(key))
                seconds = time.perf_counter() - begin
                found[name]["seconds"] = min(found[name]["seconds"], seconds)
                found[name]["compiled"] = max(found[name]["compiled"], counter.count - before)
                found[name]["ess"].append(least_ess(positions))
    for logger in loggers:
        logger.removeHandler(counter)
    return found


def main():
    jax.config.update("jax_num_cpu_devices", NUM_CHAINS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmark_nuts.json"))
    arguments = parser.parse_args()
    rows = []
    problems = {"eight schools": (eight_schools, (EFFECTS, ERRORS))}
    problems["logistic, 25"] = (logistic, simulated())
    for problem, (model, args) in problems.items():
        found = measure(model, args)
        rates = {name: np.mean(row["ess"]) / row["seconds"] for name, row in found.items()}
        errors = {name: relative_error(row["ess"]) for name, row in found.items()}
        for name, row in found.items():
            ratio = float(rates["ours"] / rates[name])
            error = 0.0 if name == "ours" else ratio * np.hypot(errors["ours"], errors[name])
            rows.append(
                {
                    "problem": problem,
                    "package": name,
                    "seconds": row["seconds"],
                    "min_bulk_ess": float(np.mean(row["ess"])),
                    "ess_per_second": float(rates[name]),
                    "ours_over_it": ratio,
                    "standard_error_of_ratio": float(error),
                    "compiled_on_later_runs": row["compiled"],
                }
            )
            print(
                f"{problem:14} {name:18} {row['seconds']:7.3f} s  ess {np.mean(row['ess']):6.0f}  "
                f"{rates[name]:8.0f} /s  ours x{ratio:5.2f} +- {error:.2f}  "
                f"compiled {row['compiled']}"
            )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"device": str(jax.devices()[0]), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
