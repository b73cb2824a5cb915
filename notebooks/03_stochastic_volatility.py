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
# # Stochastic volatility of GBP/USD
#
# How nervous was the pound, day by day? The volatility of a return is not observed, so a model
# with a hidden state is needed, and its likelihood is an integral over 750 hidden numbers. Three
# ways lead to the posterior here:
#
# 1. a *bootstrap filter* estimates the likelihood at fixed parameters;
# 2. *particle marginal Metropolis-Hastings* (PMMH) puts that estimate into a Markov chain, and is
#    exact in spite of the noise;
# 3. *particle Gibbs* moves whole volatility paths, which gives the smoothed volatility too.
#
# This model is small enough for quadrature, so that every answer is held against one without
# particles.

# %%
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial

import bayesinf as bi
from bayesinf import mcmc, smc
from bayesinf.plots import chains
from bayesinf.programs import Frame, Program, Reading, StateSpace, linear_gaussian, target

INK, FILTER, PATHS, EXACT = "#222222", "#0072B2", "#009E73", "#D55E00"
plt.rcParams["figure.dpi"] = 80

data = np.load(Path(bi.__file__).parents[1] / "tests" / "data" / "gbpusd.npz")
days = data["date"].astype("datetime64[D]")
returns = jnp.asarray(data["log_return_pct"], jnp.float32)
print(f"{returns.size} daily returns, {days[0]} to {days[-1]}, sd {float(returns.std()):.3f} %")
size = np.abs(returns)
lags = ", ".join(f"{np.corrcoef(size[k:], size[:-k])[0, 1]:.2f}" for k in (1, 2, 5, 10))
print(f"autocorrelation of their sizes after 1, 2, 5 and 10 days: {lags}")

figure, axes = plt.subplots(2, 1, figsize=(10, 4), sharex=True)
axes[0].plot(days, data["rate"], color=INK, lw=1)
axes[0].set_ylabel("pounds a dollar")
axes[1].bar(days[1:], returns, color=INK, width=1.5)
axes[1].set_ylabel("return (%)")
figure.tight_layout()

# %% [markdown]
# ## The model
#
# The log variance $x_t$ of a day's return is an autoregression, stationary from the start:
#
# $$x_t = \mu + \phi\,(x_{t-1} - \mu) + s\,e_t, \qquad y_t \sim N(0, \exp x_t).$$
#
# Chains move in $\theta = (\mu, \operatorname{logit}\frac{1 + \phi}{2}, \log s)$, where the prior
# is normal; like the usual priors of this model it favours a volatility that lasts for weeks. A
# state-space model is a first state, a move and a sensor; `smc.bootstrap` makes of it what a filter
# runs.

# %%
CENTRE, SPREAD = jnp.array([-1.0, 3.5, jnp.log(0.25)]), jnp.array([1.0, 1.0, 0.7])
PRIOR = dist.Normal(CENTRE, SPREAD).to_event(1)
NAMES = ("mu", "phi", "s")


def natural(theta):
    mu, logit, log_s = jnp.moveaxis(theta, -1, 0)
    return mu, 2 * jax.nn.sigmoid(logit) - 1, jnp.exp(log_s)


def read(y):
    there = jnp.ones((y.size, 1), bool)
    return Frame(jnp.ones(y.size), None, {"return": Reading(y[:, None], None, there)})


def volatility(theta, frames):
    mu, phi, s = natural(theta)
    first = bi.distributions.gaussian(mu[None], (s / jnp.sqrt(1 - phi**2))[None, None])
    move = linear_gaussian(phi[None, None], s[None, None], (mu * (1 - phi))[None])
    sensor = {"return": lambda x, context: dist.Normal(0.0, jnp.exp(x[0] / 2))}
    return smc.bootstrap(StateSpace(first, move, sensor), frames)


frames = read(returns)
drawn = natural(PRIOR.sample(jax.random.key(0), (10_000,)))
for name, values in zip(NAMES, drawn, strict=True):
    low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
    print(f"prior of {name:4} median {middle:6.3f}, 95 % in [{low:.3f}, {high:.3f}]")

# %% [markdown]
# ## 1. The filter's log likelihood, and its noise
#
# At a fixed parameter a grid of 1-D quadrature knows the log likelihood to ten digits; that
# value came with the data, for the parameter below. A particle filter estimates it:

# %%
mu, phi, s = data["sv_params"]
given = jnp.array([mu, jnp.log((1 + phi) / (1 - phi)), jnp.log(s)])
exact = float(data["sv_loglik_t"].sum())
print(f"at mu = {mu}, phi = {phi}, s = {s}: exact log likelihood {exact:.4f}")


@eqx.filter_jit
def log_likelihoods(key, theta, num_particles, num_runs):
    estimate = smc.LogEvidence(lambda theta: volatility(theta, frames), num_particles)
    return jax.vmap(estimate, (0, None))(jax.random.split(key, num_runs), theta)


sizes = (50, 100, 200, 400)
runs = [np.asarray(log_likelihoods(jax.random.key(1), given, num, 100)) for num in sizes]
print("particles   mean    sd    mean of estimate / exact")
for num, values in zip(sizes, runs, strict=True):
    ratio = np.exp(values - exact)
    error = ratio.std() / np.sqrt(ratio.size)
    print(f"{num:9} {values.mean():8.2f} {values.std():5.2f}    {ratio.mean():.2f} +- {error:.2f}")

figure, axis = plt.subplots(figsize=(7, 2.8))
axis.boxplot(runs, tick_labels=sizes, widths=0.5, medianprops={"color": FILTER})
axis.axhline(exact, color=EXACT, lw=1, label="exact")
axis.set(xlabel="particles", ylabel="log likelihood")
axis.legend()
figure.tight_layout()

# %% [markdown]
# The likelihood itself is unbiased at any number of particles; its logarithm is too low on
# average, by about half its variance. The sd falls like one over the square root of the number.
# PMMH works best where it is a little above 1.
#
# The same run filters. The band is what the particles say of today's volatility given the past;
# the line is the grid's posterior mean of the log variance.

# %%
fk = volatility(given, frames)
particles, info = smc.run(
    jax.random.key(2), fk, 2000, collect=lambda p, resampling: (p.values[:, 0], p.weights)
)
values, weights = map(np.asarray, info.collected)
mean = np.sum(values * weights, axis=1)
gap = np.abs(mean - data["sv_filter_mean"]) / np.sqrt(data["sv_filter_var"])
print(f"filtered means: at most {gap.max():.3f} posterior sd from the grid's")
print(f"resampled at {int(info.resampled.sum())} of {returns.size} days")

figure, axis = plt.subplots(figsize=(10, 3))
chains.draw_bands(axis, days[1:], values.T, weights.T, color=FILTER, label="filter, median")
axis.plot(days[1:], data["sv_filter_mean"], color=EXACT, lw=0.8, label="grid, mean")
axis.set_ylabel("log variance")
axis.legend(ncols=2)
figure.tight_layout()

# %% [markdown]
# ## 2. PMMH
#
# A Metropolis kernel on the parameters in which a filter stands for the likelihood. The estimate
# is a part of the chain's position and is kept as long as the chain stays, which makes it exact.
# Many short chains cost little more than a few: they run as one batch. A pilot from around the
# prior's middle gives the covariance of the proposals and the starts of the run that counts.

# %%
NUM_PARTICLES, NUM_CHAINS = 100, 16


def model(theta):
    return volatility(theta, frames)


def pmmh(factor):
    return smc.pmmh(mcmc.RandomWalk(factor), model, NUM_PARTICLES)


def spread(theta):
    """Returns the factor of the best scale of a random walk."""
    draws = np.asarray(theta).reshape(-1, 3)
    return jnp.asarray(2.4 / np.sqrt(3) * np.linalg.cholesky(np.cov(draws.T)), jnp.float32)


def run_pmmh(key, kernel, theta, **sizes):
    start_key, key = jax.random.split(key)
    starts = jax.jit(jax.vmap(kernel.start))(jax.random.split(start_key, len(theta)), theta)
    prior = target(PRIOR.log_prob)
    sizes = {"num_chains": len(theta), "progress": False, **sizes}
    return mcmc.sample(key, prior, kernel, init=starts, **sizes)


def natural_draws(draws, theta):
    """Returns the draws in the model's own parameters, which know their diagnostics."""
    positions = dict(zip(NAMES, map(np.asarray, natural(theta)), strict=True))
    return mcmc.Draws(positions, draws.info, draws.last)


starts = CENTRE + SPREAD / 3 * jax.random.normal(jax.random.key(3), (NUM_CHAINS, 3))
first = pmmh(jnp.diag(jnp.array([0.15, 0.5, 0.2])))
pilot = run_pmmh(jax.random.key(4), first, starts, num_warmup=200, num_samples=150)
found = jnp.asarray(pilot.positions.value)

draws = run_pmmh(
    jax.random.key(5), pmmh(spread(found)), found[:, -1], num_warmup=100, num_samples=400
)
marginal = natural_draws(draws, draws.positions.value)
print(marginal.table())
print(f"accepted {100 * float(np.mean(draws.info.acceptance)):.0f} %")

# %%
chains.chains_figure(marginal, sorted(NAMES))

# %% [markdown]
# R-hat above 1.01 and ranks that are not level say that these chains, short for the notebook's
# sake, should be run longer before anything is published; `mcmc.resume` goes on from `draws.last`.
# A noisy likelihood costs acceptance: a lucky estimate holds a chain for long.
#
# The likelihood's noise where the chain lives, which is not where the parameter above is:

# %%
middle = jnp.asarray(np.median(draws.positions.value, axis=(0, 1)))
values = log_likelihoods(jax.random.key(6), middle, NUM_PARTICLES, 100)
cells = (f"{name} = {float(x):.2f}" for name, x in zip(NAMES, natural(middle), strict=True))
print("median of the posterior:", ", ".join(cells))
print(f"log likelihood there {values.mean():.2f}, sd {values.std():.2f}; above: {exact:.2f}")

# %% [markdown]
# ## The same posterior without particles
#
# In one dimension the hidden state can be summed out on a grid. The random walk then has an exact
# likelihood; nothing else changes.


# %%
def quadrature(theta):
    mu, phi, s = natural(theta)
    z = jnp.linspace(-5, 5, 64)  # in units of the stationary sd
    x = mu + s / jnp.sqrt(1 - phi**2) * z
    move = jax.nn.softmax(-0.5 * ((x - mu - phi * (x[:, None] - mu)) / s) ** 2, axis=1)
    log_reads = dist.Normal(0.0, jnp.exp(x / 2)).log_prob(returns[:, None])

    def update(probs, log_read):
        joint = (probs @ move) * jnp.exp(log_read)
        return joint / joint.sum(), jnp.log(joint.sum())

    return jax.lax.scan(update, jax.nn.softmax(-0.5 * z**2), log_reads)[1].sum()


print(f"64 points: {float(quadrature(given)):.4f}, the reference: {exact:.4f}")
program = Program(PRIOR.sample, PRIOR.log_prob, quadrature)
walk = mcmc.RandomWalk(spread(draws.positions.value))
oracle = mcmc.sample(
    jax.random.key(7),
    program,
    walk,
    num_chains=NUM_CHAINS,
    num_warmup=300,
    num_samples=1200,
    init=starts,
    progress=False,
)
exactly = natural_draws(oracle, oracle.positions)
print(exactly.table())

# %% [markdown]
# ## 3. Particle Gibbs
#
# Position: parameters and the whole path. Conditional SMC with ancestor sampling moves the path
# given the parameters; a random walk moves the parameters given the path. `smc.particle_gibbs` is
# the first as a block of a larger kernel: it is given the other entries of the position.
#
# Given a path of 751 values $s$ can hardly move. So a third kernel moves the parameters with the
# *noises* $e_t$ held and carries the path along (interweaving, Yu and Meng 2011). It is a
# Metropolis move of the whole position whose `log_prob` carries the Jacobian.


# %%
def transition(theta):
    mu, phi, s = natural(theta)
    return lambda before, after, frame: dist.Normal(mu + phi * (before - mu), s).log_prob(after)[0]


def log_joint(y, position):
    theta, path = position["theta"], position["path"][:, 0]
    mu, phi, s = natural(theta)
    log_first = dist.Normal(mu, s / jnp.sqrt(1 - phi**2)).log_prob(path[0])
    log_moves = dist.Normal(mu + phi * (path[:-1] - mu), s).log_prob(path[1:])
    log_reads = dist.Normal(0.0, jnp.exp(path[1:] / 2)).log_prob(y)
    return PRIOR.log_prob(theta) + log_first + jnp.sum(log_moves + log_reads)


def to_noise(theta, path):
    mu, phi, s = natural(theta)
    x = path[:, 0] - mu
    return jnp.concatenate([x[:1] * jnp.sqrt(1 - phi**2), x[1:] - phi * x[:-1]]) / s


def to_path(theta, noise):
    mu, phi, s = natural(theta)
    first = s / jnp.sqrt(1 - phi**2) * noise[0]

    def move(x, e):
        return phi * x + s * e, phi * x + s * e

    return mu + jnp.append(first, jax.lax.scan(move, first, noise[1:])[1])[:, None]


def carry(factor, key, position):
    theta = position["theta"] + factor @ jax.random.normal(key, (3,))
    return {"theta": theta, "path": to_path(theta, to_noise(*map(position.get, ("theta", "path"))))}


def log_jacobian(new, old):
    _, phi, s = natural(new["theta"])
    return 0.5 * jnp.log(1 - phi**2) - new["path"].size * jnp.log(s)


def path_model(frames, rest):
    return volatility(rest["theta"], frames)


def move_path(rest):
    return smc.ancestor_sampling(16, transition(rest["theta"]))


def particle_gibbs(frames, factor, log_prob=log_jacobian):
    path = smc.particle_gibbs(Partial(path_model, frames), move_path)
    given_path = mcmc.blocks({"path": path, "theta": mcmc.RandomWalk(factor / 4)})
    given_noise = mcmc.Metropolis(Partial(carry, factor / 2), log_prob)
    return mcmc.cycle(given_path, mcmc.repeat(given_noise, 3))


# %% [markdown]
# Is it right? Five days and one move decide: draw parameters, path and returns
# from the model, move once, and compare. If the kernel leaves the posterior as it is, no average
# has moved. The same test must refute the kernel without its Jacobian.


# %%
def draw(key):
    theta_key, noise_key, read_key = jax.random.split(key, 3)
    theta = PRIOR.sample(theta_key)
    path = to_path(theta, jax.random.normal(noise_key, (6,)))
    y = jnp.exp(path[1:, 0] / 2) * jax.random.normal(read_key, (5,))
    return {"theta": theta, "path": path}, y


def moves(log_prob):
    def move(key, drawn):
        position, y = drawn
        joint, kernel = target(Partial(log_joint, y)), particle_gibbs(read(y), jnp.eye(3), log_prob)
        return kernel.step(key, joint, kernel.init(joint, position))[0].position, y

    return move


def statistics(drawn):
    position, y = drawn
    theta, path = position["theta"], position["path"][:, 0]
    return {"theta": theta, "path": jnp.tanh(path), "fit": jnp.tanh(path[1:]) * jnp.tanh(y**2)}


for name, log_prob in (("with", log_jacobian), ("without", lambda new, old: jnp.zeros(()))):
    found = bi.validation.invariance(jax.random.key(8), draw, moves(log_prob), statistics, 4096)
    verdict = "holds" if found.holds else "refuted"
    print(f"{name:7} Jacobian: largest |z| {found.largest:7.2f}, {verdict}")

# %% [markdown]
# Now the real series, from the pilot's starts and flat paths.

# %%
flat = jnp.broadcast_to(starts[:8, None, :1], (8, returns.size + 1, 1))
gibbs = mcmc.sample(
    jax.random.key(10),
    target(Partial(log_joint, returns)),
    particle_gibbs(frames, spread(draws.positions.value)),
    num_chains=8,
    num_warmup=200,
    num_samples=800,
    init={"theta": starts[:8], "path": flat},
    progress=False,
)
smoothed = natural_draws(gibbs, gibbs.positions["theta"])
print(smoothed.table())
(moved_path, moved_theta), carried = gibbs.info.each[0].each, gibbs.info.each[1]
print(f"values of the path renewed a step: {100 * moved_path.acceptance.mean():.0f} %")
print(f"accepted given the path {100 * moved_theta.acceptance.mean():.0f} %", end=", ")
print(f"given the noises {100 * carried.acceptance.mean():.0f} %")

# %% [markdown]
# Three samplers that share the model and the scale of their proposals. All are short: where R-hat
# is above 1.01 their errors are larger than they say.

# %%
three = {"PMMH": marginal, "particle Gibbs": smoothed, "quadrature": exactly}
print(" " * 15 + "".join(f"{name:>22}" for name in NAMES))
for name, each in three.items():
    rows = each.summary()
    cells = (f"{rows[p]['mean']:9.3f} +- {rows[p]['mcse']:.3f}" for p in NAMES)
    print(f"{name:15}" + "".join(f"{cell:>22}" for cell in cells))

figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
for axis, name in zip(axes, NAMES, strict=True):
    edges = np.quantile(exactly.positions[name], (0.002, 0.998))
    for (label, each), colour in zip(three.items(), (FILTER, PATHS, EXACT), strict=True):
        axis.hist(
            each.positions[name].ravel(),
            np.linspace(*edges, 40),
            density=True,
            histtype="step",
            color=colour,
            label=label,
        )
    axis.set(xlabel=name, yticks=[])
axes[0].legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## The pound's volatility
#
# Draws of whole paths are draws of the smoothed volatility, parameters averaged over. In daily
# percent, with bands of 50 and 95 %, over the size of the returns.

# %%
paths = np.exp(gibbs.positions["path"][:, ::4, 1:, 0].reshape(-1, returns.size) / 2)
figure, axis = plt.subplots(figsize=(10, 3.4))
axis.vlines(days[1:], 0, np.abs(returns), color="#999999", lw=0.8, label="size of the return")
chains.draw_bands(axis, days[1:], paths, color=PATHS, label="volatility given all days")
axis.set(ylabel="daily (%)", ylim=(0, None))
axis.legend(ncols=2)
figure.tight_layout()

middle = np.median(paths, axis=0)
calm, wild = int(middle.argmin()), int(middle.argmax())
for name, day in (("calmest", calm), ("wildest", wild)):
    low, high = np.quantile(paths[:, day], (0.025, 0.975))
    print(f"{name}: {days[1 + day]}, {middle[day]:.2f} % a day, 95 % in [{low:.2f}, {high:.2f}]")

# %% [markdown]
# The posterior leaves open whether volatility is slow and smooth (large $\phi$, small $s$) or
# quick and rough: the sizes of these returns hardly remember the day before, as the first cell
# shows, and a prior that favours a long memory is not contradicted but not confirmed. It matters:
# under a wider prior of $\phi$ the chains mixed worse and $\phi$ came out lower, and the prior
# here was chosen after that was seen.

# %%
figure, axis = plt.subplots(figsize=(4.6, 3.4))
axis.scatter(*(np.ravel(smoothed.positions[p][:, ::4]) for p in ("phi", "s")), s=3, color=PATHS)
axis.plot(phi, s, "x", color=EXACT, ms=9, mew=2, label="where section 1 filtered")
axis.set(xlabel="phi", ylabel="s")
axis.legend(fontsize=8)
figure.tight_layout()
