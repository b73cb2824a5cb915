"""The real robot log Plaza1, from a known start and from anywhere, with what it must meet.

Both starts run every method of `bayesinf fuse`. From anywhere, the network's time to find itself is
compared with the best of three seeds of a particle filter that starts with 100,000 particles.

Run: ./run python experiments/plaza/run.py [LOG] [--out DIR]
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from bayesinf.fusion import methods, report
from bayesinf.fusion.log import truth_at
from bayesinf.fusion.read import read_log

SEEDS = (0, 1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="?", help="a log with truth; the shipped Plaza1 if left out")
    parser.add_argument("--out", type=Path, default=Path("out/plaza"))
    arguments = parser.parse_args()
    log = read_log(arguments.log)
    xy, heading = truth_at(log, np.array([log.start_t]))

    result = {}
    for start, pose in (("known", np.array([*xy[0], heading[0]])), ("unknown", None)):
        tracks = methods.run_methods(log, pose)
        result[start] = report.summary(log, start, tracks)
        print(report.table(result[start]))
        if pose is not None:
            ours, theirs = (tracks[name] for name in ("distribution_transformer", "ekf"))
            result["rmse_difference"] = paired(log, ours, theirs)

    setting = methods.setting(log, None)
    _, vector = methods.ekf(setting)
    result["particle_filter_converged_s"] = [
        report.score(
            log, methods.particle_filter(jax.random.key(seed), setting, vector), start_unknown=True
        )["converged_s"]
        for seed in tqdm(SEEDS, desc="particle filters")
    ]
    print("100,000 particles, converged after", result["particle_filter_converged_s"], "s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def paired(log, ours, theirs, num_blocks=40):
    """Returns the difference of squared errors (m^2) over the scored ranges and its 95 %
    half-width, from blocks of the log, within which errors are far from independent."""
    errors = [report.errors(log, track) for track in (ours, theirs)]
    first = int(0.25 * log.range_t.size)
    gaps = (errors[0] ** 2 - errors[1] ** 2)[first:]
    blocks = [block.mean() for block in np.array_split(gaps, num_blocks)]
    half_width = 1.96 * np.std(blocks, ddof=1) / np.sqrt(num_blocks)
    return {"mean": float(np.mean(blocks)), "ci95": float(half_width)}


if __name__ == "__main__":
    main()
