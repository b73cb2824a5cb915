"""The two refuted blocks checked again, without `bayesinf`: an enumeration and a simulation.

- BlackJAX's data tempering: the algorithm enumerated in plain Python, with the order of its steps
  and with the right one, on the problem of `rows.py` that the table shows.
- cuthbert's particle filter: how often the first particle's new state is the second one's old one
  where all states are equally likely, and the bias of the evidence on random models.

Run: see README.md; python experiments/peers_validated/again.py
"""

import itertools
from collections import defaultdict

import numpy as np

PRIOR = np.array([0.2, 0.3, 0.5])
DATA = np.array([[0.9, 0.3, 0.1], [0.2, 0.5, 0.8]])
NUM = 2


def main():
    print("BlackJAX, data tempering: the evidence's error, and the largest of a mass")
    for name, moves_under_next in (("as shipped", True), ("right order", False)):
        bias, error = data_tempering(moves_under_next)
        print(f"  {name:12} {bias:+.10f} %  {error:.3e} of the largest mass")
    cuthbert_filter()


def data_tempering(moves_under_next: bool) -> tuple[float, float]:
    """Returns the bias of the evidence in percent and the largest error, over all outcomes."""
    states = range(PRIOR.size)
    worlds = {
        (values, (1 / NUM,) * NUM, 1.0): float(np.prod(PRIOR[list(values)]))
        for values in itertools.product(states, repeat=NUM)
    }
    for t in range(len(DATA)):
        current, following = (PRIOR * DATA[:k].prod(0) for k in (t, t + 1))
        move = metropolis(following if moves_under_next else current)
        grown: dict = defaultdict(float)
        for (values, weights, evidence), mass in worlds.items():
            for chance, ancestors in systematic(np.array(weights)):
                for moved in itertools.product(states, repeat=NUM):
                    pairs = zip(ancestors, moved, strict=True)
                    path = mass * chance * np.prod([move[values[a], y] for a, y in pairs])
                    g = (following / current)[list(moved)]
                    world = moved, tuple(np.round(g / g.sum(), 14)), round(evidence * g.mean(), 14)
                    grown[world] += float(path)
        worlds = {world: mass for world, mass in grown.items() if mass}
    came = np.zeros(PRIOR.size)
    for (values, weights, evidence), mass in worlds.items():
        for x, weight in zip(values, weights, strict=True):
            came[x] += mass * evidence * weight
    exact = PRIOR * DATA.prod(0)
    return 100 * (came.sum() / exact.sum() - 1), float(np.abs(came - exact).max() / exact.max())


def metropolis(masses: np.ndarray) -> np.ndarray:
    """Returns the table of Metropolis moves that propose any state."""
    table = np.minimum(1, masses / masses[:, None]) / masses.size
    return table + np.diag(1 - table.sum(1))


def systematic(weights: np.ndarray):
    """Yields the probability and the ancestors of each outcome of systematic resampling."""
    ends = np.cumsum(weights)
    cuts = {NUM * end - i for end in ends for i in range(NUM)}
    edges = sorted({0.0, 1.0, *(cut for cut in cuts if 0 < cut < 1)})
    for low, high in itertools.pairwise(edges):
        points = (np.arange(NUM) + (low + high) / 2) / NUM
        yield high - low, np.minimum(np.searchsorted(ends, points), NUM - 1)


def cuthbert_filter(num_runs: int = 2000):
    try:
        import cuthbert
        import jax
        import jax.numpy as jnp
        from cuthbert.smc import particle_filter
        from cuthbertlib.resampling import systematic as resampling
    except ImportError as error:
        print(f"cuthbert: skipped, {error}")
        return
    jax.config.update("jax_enable_x64", True)

    def build(start, move, num):
        return particle_filter.build_filter(
            lambda key: jax.random.categorical(key, start),
            lambda key, x, read: jax.random.categorical(key, move[x]),
            lambda before, after, read: read[after],
            num,
            resampling.resampling,
        )

    def run(filter_, reads, key, fresh):
        start_key, other_key, key = jax.random.split(key, 3)
        state = filter_.init_prepare(key=start_key)
        state = state._replace(key=other_key) if fresh else state
        return state, cuthbert.filter(filter_, reads, state, key=key)

    def runs(function, seed, num):
        keys = jax.random.split(jax.random.key(seed), num)
        return jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(function, keys))(keys))

    print(f"cuthbert, particle filter: even probabilities, {num_runs} runs")
    even = build(jnp.zeros(2), jnp.zeros((2, 2)), 2)
    for name, fresh in (("as shipped", False), ("another key", True)):

        def states(key, fresh=fresh):
            start, after = run(even, jnp.zeros((1, 2)), key, fresh)
            return start.particles, after.particles[-1]

        before, after = runs(states, 1, num_runs)
        share = (after[:, 0] == before[:, 1]).mean()
        print(f"  {name:12} the first moves to where the second was in {100 * share:.1f} % of runs")

    rng = np.random.default_rng(1)
    for model in range(2):
        start = np.log(rng.dirichlet(np.ones(3)))
        move = np.log(rng.dirichlet(np.ones(3) / 2, size=3))
        reads = 1.5 * rng.normal(size=(2, 3))
        masses = np.exp(start)
        for read in reads:
            masses = (masses @ np.exp(move)) * np.exp(read)
        filter_ = build(jnp.asarray(start), jnp.asarray(move), 2)
        reads = jnp.asarray(reads)

        def evidence(key, filter_=filter_, reads=reads):
            return jnp.exp(run(filter_, reads, key, False)[1].log_normalizing_constant[-1])

        ratio = runs(evidence, 5, 30_000) / masses.sum()
        bias, error = 100 * (ratio.mean() - 1), 100 * ratio.std() / np.sqrt(ratio.size)
        print(f"  random model {model}: the evidence is off by {bias:+.2f} +- {error:.2f} %")


if __name__ == "__main__":
    main()
