"""What one update of the network costs, against the particle filter that is as good.

On the range-bearing filter of `experiments/range_bearing`, all in one run: the network's mean
negative log density is measured, then that of bootstrap filters with more and more particles,
scored by the weighted Gaussian with the one of the experiment's jitters that serves each best. The
cheapest filter that is as good is the peer, and the cost of one update is compared for one series
and for 100 at a time. Where none is as good the peer is the largest, and the ratio a lower bound.

Run: ./run python benchmarks/fusion.py [--out FILE]
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

from bayesinf import transformers_gmm
from bayesinf.fusion import range_bearing

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "range_bearing"))
import run as experiment

SIZES = (100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200)
REPEATS = 3


def measure(function, *inputs):
    """Returns the result, the best seconds of a few runs, and the bytes of working memory."""
    compiled = eqx.filter_jit(function).lower(*inputs).compile()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        result = jax.block_until_ready(compiled(*inputs))
        seconds.append(time.perf_counter() - begin)
    memory = compiled.compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return jax.tree.map(np.asarray, result), min(seconds), peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmark_fusion.json"))
    parser.add_argument("--network", default="range-bearing-4d", help="a name or a file")
    arguments = parser.parse_args()
    model = range_bearing.model()
    simulate_key, particle_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 577))
    method = transformers_gmm.as_method(transformers_gmm.load(arguments.network))
    start = range_bearing.initial(range_bearing.NUM_COMPONENTS)

    def network(states, frames):
        return jax.vmap(partial(experiment.filter_nll, method, model, start))(states, frames)

    def particles(num, keys, states, frames):
        def one(key, states, frames):
            return experiment.particle_nll(key, model, states, frames, num)[:-1]

        return jax.vmap(one)(keys, states, frames)

    rows, tried = [], []
    for num_series in (100, 1):
        states, frames = experiment.series(simulate_key, model, num_series)
        keys = jax.random.split(particle_key, num_series)
        updates = num_series * states.shape[1]
        nll, seconds, peak = measure(network, states, frames)
        if num_series == 100:
            target = nll.mean()
            for num in tqdm(SIZES, desc="particles"):
                nlls, peer_seconds, peer_peak = measure(
                    partial(particles, num), keys, states, frames
                )
                peer_nll = min(float(nll.mean()) for nll in nlls)
                tried.append(
                    {"particles": num, "nll": peer_nll, "us": 1e6 * peer_seconds / updates}
                )
                if peer_nll <= target:
                    break
            peer = num
        else:
            _, peer_seconds, peer_peak = measure(partial(particles, peer), keys, states, frames)
        rows.append(
            {
                "series": num_series,
                "network_us": 1e6 * seconds / updates,
                "particle_filter_us": 1e6 * peer_seconds / updates,
                "ratio": peer_seconds / seconds,
                "network_peak_mb": peak / 2**20,
                "particle_filter_peak_mb": peer_peak / 2**20,
            }
        )
    result = {
        "network_nll": float(target),
        "particle_filter_nll": peer_nll,
        "particles": peer,
        "as_good": bool(peer_nll <= target),
        "tried": tried,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    verdict = "as good" if result["as_good"] else "not as good, and no smaller filter is"
    print(f"network {target:.4f} nats; {peer} particles {peer_nll:.4f} nats, {verdict}")
    for row in tried:
        print(f"{row['particles']:7} particles: {row['nll']:.4f} nats, {row['us']:.0f} us")
    for row in rows:
        print(
            f"{row['series']:4} series: network {row['network_us']:.0f} us "
            f"({row['network_peak_mb']:.1f} MiB), particle filter "
            f"{row['particle_filter_us']:.0f} us ({row['particle_filter_peak_mb']:.1f} MiB), "
            f"{row['ratio']:.1f} times cheaper"
        )


if __name__ == "__main__":
    main()
