"""Chains over several devices, in a process that has them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from bayesinf import mcmc
from bayesinf.programs import target

NORMAL = target(lambda x: -0.5 * jnp.sum(x**2))


def chains(num_samples):
    """Returns draws of six chains, without a warm-up, which would make much of rounding."""
    start = jnp.arange(12.0).reshape(6, 2) / 10
    counts = {"num_warmup": 0, "num_samples": num_samples, "num_chains": 6}
    kernel = mcmc.HMC(0.5, 3)
    return mcmc.sample(jax.random.key(0), NORMAL, kernel, init=start, progress=False, **counts)


def main(out):
    """What the other process does."""
    first, longer = chains(20), chains(30)
    (layout,) = {leaf.sharding for leaf in jax.tree.leaves(first.last.states)}
    after = mcmc.resume(jax.random.key(0), NORMAL, first.last, num_samples=10, progress=False)
    together = np.concatenate([first.positions, after.positions], axis=1)
    np.testing.assert_array_equal(together, longer.positions)
    np.savez(out, positions=longer.positions, num_devices=len(layout.device_set))


def test_chains_are_the_same_over_devices(tmp_path):
    """Six chains on four devices take three, and go on from there to the bit."""
    out = tmp_path / "draws.npz"
    devices = {"JAX_NUM_CPU_DEVICES": "4"}
    subprocess.run([sys.executable, __file__, str(out)], env=os.environ | devices, check=True)
    with np.load(out) as found:
        assert found["num_devices"] == 3
        np.testing.assert_allclose(found["positions"], chains(30).positions, atol=1e-3)
        # The control: no two chains are alike.
        assert np.min(np.abs(np.diff(found["positions"], axis=0)).max(axis=1)) > 0.1


if __name__ == "__main__":
    main(sys.argv[1])
