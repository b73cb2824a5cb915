# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Build your own sampler, and know that it is right
#
# A wrong sampler runs, converges and draws smooth histograms of the wrong posterior. Here every
# sampler is put together from blocks, each block has a *law*, and the law is checked: exactly,
# over all random outcomes at once, where the problem is finite, and by independent runs elsewhere.
#
# 1. the exact measure of any JAX program: a particle filter's estimate;
# 2. a Metropolis kernel, and the Hastings term that everybody forgets once;
# 3. Metropolis within Gibbs, on finite and continuous targets;
# 4. resample-move SMC, its two classic mistakes, and calibration;
# 5. three algorithms of the literature in a few lines each.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from IPython.display import display

import bayesinf as bi
from bayesinf import mcmc, smc
from bayesinf.distributions import uniform_particles
from bayesinf.plots.validation import masses_figure, ranks_figure
from bayesinf.programs import DataProgram, enumerate_points, feynman_kac, from_numpyro, target
from bayesinf.validation import Problem, check, exact, invariant, problems, proper

jax.config.update("jax_enable_x64", True)
plt.rcParams["figure.dpi"] = 80
INK, CAME, EXACT = "#222222", "#0072B2", "#D55E00"

# %% [markdown]
# ## 1. A program and all that it may return
#
# A hidden Markov model: the weather changes, and an umbrella is seen or not. A particle filter
# estimates the probability of three days' umbrellas.

# %%
WEATHER = jnp.array([[0.8, 0.2], [0.4, 0.6]])  # from dry, from wet
UMBRELLA = jnp.array([[0.9, 0.1], [0.3, 0.7]])  # probabilities of none and one, dry and wet
seen = jnp.array([1, 1, 0])

weather = feynman_kac(
    init=lambda key: jax.random.categorical(key, jnp.log(jnp.array([0.5, 0.5]))),
    step=lambda key, x, umbrella: jax.random.categorical(key, jnp.log(WEATHER[x])),
    log_potential=lambda before, after, umbrella: jnp.log(UMBRELLA[after, umbrella]),
    inputs=seen,
)

masses = jnp.array([0.5, 0.5])
for umbrella in seen:
    masses = (masses @ WEATHER) * UMBRELLA[:, umbrella]
evidence = float(masses.sum())
print(f"probability of what was seen: {evidence:.6f}")


# %% [markdown]
# `exact` takes any JAX function that draws from finitely many outcomes and returns its output
# measure: every value that can come, and its probability. There is no sampling in this picture.


# %%
def estimate(num_particles, resampler):
    def run(key):
        particles, _ = smc.run(key, weather, num_particles, smc.always(resampler))
        return jnp.exp(particles.log_evidence)

    return run


key = jax.random.key(0)
measures = {num: exact(estimate(num, smc.multinomial), key) for num in (1, 2, 4)}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharex=True)
for axis, (num, measure) in zip(axes, measures.items(), strict=True):
    axis.vlines(measure.atoms, 0, measure.masses, color=CAME)
    axis.axvline(evidence, color=EXACT, lw=1)
    axis.set(title=f"{num} particles: {measure.masses.size} values", xlabel="estimate")
    axis.set_ylim(bottom=0)
axes[0].set_ylabel("probability")
figure.tight_layout()

for num, measure in measures.items():
    mean, log_mean = measure.expectation(lambda x: (x, jnp.log(x)))
    sd = np.sqrt(measure.expectation(lambda x: x**2) - mean**2)
    print(
        f"{num} particles: mean / exact - 1 = {mean / evidence - 1:+.0e}, "
        f"sd {sd / evidence:.3f}, bias of the log {log_mean - np.log(evidence):+.3f}"
    )

# %% [markdown]
# The mean is the line, to rounding, for any number of particles: that is the law `proper`. The
# logarithm is biased, as it must be. Questions that simulation answers slowly are numbers now, such
# as what a resampler is worth:

# %%
for resampler in (smc.multinomial, smc.residual, smc.stratified, smc.systematic):
    measure = exact(estimate(3, resampler), key)
    mean, square = measure.expectation(lambda x: (x, x**2))
    sd = np.sqrt(square - mean**2) / evidence
    print(f"{resampler.__name__:12} sd {sd:.4f}, {measure.stats.peak} worlds")

# %% [markdown]
# ## 2. A kernel
#
# A proposal that mostly steps to the next of K states, around the circle. It is not symmetric, so
# the acceptance needs the Hastings term. The first version calls it symmetric. `check` runs
# either on small targets from an exact start and compares the measure that comes with the one
# that should.


# %%
def proposal(num):
    return jnp.log(0.8 * jnp.roll(jnp.eye(num), 1, axis=1) + 0.2 / num)


def no_hastings_term(log_probs):
    table = proposal(log_probs.size)
    return mcmc.symmetric(lambda key, x: jax.random.categorical(key, table[x]))


def repaired(log_probs):
    table = proposal(log_probs.size)
    return mcmc.Metropolis(
        propose=lambda key, x: jax.random.categorical(key, table[x]),
        log_prob=lambda y, x: table[x, y],
    )


targets = problems.finite_targets((3,))
wrong, right = (check(kernel, invariant, targets) for kernel in (no_hastings_term, repaired))
print(wrong, right, sep="\n\n")

# %% [markdown]
# The report names the problem that decided, the points that disagree most, and for the law that
# holds the error that independent runs would have found. Acceptance rates and traces of the two
# kernels look alike. In a picture:

# %%
masses_figure(wrong, right)

# %% [markdown]
# ## 3. Metropolis within Gibbs
#
# Kernels combine: `blocks` moves one entry of a dict after another given the rest, `cycle`,
# `mixture` and `repeat` do what they say. The target is a table on pairs (a, b). To check any
# kernel on a finite target: draw from the target exactly, give the draw the target's mass, move
# it once, and ask whether the measure is still the target.

# %%
log_table = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
pairs = target(lambda x: log_table[x["a"], x["b"]])
a, b = jnp.meshgrid(jnp.arange(3), jnp.arange(2), indexing="ij")
on_pairs = enumerate_points(pairs, {"a": a.ravel(), "b": b.ravel()})


def moved_once(kernel):
    def run(key, problem):
        finite, start = problem
        start_key, step_key = jax.random.split(key)
        state = kernel.init(finite, start.sample(start_key))
        position = kernel.step(step_key, finite, state)[0].position
        one = uniform_particles(jax.tree.map(lambda leaf: leaf[None], position))
        return smc.reweight(one, start.log_evidence[None], one.level)

    return run


within = mcmc.blocks(
    {
        "a": repaired(log_table[:, 0]),
        "b": mcmc.Gibbs(lambda key, rest: jax.random.categorical(key, log_table[rest["a"]])),
    }
)
kernel = mcmc.cycle(within, mcmc.mixture([0.5, 0.5], within, mcmc.repeat(within, 2)))
on_table = [Problem("a table of pairs", (pairs, on_pairs), on_pairs)]
print(check(moved_once(kernel), proper, on_table, name="a cycle of mixtures of blocks"))

# %% [markdown]
# Continuous targets have no finite form. But a joint law can be drawn from: parameters from the
# prior, data from the parameters. The parameters are then an exact draw of the posterior, and one
# move must leave every average of theirs where it was. Here a mean with an exact Gibbs step and a
# log scale by random walk; the broken variant draws the mean with n - 1 for n.


# %%
def draw(key):
    mean_key, scale_key, data_key = jax.random.split(key, 3)
    x = {
        "mean": 2 * jax.random.normal(mean_key),
        "log_sd": 0.5 * jax.random.normal(scale_key),
    }
    return x, x["mean"] + jnp.exp(x["log_sd"]) * jax.random.normal(data_key, (4,))


def log_joint(x, y):
    log_prior = -(x["mean"] ** 2) / 8 - 2 * x["log_sd"] ** 2
    return log_prior + dist.Normal(x["mean"], jnp.exp(x["log_sd"])).log_prob(y).sum()


def gibbs_and_walk(y, count):
    def mean_given_rest(key, rest):
        precision = 0.25 + count * jnp.exp(-2 * rest["log_sd"])
        mean = count * y.mean() * jnp.exp(-2 * rest["log_sd"]) / precision
        return mean + jax.random.normal(key) / jnp.sqrt(precision)

    return mcmc.blocks({"mean": mcmc.Gibbs(mean_given_rest), "log_sd": mcmc.RandomWalk(0.5)})


def move(count):
    def run(key, drawn):
        x, y = drawn
        kernel, joint = gibbs_and_walk(y, count), target(lambda x: log_joint(x, y))
        return kernel.step(key, joint, kernel.init(joint, x))[0].position, y

    return run


def statistics(drawn):
    x, y = drawn
    values = jnp.stack([x["mean"], x["log_sd"]])
    return jnp.concatenate([values, values**2, (values[:1] - y.mean()) ** 2])


for label, count in (("right", 4), ("n - 1", 3)):
    found = bi.validation.invariance(key, draw, move(count), statistics, num_runs=16_384)
    verdict = "holds" if found.holds else "refuted"
    print(f"{label}: largest |z| {found.largest:6.2f}, threshold {found.threshold:.2f}, {verdict}")

# %% [markdown]
# ## 4. Resample-move SMC
#
# One datum after another reweights the particles; they are resampled and moved by a kernel whose
# target is the posterior so far. `move` takes no target: it reads the particles' own level. To
# move under the next target one has to lie about the level, as the second version does. It moves
# first, under the target that has the datum already, and then counts the datum again. The third
# keeps the order and draws every level with the same key.


# %%
def uniform(num):
    return mcmc.symmetric(lambda key, x: jax.random.randint(key, (), 0, num))


UNIFORM = uniform(3)


def weigh(path, particles, level):
    log_g = jax.vmap(path.log_increment, (0, None, None))(particles.values, particles.level, level)
    return smc.reweight(particles, log_g, level)


def start(key, program, num_particles=2):
    return smc.spawn(key, program.sample, num_particles, jnp.asarray(0))


def resample_move(key, program, kernel=UNIFORM, num_particles=2):
    start_key, *keys = jax.random.split(key, 1 + program.by_datum().num_data)
    particles = start(start_key, program, num_particles)
    for key in keys:
        resample_key, move_key = jax.random.split(key)
        particles = weigh(program.by_datum(), particles, particles.level + 1)
        particles = smc.resample(resample_key, particles, smc.systematic)
        particles, _ = smc.move(move_key, kernel, program.by_datum(), particles)
    return particles


def next_target_first(key, program, kernel=UNIFORM, num_particles=2):
    start_key, *keys = jax.random.split(key, 1 + program.by_datum().num_data)
    particles = start(start_key, program, num_particles)
    for key in keys:
        resample_key, move_key = jax.random.split(key)
        level = particles.level
        ahead = smc.reweight(particles, jnp.zeros(num_particles), level + 1)
        moved, _ = smc.move(move_key, kernel, program.by_datum(), ahead)
        back = smc.reweight(moved, jnp.zeros(num_particles), level)
        particles = weigh(program.by_datum(), back, level + 1)
        particles = smc.resample(resample_key, particles, smc.systematic)
    return particles


def key_used_twice(key, program):
    start_key, step_key = jax.random.split(key)
    particles = start(start_key, program)
    for _ in range(program.by_datum().num_data):
        resample_key, move_key = jax.random.split(step_key)
        particles = weigh(program.by_datum(), particles, particles.level + 1)
        particles = smc.resample(resample_key, particles, smc.systematic)
        particles, _ = smc.move(move_key, UNIFORM, program.by_datum(), particles)
    return particles


data_problems = problems.finite_data_programs((3,))
order, twice, right = (
    check(sampler, proper, data_problems)
    for sampler in (next_target_first, key_used_twice, resample_move)
)
print(order, twice, right, sep="\n\n")

# %%
masses_figure(order, right)

# %% [markdown]
# The wrong order shows in the evidence; the posterior, normalised, looks plausible. The key is
# caught as such, with the lines that use it. What would it have cost? On three data, by
# independent runs:

# %%
problem = problems.finite_data_programs((3,), 3)[0]
evidence = float(jnp.exp(problem.exact.log_evidence))
for sampler in (key_used_twice, resample_move):
    found = bi.validation.unbiased(
        key,
        lambda key, run=sampler: jnp.exp(run(key, problem.given).log_evidence),
        evidence,
        65_536,
    )
    bias, error = (100 * float(x) / evidence for x in (found.mean[0] - evidence, 1.0))
    print(f"{sampler.__name__}: evidence {bias:+.2f} %, |z| {found.largest:.2f}")

# %% [markdown]
# ### The same sampler on a continuous target
#
# The functions above never asked what a point is. With a normal mean and a random walk, the
# evidence has a closed form; and *simulation-based calibration* looks at the posterior: draw the
# truth from the prior, data from the truth, and rank the truth among the posterior's draws. Ranks
# are uniform where the posterior is right.


# %%
def normal(data):
    return DataProgram(
        sample=lambda key: 2 * jax.random.normal(key),
        log_prior=dist.Normal(0.0, 2.0).log_prob,
        log_likelihood=lambda x, y: dist.Normal(x, 1.0).log_prob(y),
        data=data,
    )


data = jnp.array([1.3, 2.2, 0.4])
evidence = jnp.exp(
    dist.MultivariateNormal(jnp.zeros(3), 4 * jnp.ones((3, 3)) + jnp.eye(3)).log_prob(data)
)
walk = mcmc.repeat(mcmc.RandomWalk(1.5), 3)
for sampler in (next_target_first, resample_move):
    found = bi.validation.unbiased(
        key,
        lambda key, run=sampler: jnp.exp(run(key, normal(data), walk, 64).log_evidence),
        evidence,
    )
    bias = 100 * float(found.mean[0] / evidence - 1)
    print(f"{sampler.__name__}: evidence {bias:+.2f} %, |z| {found.largest:.1f}")


# %%
def calibration(sampler):
    def posterior(key, data):
        run_key, draw_key = jax.random.split(key)
        return sampler(run_key, normal(data), walk, 256).sample(draw_key, (31,))

    return bi.validation.sbc(
        key,
        prior=lambda key: 2 * jax.random.normal(key),
        simulate=lambda key, x: x + jax.random.normal(key, (3,)),
        posterior=posterior,
        statistics=lambda x, data: jnp.stack([x, dist.Normal(x, 1.0).log_prob(data).sum()]),
        num_runs=2048,
    )


for sampler in (next_target_first, resample_move):
    ranks = calibration(sampler)
    print(f"{sampler.__name__}: p-values", ", ".join(f"{p:.1e}" for p in ranks.p_values(16)))
    names = [f"{sampler.__name__}:\n{each}" for each in ("the mean", "the log likelihood")]
    display(ranks_figure(ranks, names, num_bins=16))

# %% [markdown]
# A valley for the mean, low ranks for its likelihood: the truth lies too often outside of what the
# posterior covers, since the last datum counts twice. In the grey band lie 99 % of the bars of
# uniform ranks.
#
# ## 5. Algorithms of the literature
#
# Ścibior et al. (2018, "Functional programming for modular Bayesian inference") build inference
# from transformations of representations. Their three algorithms, on the blocks of this package:
#
# **Sequential Monte Carlo**: resample, propagate, reweight.


# %%
def sequential_monte_carlo(key, sequence):
    start_key, *keys = jax.random.split(key, 1 + sequence.num_steps)
    particles = smc.spawn(start_key, lambda key: sequence.init(key, 1)[0], 3)
    for t, key in enumerate(keys):
        resample_key, step_key = jax.random.split(key)
        input = jax.tree.map(lambda leaf, t=t: leaf[t], sequence.inputs)
        old = smc.resample(resample_key, particles, smc.multinomial)
        new = smc.propagate(step_key, old, lambda key, x, y=input: sequence.step(key, x, y))
        log_g = sequence.log_potential(old.values, new.values, input)
        particles = smc.reweight(new, log_g, new.level + 1)
    return particles


print(check(sequential_monte_carlo, proper, problems.finite_sequences((2,))))

# %% [markdown]
# **Trace Metropolis-Hastings**: pick a site of a program, here of a NumPyro model, and move its
# choice. The exact answer is a table of all choices.


# %%
def lawn(wet):
    rain = numpyro.sample("rain", dist.Bernoulli(0.2))
    sprinkler = numpyro.sample("sprinkler", dist.Bernoulli(jnp.where(rain == 1, 0.01, 0.4)))
    dry = jnp.where(rain == 1, 0.2, 1.0) * jnp.where(sprinkler == 1, 0.1, 1.0)
    numpyro.sample("wet", dist.Bernoulli(1 - 0.99 * dry), obs=wet)


program = from_numpyro(lawn, 1)
rain, sprinkler = jnp.meshgrid(jnp.arange(2), jnp.arange(2), indexing="ij")
choices = {"rain": rain.ravel(), "sprinkler": sprinkler.ravel()}
choices = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), choices, program.sample(key))
on_lawn = enumerate_points(program.target(), choices)
trace_mh = mcmc.trace_mh(
    {
        "rain": mcmc.symmetric(lambda key, x: 1 - x),
        "sprinkler": mcmc.SiteProposal(
            sample=lambda key, x: jax.random.bernoulli(key, 0.7 - 0.4 * x["rain"]).astype(int),
            log_prob=lambda value, x: dist.Bernoulli(0.7 - 0.4 * x["rain"]).log_prob(value),
        ),
    }
)
on_trace = [Problem("the lawn", (program.target(), on_lawn), on_lawn)]
print(check(moved_once(trace_mh), proper, on_trace, name="trace_mh"))

# %% [markdown]
# **Resample-move** along temperatures is one call; the number of levels, the kernel and the
# number of steps are arguments, and the law holds for all of them.


# %%
def tempered(key, program):
    return smc.temper_fixed(key, program, UNIFORM, 2, levels=jnp.array([0.3, 1.0]))[0]


print(check(tempered, proper, problems.finite_programs((3,))))

# %% [markdown]
# Your own function is checked in the same way from the command line:
# `bayesinf validate FILE.py:NAME --law proper`.
