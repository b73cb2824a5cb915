"""The range-bearing filter of the Distribution Transformer paper (sec. 4.3.1), scored honestly.

Every method filters the same 200 series of 100 steps and is scored by minus the log of its own
posterior density at the true state:

- the shipped network, and the extended Kalman filter on the same mixture;
- a 5,000-particle bootstrap filter with the right weights, resampled systematically, scored by its
  weighted Gaussian (jitter 1e-6 on the covariance);
- the floor: the same filter's Rao-Blackwell estimate of the exact density, two steps deep, from the
  third step on. The noise of one step has rank two, that of two steps has a density.

Run: ./run python experiments/range_bearing/run.py [--out DIR]
"""

import argparse
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from bayesinf import smc, transformers_gmm
from bayesinf.distributions import gaussian, uniform_particles
from bayesinf.fusion import range_bearing
from bayesinf.kalman import Method, extended
from bayesinf.programs.simulate import simulate

SEED, NUM_SERIES, LENGTH, NUM_PARTICLES = 0, 200, 100, 5_000
WINDOWS = ((2, 10), (10, 30), (30, 60), (60, 100))
MATRIX, NOISE = jnp.asarray(range_bearing.MATRIX), jnp.asarray(range_bearing.NOISE)
TWO_STEPS = np.concatenate(
    [range_bearing.MATRIX @ range_bearing.NOISE, range_bearing.NOISE], axis=1
)
INVERSE, LOG_DET = jnp.asarray(np.linalg.inv(TWO_STEPS)), -np.linalg.slogdet(TWO_STEPS)[1]
# A handful of particles may carry all the weight; then the Gaussian's jitter decides its score. The
# second is the filter's best form.
JITTERS = (1e-6, 1e-3)


def series(key, model, num):
    """Returns the states and frames of `num` independent series."""
    blank = range_bearing.empty_frames(LENGTH)
    draw = jax.jit(jax.vmap(lambda key: simulate(key, model, blank)))
    return draw(jax.random.split(key, num))


def filter_nll(method: Method, model, start, states, frames):
    """Returns minus the log posterior density at the true state after every frame."""

    def body(belief, moment):
        state, frame = moment
        prior = method.predict(model, belief, frame)
        posterior, _ = method.update(model, prior, frame.readings)
        return posterior, -posterior.log_prob(state)

    return jax.lax.scan(body, start, (states, frames))[1]


def particle_nll(key, model, states, frames, num=NUM_PARTICLES):
    """Returns the bootstrap filter's negative log densities: its weighted Gaussian, and exact."""
    start_key, scan_key = jax.random.split(key)
    fk = smc.bootstrap(model, frames)
    likelihoods = jax.vmap(model.log_likelihood, (0, None))

    def body(carry, moment):
        cloud, older, last_readings, last_evidence = carry
        state, frame, key = moment
        new, info = smc.step(key, fk, cloud, frame, smc.always(smc.systematic))

        # weighted Gaussian
        mean = new.mean()
        gaps = new.values - mean
        covariance = (gaps * new.weights[:, None]).T @ gaps
        gaussian_nlls = [
            -gaussian(mean, jnp.linalg.cholesky(covariance + jitter * jnp.eye(4))).log_prob(state)
            for jitter in JITTERS
        ]

        # exact: the two noises that lead from where the particles stood two frames ago to the truth
        draws = (state - older.values @ (MATRIX @ MATRIX).T) @ INVERSE.T
        between = older.values @ MATRIX.T + draws[:, :2] @ NOISE.T
        log_paths = -0.5 * jnp.sum(draws**2, axis=1) - 2 * np.log(2 * np.pi) + LOG_DET
        log_paths = log_paths + older.log_weights + likelihoods(between, last_readings)
        log_joint = logsumexp(log_paths) + model.log_likelihood(state, frame.readings)
        exact_nll = last_evidence + info.log_evidence - log_joint
        return (new, cloud, frame.readings, info.log_evidence), (*gaussian_nlls, exact_nll)

    first = uniform_particles(fk.init(start_key, num), jnp.asarray(0))
    blank = jax.tree.map(lambda leaf: leaf[0], frames.readings)
    keys = jax.random.split(scan_key, states.shape[0])
    carry = (first, first, blank, jnp.zeros(()))
    *gaussian_nlls, exact_nll = jax.lax.scan(body, carry, (states, frames, keys))[1]
    return *gaussian_nlls, exact_nll.at[:2].set(jnp.nan)


def interval(values):
    """Returns mean and 95 % half-width, clustered by series: series are independent, steps not."""
    per_series = np.nanmean(values, axis=1)
    return float(per_series.mean()), float(1.96 * per_series.std(ddof=1) / np.sqrt(len(values)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/range_bearing"))
    parser.add_argument("--network", default="range-bearing-4d", help="a name or a file")
    arguments = parser.parse_args()

    model = range_bearing.model()
    # Folded, so that no key of a training from the same seed is met again.
    simulate_key, particle_key = jax.random.split(jax.random.fold_in(jax.random.key(SEED), 431))
    states, frames = series(simulate_key, model, NUM_SERIES)
    dt = transformers_gmm.load(arguments.network)
    start = range_bearing.initial(range_bearing.NUM_COMPONENTS)

    nlls, seconds = {}, {}

    def score(name, function, *inputs):
        compiled = eqx.filter_jit(function).lower(*inputs).compile()
        begin = time.perf_counter()
        nlls[name] = jax.tree.map(np.asarray, jax.block_until_ready(compiled(*inputs)))
        seconds[name] = time.perf_counter() - begin

    for name, method in (
        ("distribution_transformer", transformers_gmm.as_method(dt)),
        ("extended_kalman", extended),
    ):
        score(
            name,
            lambda states, frames, method=method: jax.vmap(
                lambda s, f: filter_nll(method, model, start, s, f)
            )(states, frames),
            states,
            frames,
        )
    particle_keys = jax.random.split(particle_key, NUM_SERIES)
    score(
        "particle_filter",
        lambda *inputs: jax.lax.map(lambda x: particle_nll(x[0], model, *x[1:]), inputs),
        particle_keys,
        states,
        frames,
    )
    particle_names = ("particle_filter", "particle_filter_jitter_1e-3", "exact")
    nlls.update(zip(particle_names, nlls["particle_filter"], strict=True))

    rows = {}
    for name, values in nlls.items():
        mean, half_width = interval(values)
        windows = {f"{low}-{high}": float(np.nanmean(values[:, low:high])) for low, high in WINDOWS}
        rows[name] = {"nll": mean, "ci95": half_width, "windows": windows}
        if name in seconds:
            rows[name]["us_per_update"] = 1e6 * seconds[name] / (NUM_SERIES * LENGTH)
    gaps = {}
    for name in particle_names:
        gap = nlls["distribution_transformer"] - nlls[name]
        gaps[name] = {"all": interval(gap), "60-100": interval(gap[:, 60:])}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(dt, eqx.is_inexact_array)))
    result = {
        "seed": SEED,
        "series": NUM_SERIES,
        "steps": LENGTH,
        "particles": NUM_PARTICLES,
        "parameters": parameters,
        "methods": rows,
        "network_minus": gaps,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'method':28}{'NLL':>8}{'+-':>7}  " + "".join(f"{f'{a}-{b}':>9}" for a, b in WINDOWS))
    for name, row in rows.items():
        windows = "".join(f"{value:9.3f}" for value in row["windows"].values())
        print(f"{name:28}{row['nll']:8.3f}{row['ci95']:7.3f}  {windows}")
    print(f"network ({parameters} parameters) minus, paired by series: all steps, 60 to 100")
    for name, gap in gaps.items():
        print(f"{name:28}" + ", ".join(f"{mean:.3f} +- {half:.3f}" for mean, half in gap.values()))


if __name__ == "__main__":
    main()
