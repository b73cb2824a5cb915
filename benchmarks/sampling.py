"""What one particle-step of the bootstrap filter costs, against other packages.

A linear-Gaussian model with one state, T = 1000, run by every package with systematic resampling
at every step, or where the effective sample size is below half (`ESS < N/2`), whichever the package
has; ratios compare the same rule, and for JAX packages the same kind of key. Runs take turns, so
that a busy machine is busy for all, and the best of them counts. A package that is not installed is
left out; `particles` draws by NumPy, whatever the key.

Run: ./run --with blackjax --with cuthbert --with particles python benchmarks/sampling.py
(smcjax asks for an older jaxlib but runs on this one: install it apart with --no-deps.)
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayesinf import kalman, smc
from bayesinf.distributions import gaussian
from bayesinf.programs import Frame, StateSpace, linear_gaussian, reading
from bayesinf.programs.simulate import simulate

LENGTH, SIZES, REPEATS = 1_000, (1_000, 10_000), 7
PHI, MOVE, NOISE = 0.9, 0.5, 0.7
START = np.hypot(PHI, MOVE)  # the spread at the first observation
ALWAYS, ADAPTIVE = "every step", "ESS < N/2"


def model_and_frames():
    """Returns the model and a simulated log of it."""
    model = StateSpace(
        gaussian(jnp.zeros(1), jnp.eye(1)),
        linear_gaussian([[PHI]], [[MOVE]]),
        {"level": lambda state, _: dist.Normal(state[0], NOISE)},
    )
    blank = Frame(jnp.ones(LENGTH), None, {"level": reading(np.zeros((LENGTH, 1)))})
    return model, simulate(jax.random.key(1), model, blank)[1]


def log_density(gap):
    return -0.5 * (gap / NOISE) ** 2 - jnp.log(NOISE * jnp.sqrt(2 * jnp.pi))


def ours(model, frames, num):
    fk = smc.bootstrap(model, frames)
    rules = {ALWAYS: smc.always(smc.systematic), ADAPTIVE: smc.adaptive(smc.systematic)}
    for rule, policy in rules.items():

        @jax.jit
        def run(key, policy=policy):
            return smc.run(key, fk, num, policy)[0].log_evidence

        yield rule, run


def blackjax(model, frames, num):
    from blackjax.smc import base, resampling

    values = frames.readings["level"].value[:, 0]

    def update(keys, states, _):
        # One key for all particles, which is faster than the many that it offers.
        return PHI * states + MOVE * jax.random.normal(keys[0], states.shape), None

    def step(state, inputs):
        key, value = inputs

        def weight(states):
            return log_density(value - states)

        state, info = base.step(key, state, update, weight, resampling.systematic)
        return state, info.log_likelihood_increment

    @jax.jit
    def run(key):
        start_key, key = jax.random.split(key)
        start = base.init(jax.random.normal(start_key, (num,)), ())
        return jnp.sum(jax.lax.scan(step, start, (jax.random.split(key, LENGTH), values))[1])

    yield ALWAYS, run


def smcjax(model, frames, num):
    from smcjax import bootstrap_filter

    values = frames.readings["level"].value

    @jax.jit
    def run(key):
        return bootstrap_filter(
            key,
            lambda key, num: START * jax.random.normal(key, (num, 1)),
            lambda key, state: PHI * state + MOVE * jax.random.normal(key, (1,)),
            lambda value, state: log_density(value - state)[0],
            values,
            num,
        ).marginal_loglik

    yield ADAPTIVE, run


def cuthbert(model, frames, num):
    import cuthbert as package
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import systematic
    from cuthbertlib.resampling.adaptive import ess_decorator

    values = frames.readings["level"].value[:, 0]
    rules = {ALWAYS: systematic.resampling, ADAPTIVE: ess_decorator(systematic.resampling, 0.5)}
    for rule, resample in rules.items():
        method = particle_filter.build_filter(
            lambda key: jax.random.normal(key),
            lambda key, state, _: PHI * state + MOVE * jax.random.normal(key),
            lambda _, state, value: log_density(value - state),
            num,
            resample,
        )

        @jax.jit
        def run(key, method=method):
            start_key, key = jax.random.split(key)
            start = method.init_prepare(key=start_key)
            return package.filter(method, values, start, key=key).log_normalizing_constant[-1]

        yield rule, run


def particles(model, frames, num):
    import particles as package
    from particles import distributions as dists
    from particles import state_space_models as ssm

    values = np.asarray(frames.readings["level"].value[:, 0])

    class Level(ssm.StateSpaceModel):
        def PX0(self):  # noqa: N802
            return dists.Normal(scale=START)

        def PX(self, t, xp):  # noqa: N802
            return dists.Normal(loc=PHI * xp, scale=MOVE)

        def PY(self, t, xp, x):  # noqa: N802
            return dists.Normal(loc=x, scale=NOISE)

    for rule, threshold in ((ALWAYS, 1.1), (ADAPTIVE, 0.5)):

        def run(key, threshold=threshold):
            fk = ssm.Bootstrap(ssm=Level(), data=values)
            filtered = package.SMC(fk=fk, N=num, resampling="systematic", ESSrmin=threshold)
            filtered.run()
            return filtered.logLt

        yield rule, run


PEERS = (ours, blackjax, smcjax, cuthbert, particles)


def contenders(model, frames, num):
    """Returns the filters to time by (package, rule), those whose package is there."""
    found = {}
    for package in PEERS:
        try:
            found |= {(package.__name__, rule): run for rule, run in package(model, frames, num)}
        except ImportError as error:
            print(f"{package.__name__} is left out: {error}")
    return found


def best_seconds(found, key):
    """Returns the log evidence and the best seconds of each, which take turns."""
    evidence = {name: float(run(key)) for name, run in found.items()}
    seconds = dict.fromkeys(found, np.inf)
    for _ in range(REPEATS):
        for name, run in found.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(key))
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return evidence, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmark_sampling.json"))
    arguments = parser.parse_args()
    model, frames = model_and_frames()
    exact = kalman.run(kalman.kalman, model, frames)[1].log_evidence.sum()
    print(f"bootstrap filter, T = {LENGTH}; exact log evidence {exact:.2f}")
    rows = []
    for num in SIZES:
        found = contenders(model, frames, num)
        for implementation in ("threefry2x32", "philox2x32"):
            evidence, seconds = best_seconds(found, jax.random.key(0, impl=implementation))
            for (package, rule), best in seconds.items():
                row = {
                    "package": package,
                    "rule": rule,
                    "particles": num,
                    "key": implementation,
                    "ns_per_particle_step": best / num / LENGTH * 1e9,
                    "ratio_to_ours": best / seconds["ours", rule],
                    "log_evidence": evidence[package, rule],
                }
                rows.append(row)
                print(
                    f"{package:10} {rule:10} N={num:6} {implementation:12} "
                    f"{row['ns_per_particle_step']:7.1f} ns  x{row['ratio_to_ours']:5.2f}  "
                    f"log evidence {row['log_evidence']:.2f}"
                )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"device": str(jax.devices()[0]), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
