"""Simulated robots: the network against the filters that it is compared with on a real one.

Choices that concern the network are made here, never on a real log: with what odometry noise it
runs, and whether a training is worth shipping. Every log starts at a known pose, as a filter meets
a new robot: noise is fitted on its first quarter, and the rest is scored.

Run: ./run python experiments/simulated_robot/run.py [--logs N] [--network FILE] [--out DIR]
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from bayesinf.fusion import methods, robot
from bayesinf.fusion.noise import odometry_noise
from bayesinf.fusion.report import moments
from bayesinf.fusion.simulated_robot import drive
from bayesinf.fusion.track import filter_track
from bayesinf.transformers_gmm import load

SEED, LENGTH = 0, 1600


def score(track, truth):
    """Returns root mean squared error (m), Gaussian NLL and NEES on the last three quarters."""
    mean, covariance = moments(track)
    gap = (truth - mean)[LENGTH // 4 :]
    covariance = covariance[LENGTH // 4 :]
    nees = np.einsum("ti,tij,tj->t", gap, np.linalg.inv(covariance), gap)
    nll = 0.5 * nees + 0.5 * np.linalg.slogdet(covariance)[1] + np.log(2 * np.pi)
    return {
        "rmse_m": float(np.sqrt(np.mean(np.sum(gap**2, axis=1)))),
        "nll": float(np.mean(nll)),
        "nees": float(np.mean(nees)),
    }


def run(key, filters):
    """Returns the scores of every method on one simulated log."""
    log = jax.jit(partial(drive, length=LENGTH))(key)
    start = partial(robot.known_start, np.asarray(log.start), num_components=methods.SIZES.few)
    given = methods.setting_of(log.frames, start, filters)
    ekf, vector = methods.ekf(given)
    true = odometry_noise(np.log(np.array(log.noise[:3])))
    tracks = {
        "ekf": ekf,
        "gaussian_sum": methods.gaussian_sum_filter(given, vector),
        "network": methods.distribution_transformer(given),
        "network, true odometry noise": filter_track(
            filters.network, true, given.frames, start(true), methods.SIZES
        ),
    }
    truth = np.asarray(log.states[:, :2], float)
    return {name: score(track, truth) for name, track in tracks.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=int, default=12)
    parser.add_argument("--network", default="robot", help="a name or a file")
    parser.add_argument("--out", type=Path, default=Path("out/simulated_robot"))
    arguments = parser.parse_args()
    filters = methods.programs(load(arguments.network))
    # Folded, so that no key of a training from the same seed is met again.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), 911), arguments.logs)
    logs = [run(key, filters) for key in tqdm(keys, desc="logs")]

    result = {"seed": SEED, "logs": arguments.logs, "length": LENGTH, "methods": {}}
    print(f"{'method':30}{'RMSE / EKF':>12}{'95 %':>16}{'worst':>8}{'NLL':>8}{'NEES':>7}")
    for name in logs[0]:
        ratios = np.log([log[name]["rmse_m"] / log["ekf"]["rmse_m"] for log in logs])
        half = 1.96 * ratios.std(ddof=1) / np.sqrt(len(logs))
        row = {
            "rmse_ratio": float(np.exp(ratios.mean())),
            "ci95": [float(np.exp(ratios.mean() + side * half)) for side in (-1, 1)],
            "worst_ratio": float(np.exp(ratios.max())),
            "nll": float(np.mean([log[name]["nll"] for log in logs])),
            "median_nees": float(np.median([log[name]["nees"] for log in logs])),
        }
        result["methods"][name] = row
        low, high = row["ci95"]
        print(
            f"{name:30}{row['rmse_ratio']:12.3f}{f'{low:.3f} to {high:.3f}':>16}"
            f"{row['worst_ratio']:8.3f}{row['nll']:8.2f}{row['median_nees']:7.2f}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
