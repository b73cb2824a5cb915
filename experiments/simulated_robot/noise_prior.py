"""With what odometry noise the network runs best, on simulated logs that `run.py` does not meet.

The noise is what the extended Kalman filter finds likeliest on the first quarter of the ranges
under a prior, kept for the whole log or fitted again as the log grows; the range noise in the
state wanders as in the model, or slower. The network's errors are relative to that filter's under
the likeliest noise of the first quarter.

Run: ./run python experiments/simulated_robot/noise_prior.py [--logs N] [--out DIR]
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from run import LENGTH, SEED, score
from tqdm import tqdm

from bayesinf.fusion import methods, robot
from bayesinf.fusion.noise import START, odometry_noise
from bayesinf.fusion.simulated_robot import drive

# What the simulation draws heading, along and jitter from, log-uniformly.
LOW, HIGH = np.log([0.0003, 0.005, 0.001]), np.log([0.008, 0.1, 0.03])
WALKS = (robot.Noise().log_range_walk, 0.005)


def log_normal(spread):
    return lambda vector: -0.5 * np.sum(((vector - START)[:3] / spread) ** 2)


def as_simulated(vector):
    """The log-uniform prior of the simulation, with soft walls for the search."""
    outside = np.maximum(LOW - vector[:3], 0) + np.maximum(vector[:3] - HIGH, 0)
    return -50 * np.sum(outside**2)


PRIORS = {
    "log-normal, 0.8": log_normal(0.8),
    "log-normal, 1.2": log_normal(1.2),
    "log-normal, 1.6": log_normal(1.6),
    "as simulated": as_simulated,
    "flat": lambda vector: 0.0,
}


def run(key, filters):
    """Returns the scores of the network on one simulated log, by choice, and of the filter."""
    log = jax.jit(partial(drive, length=LENGTH))(key)
    start = partial(robot.known_start, np.asarray(log.start), num_components=methods.SIZES.few)
    given = methods.setting_of(log.frames, start, filters)
    truth = np.asarray(log.states[:, :2], float)
    scores = {"ekf": score(methods.ekf(given)[0], truth)}
    for name, log_prior in PRIORS.items():
        vectors = methods.odometry_noises(given, log_prior)
        for walk in WALKS:
            noises = [odometry_noise(v[:3])._replace(log_range_walk=walk) for v in vectors]
            for fitted, some in (("once", noises[:1]), ("again", noises)):
                track = methods.network_track(given, some)
                scores[f"{name}, walk {walk}, {fitted}"] = score(track, truth)
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("out/noise_prior"))
    arguments = parser.parse_args()
    filters = methods.programs()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), 912), arguments.logs)
    logs = [run(key, filters) for key in tqdm(keys, desc="logs")]

    result = {"seed": SEED, "logs": arguments.logs, "length": LENGTH, "choices": {}}
    print(f"{'choice':38}{'RMSE / EKF':>12}{'95 %':>16}{'NLL':>8}{'NEES':>7}")
    for name in logs[0]:
        ratios = np.log([log[name]["rmse_m"] / log["ekf"]["rmse_m"] for log in logs])
        half = 1.96 * ratios.std(ddof=1) / np.sqrt(len(logs))
        low, high = (float(np.exp(ratios.mean() + side * half)) for side in (-1, 1))
        row = {
            "rmse_ratio": float(np.exp(ratios.mean())),
            "ci95": [low, high],
            "nll": float(np.mean([log[name]["nll"] for log in logs])),
            "median_nees": float(np.median([log[name]["nees"] for log in logs])),
        }
        result["choices"][name] = row
        print(
            f"{name:38}{row['rmse_ratio']:12.3f}{f'{low:.3f} to {high:.3f}':>16}"
            f"{row['nll']:8.2f}{row['median_nees']:7.2f}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "noise_prior.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
