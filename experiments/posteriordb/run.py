"""NUTS on seven posteriors of posteriordb, against their reference draws.

Every model enters by `from_numpyro`; 4 chains start where Stan's would, uniformly within 2 of the
origin in unconstrained coordinates, adapt a dense scale for 1,000 steps and draw 2,000 times. The
mean of every parameter is compared with the reference's, in standard errors of the two combined.

Run: ./run python experiments/posteriordb/run.py [--out DIR]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from models import POSTERIORS
from tqdm import tqdm

from bayesinf import diagnostics, mcmc
from bayesinf.programs import from_numpyro

DATA, SEED, NUM_CHAINS = Path(__file__).parent / "data", 0, 4


def score(name, posterior, key):
    """Returns the row of one posterior."""
    data = json.loads((DATA / f"{name}.data.json").read_text())
    reference = np.load(DATA / f"{name}.npz")
    arguments = posterior.arguments(data)
    program = from_numpyro(posterior.model, *arguments)
    start_key, run_key = jax.random.split(key)
    flat, unravel = ravel_pytree(program.sample(jax.random.fold_in(key, 1)))  # for its shape
    starts = jax.random.uniform(start_key, (NUM_CHAINS, flat.size), minval=-2, maxval=2)
    begin = time.perf_counter()
    draws = mcmc.sample(
        run_key,
        program,
        mcmc.NUTS(0.1, jnp.eye(flat.size)),
        init=jax.vmap(unravel)(starts),
        num_chains=NUM_CHAINS,
        num_samples=2_000,
        progress=False,
    )
    seconds = time.perf_counter() - begin
    values = draws.map(lambda x: posterior.named(x, *arguments)).positions
    names = list(map(str, reference["names"]))
    z = {}
    for at, each in enumerate(names):
        error = np.hypot(diagnostics.mcse_mean(values[each]), reference["mcse_mean"][at])
        z[each] = float((values[each].mean() - reference["mean"][at]) / error)
    return {
        "posterior": name,
        "parameters": len(names),
        "largest_z": max(map(abs, z.values())),
        "z": z,
        "min_bulk_ess": float(min(diagnostics.ess_bulk(values[each]) for each in names)),
        "max_rhat": float(max(diagnostics.rhat(values[each]) for each in names)),
        "diverged": draws.num_diverged,
        "seconds": seconds,
    }


def main():
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/posteriordb"))
    arguments = parser.parse_args()
    keys = jax.random.split(jax.random.key(SEED), len(POSTERIORS))
    rows = [
        score(name, posterior, key)
        for key, (name, posterior) in zip(keys, tqdm(POSTERIORS.items()), strict=True)
    ]
    print(f"{'posterior':28}{'largest |z|':>12}{'min ESS':>9}{'R-hat':>7}{'diverged':>9}{'s':>7}")
    for row in rows:
        print(
            f"{row['posterior']:28}{row['largest_z']:12.2f}{row['min_bulk_ess']:9.0f}"
            f"{row['max_rhat']:7.3f}{row['diverged']:9}{row['seconds']:7.1f}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {"seed": SEED, "rows": rows}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
