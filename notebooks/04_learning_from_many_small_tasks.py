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
# # Learning from many small tasks
#
# Each task has between one and ten noisy points, too few to learn from alone. But tasks are alike:
# with a good network, the weights of every task are a draw of one Gaussian, of which the mean and
# the covariance can be learned. `meta_niw` keeps a normal-inverse-Wishart posterior over both, so
# that it knows how much it knows:
#
# 1. a network from many ragged tasks, by their evidence;
# 2. a stream of tasks, each seen once, in closed form;
# 3. a new task after 1, 3 and 10 points;
# 4. what tasks have in common;
# 5. whether predictions are calibrated;
# 6. how far the closed form is from exact, in nats;
# 7. a task that is taken out again;
# 8. tasks of two kinds;
# 9. what was learned as a prior elsewhere.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from scipy.special import logsumexp, ndtr
from scipy.stats import invgamma, norm, t

from bayesinf import meta_niw, smc
from bayesinf.distributions import NormalInverseWishart, full
from bayesinf.meta_niw import mixture, task_prior
from bayesinf.plots import meta
from bayesinf.plots.chains import quantiles
from bayesinf.programs import from_numpyro

jax.config.update("jax_enable_x64", True)
# Nearly all here takes longer to compile than to run.
jax.config.update("jax_disable_most_optimizations", True)
plt.rcParams["figure.dpi"] = 80
INK, OURS, OTHER, THIRD = "#222222", "#0072B2", "#D55E00", "#009E73"
EXACT = meta_niw.Laplace(1)  # one step is exact where outputs are linear in what adapts

# %% [markdown]
# ## 1. Many small tasks
#
# A task is a sine of its own amplitude and phase. The learner is not told; it sees points.
# `episode` is the door for a task's data, `batch` pads tasks to one length with a mask.

# %%
NOISE, REACH = 0.3, 4.0


def sine(amplitude, phase, x):
    return amplitude * np.sin(x + phase)


def sines(seed, num, rows=None):
    """Returns tasks of `rows` points each, or of 1 to 10."""
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(num):
        curve = rng.uniform(0.5, 3), rng.uniform(0, np.pi)
        x = rng.uniform(-REACH, REACH, rows or rng.integers(1, 11))
        tasks.append(meta_niw.episode(x, sine(*curve, x) + NOISE * rng.normal(size=x.size)))
    return jax.tree.map(np.asarray, meta_niw.batch(tasks))


past, stream, held = sines(0, 1000), sines(1, 256), sines(2, 200, rows=20)
sizes = past.mask.sum(axis=1)
print(f"{len(sizes)} tasks, {int(sizes.sum())} points in all, padded to {past.x.shape}")

figure, axes = plt.subplots(2, 6, figsize=(10, 3), sharex=True, sharey=True)
for axis, x, y, mask in zip(axes.flat, *past, strict=False):
    axis.plot(x[mask], y[mask], "o", color=INK, ms=4)
figure.tight_layout()

# %% [markdown]
# A tanh network makes 24 features of a point; the 24 weights of its last layer are what adapts.
# `train` learns the features, the noise, and the mean and covariance of the weights by gradients
# of the tasks' log evidence, in which the weights are integrated out.

# %%
WIDTH = 16


def features(params, x):
    for weights, bias in params["layers"]:
        x = jnp.tanh((x[:, None] if x.ndim == 1 else x) @ weights + bias)
    return x


keys = jax.random.split(jax.random.key(0), 3)
params = {
    "layers": [
        (jax.random.normal(keys[0], (1, 32)), jax.random.normal(keys[1], (32,))),
        (jax.random.normal(keys[2], (32, WIDTH)) / np.sqrt(32), jnp.zeros(WIDTH)),
    ],
    "head": jnp.zeros(WIDTH),
}
WEAK = NormalInverseWishart(np.zeros(WIDTH), 0.1, WIDTH + 2, full((WIDTH + 2) * np.eye(WIDTH)))
untrained = meta_niw.init(
    WEAK,
    lambda params, rows: rows @ params["head"],
    params,
    meta_niw.likelihoods.Gaussian(1.0),
    adapt={"layers": False, "head": True},
    features=features,
)
loss = partial(meta_niw.evidence_loss, local=EXACT)
trained, history = meta_niw.train(
    jax.random.key(1),
    untrained,
    lambda key: jax.tree.map(jnp.asarray, past),
    optax.adam(optax.cosine_decay_schedule(1e-2, 800)),
    loss,
    num_chunks=8,
    steps_per_chunk=100,
    batch_size=50,
    progress=False,
)
print(f"noise: learned {float(trained.model.likelihood.scale):.3f}, true {NOISE}")

figure, axis = plt.subplots(figsize=(6, 2.4))
axis.plot(100 * np.arange(1, 9), -history.loss, "o-", color=OURS, ms=3)
axis.set(xlabel="steps", ylabel="log evidence a task")
figure.tight_layout()

# %% [markdown]
# ## 2. A stream
#
# Now forget all but the features and the noise. From a weak prior over mean and covariance the
# learner sees new tasks once each. An update is a closed form; nothing is tuned, nothing stored.
#
# The score is the log density of points of 200 other tasks, given three of their points. Nothing
# can beat the tasks' own law on average, that knows them to be sines; it comes by quadrature.

# %%
rows = features(trained.model.params(jnp.zeros(WIDTH)), past.x[past.mask])
variance = past.y[past.mask].var() / np.square(rows).sum(axis=1).mean()
guess = NormalInverseWishart(
    np.zeros(WIDTH), 0.1, WIDTH + 2, full((WIDTH + 2) * variance * np.eye(WIDTH))
)
weak = trained._replace(prior=guess, posterior=guess)
support, query = meta_niw.split(jax.random.key(2), held, 3)


def log_density(state, prior=task_prior.student_t):
    posterior = meta_niw.adapt(state, support, prior, EXACT)
    return float(meta_niw.predict(posterior, query.x).log_prob(query.y).mean())


def best_log_density(support, query):
    amplitude, phase = np.meshgrid(np.linspace(0.5, 3, 30), np.linspace(0, np.pi, 30))
    curves = amplitude.reshape(-1, 1, 1), phase.reshape(-1, 1, 1)
    given, asked = (norm.logpdf(e.y, sine(*curves, e.x), NOISE) for e in (support, query))
    log_weights = given.sum(axis=2, keepdims=True)
    log_weights -= logsumexp(log_weights, axis=0)
    return logsumexp(log_weights + asked, axis=0).mean()


state, states = weak, {0: weak}
for num in range(1, 257):
    task = jax.tree.map(lambda rows, num=num: rows[num - 1], stream)
    state, _ = meta_niw.update(state, task, local=EXACT)
    if num in 2 ** np.arange(9):
        states[num] = state

scores = {num: log_density(each) for num, each in states.items()}
best = best_log_density(support, query)
for num in (0, 1, 8, 64, 256):
    print(f"{num:3} tasks: {scores[num]:7.3f} nats a point")
print(f"the true law: {best:6.3f}")
del scores[0]
curve = meta.Curve(np.array(list(scores)), np.array(list(scores.values())))
meta.stream_figure({"streamed": curve}, {"true law": best}, "log density a point")

# %% [markdown]
# ## 3. A new task
#
# `adapt` is the same closed form for a task's own points, and `predict` mixes eight Gaussians that
# make up a Student-t: what is not known about the family is in the bands too. Above after eight
# tasks, below after all; dashed the true curve.

# %%
line = np.linspace(-REACH, REACH, 100)
rng = np.random.default_rng(3)
truth, spots = (2.2, 2.0), rng.uniform(-REACH, REACH, 10)
values = sine(*truth, spots) + NOISE * rng.normal(size=10)


def panel(state, num):
    here = np.arange(10) < num
    posterior = meta_niw.adapt(state, meta_niw.episode(spots, values, here), local=EXACT)
    prediction = meta_niw.predict(posterior, line)
    draws = jax.vmap(prediction.sample)(jax.random.split(jax.random.key(4), 1000))
    return meta.Shots(spots[:num], values[:num], np.asarray(draws[..., 0]))


meta.shots_figure(
    line,
    {f"{num} tasks": [panel(states[num], shots) for shots in (1, 3, 10)] for num in (8, 256)},
    sine(*truth, line),
)

# %% [markdown]
# ## 4. What tasks have in common
#
# Weights of a network mean little. The covariance that they give to a curve's values at a few
# inputs does, and the sines have one to compare with.

# %%
points = np.linspace(-REACH, REACH, 9)
rows = np.asarray(features(trained.model.params(jnp.zeros(WIDTH)), points))
learned = rows @ np.asarray(state.posterior.mean_covariance().dense()) @ rows.T
rng = np.random.default_rng(5)
amplitude, phase = rng.uniform(0.5, 3, (20_000, 1)), rng.uniform(0, np.pi, (20_000, 1))
true = np.cov(sine(amplitude, phase, points).T)
names = [f"f({x:.0f})" for x in points]
display(meta.covariance_figure(learned, names, "learned from 256 small tasks"))
meta.covariance_figure(true, names, "true")

# %% [markdown]
# ## 5. Calibration
#
# How often is a point in the interval that says 90 %? After 16 tasks the mean and covariance are
# far from known. Four ways to meet a new task:
#
# - the Student-t, all uncertainty in it;
# - the most likely mean and covariance, plugged in: by EM, and the joint mode of the posterior;
# - no pooling: each task by itself under a vague prior, with the learned features.

# %%
few = jax.tree.map(lambda rows: rows[:16], stream)
fitted = meta_niw.em(weak, few, 100, local=EXACT)
ways = {
    "Student-t": task_prior.student_t,
    "plug-in, EM": task_prior.point(fitted.loc, fitted.cov),
    "plug-in, mode": task_prior.mode,
    "no pooling": task_prior.point(jnp.zeros(WIDTH), full(100 * np.eye(WIDTH))),
}


def ranks(state, prior):
    prediction = meta_niw.predict(meta_niw.adapt(state, support, prior, EXACT), query.x)
    sd = np.sqrt(prediction.output_covs[..., 0, 0] + prediction.likelihood.scale**2)
    below = ndtr((query.y[..., None] - prediction.output_means[..., 0]) / sd)
    return np.sum(np.exp(prediction.log_weights) * below, axis=-1).ravel()


found = {name: ranks(states[16], prior) for name, prior in ways.items()}
for name, rank in found.items():
    inside = np.mean(np.abs(2 * rank - 1) < 0.9)
    print(
        f"{name:14} 90 % intervals hold {100 * inside:4.1f} %, "
        f"log density {log_density(states[16], ways[name]):8.3f}"
    )
meta.coverage_figure(found)

# %% [markdown]
# EM takes what it found for certain: its intervals hold too few points. A task by itself knows too
# little, and its intervals are wide. The Student-t holds slightly more than it says: after 16 tasks
# the guess that all weights vary alike still counts. The mode is narrower by construction and holds
# slightly less; in log density the two are close.
#
# ## 6. How far from exact?
#
# One approximation is in all of this: the posterior is a product of one factor for what tasks share
# and one a task. The bound on the log evidence that it gives is held against the evidence itself,
# from Gibbs sampling, which has no such product. Thirty lines, one to ten points each; the two
# weights are the level and the slope.

# %%
LEVEL, SLOPE = 1.0, -0.5
SPREAD = np.array([[0.6, 0.3], [0.3, 0.3]])


def lines(seed, num, slope=SLOPE):
    """Returns tasks of 1 to 10 points on lines, and their level and slope."""
    rng = np.random.default_rng(seed)
    weights = rng.multivariate_normal([LEVEL, slope], SPREAD, num)
    tasks = []
    for theta in weights:
        x = np.stack([np.ones(10), rng.uniform(-2, 2, 10)], axis=1)[: rng.integers(1, 11)]
        tasks.append(meta_niw.episode(x, x @ theta + NOISE * rng.normal(size=len(x))))
    return jax.tree.map(np.asarray, meta_niw.batch(tasks)), weights


guess = NormalInverseWishart(np.zeros(2), 0.1, 4.0, full(np.eye(2)))
line_learner = meta_niw.init(
    guess, lambda theta, x: x @ theta, jnp.zeros(2), meta_niw.likelihoods.Gaussian(NOISE)
)
thirty, _ = lines(6, 30)
once, _ = meta_niw.update(line_learner, thirty, local=EXACT)
converged, _ = meta_niw.cavi(line_learner, thirty, 50, EXACT)
draws = meta_niw.gibbs(
    jax.random.key(7), line_learner, thirty, num_samples=500, local=EXACT, progress=False
)
evidence = meta_niw.chib(line_learner, thirty, draws, EXACT)
print(f"log evidence {evidence.log_evidence:.3f} +- {evidence.standard_error:.3f} nats")
for name, each in (("one update", once), ("coordinate ascent", converged)):
    bound = float(meta_niw.elbo(each, thirty, EXACT))
    print(f"{name:17}: bound {bound:.3f}, gap {evidence.log_evidence - bound:.3f}")

# %% [markdown]
# One update fits all thirty under the weak prior; coordinate ascent goes on until they are fitted
# under what they say themselves. Where does the gap lie? The posterior of the mean slope and of the
# spread of slopes, by Gibbs (bars) and by the closed form:

# %%
mean_slope = np.ravel(draws.positions["mu"][..., 1])
variance = np.ravel(jax.vmap(jax.vmap(lambda cov: cov.dense()[1, 1]))(draws.positions["cov"]))
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
axes[0].hist(mean_slope, 40, density=True, color="#cccccc")
axes[1].hist(np.sqrt(variance), 40, density=True, color="#cccccc")
slopes, spreads = (np.linspace(*axis.get_xlim(), 200) for axis in axes)
for name, each, colour in (("one update", once, OTHER), ("coordinate ascent", converged, OURS)):
    niw = each.posterior
    freedom, scale = float(niw.df) - 1, float(niw.scale.diagonal()[1])
    sd = np.sqrt(scale / float(niw.strength) / freedom)
    axes[0].plot(slopes, t.pdf(slopes, freedom, niw.loc[1], sd), color=colour, label=name)
    density = 2 * spreads * invgamma.pdf(spreads**2, freedom / 2, scale=scale / 2)
    axes[1].plot(spreads, density, color=colour)
axes[0].set(xlabel="mean slope", yticks=[])
axes[1].set(xlabel="sd of slopes", yticks=[])
axes[0].legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## 7. A task taken out again
#
# A `ledger` remembers what each task added, so that it can be subtracted. One task among the thirty
# was measured upside down and ten times too large:

# %%
book = meta_niw.ledger(line_learner)
for num in range(30):
    book = book.add(num, jax.tree.map(lambda rows, num=num: rows[num], thirty), EXACT)
clean = book.state
x = np.stack([np.ones(5), np.linspace(-2, 2, 5)], axis=1)
book = book.add("broken", meta_niw.episode(x, -10 * (x @ np.array([LEVEL, SLOPE]))), EXACT)
spoiled = book.state
mended = book.remove("broken").state
for name, each in (("clean", clean), ("spoiled", spoiled), ("mended", mended)):
    level, slope = np.sqrt(each.posterior.mean_covariance().diagonal())
    print(
        f"{name:8} sd of levels {level:.3f}, of slopes {slope:.3f}; "
        f"KL from clean {float(each.posterior.kl(clean.posterior)):.1e} nats"
    )

# %% [markdown]
# Had other tasks come after it, they would have been fitted with it in the prior, and would keep a
# trace; steps of `cavi` over those that are left remove that too.
#
# ## 8. Tasks of two kinds
#
# Lines that fall and lines that rise. A mixture of normal-inverse-Wisharts finds them by the bound
# on the evidence; it needs no labels.

# %%
(falling, low), (rising, high) = lines(8, 60, -1.5), lines(9, 30, 2.0)
both = jax.tree.map(lambda *rows: np.concatenate(rows), falling, rising)
alone, single = meta_niw.cavi(line_learner, both, 30, EXACT)
start = mixture.cluster(jax.random.key(10), line_learner, both, 2, local=EXACT)
kinds, double = mixture.cavi(start, both, 30, EXACT)
print(f"bound with one kind {float(single[-1]):.2f} nats, with two {float(double[-1]):.2f}")

# %%
_, info = mixture.update(kinds, both, local=EXACT)
first = np.asarray(info.responsibilities[:, 0])
truth = np.concatenate([low, high])
sure = np.mean(np.maximum(first, 1 - first) > 0.95)
print(f"{100 * sure:.0f} % of tasks are of one kind with more than 95 %")
figure, axis = plt.subplots(figsize=(5.2, 3.2))
dots = axis.scatter(*truth.T, c=first, cmap="coolwarm", vmin=0, vmax=1, s=18)
figure.colorbar(dots, label="probability of the first kind")
axis.set(xlabel="true level", ylabel="true slope")
figure.tight_layout()

# %% [markdown]
# A new task with one point at the centre may be of either kind, and its prediction says so:

# %%
centre = meta_niw.episode(np.array([[1.0, 0.0]]), np.array([LEVEL]))
grid = np.linspace(-7, 9, 300)
edge = jnp.tile(jnp.array([1.0, 2.0]), (300, 1))
figure, axis = plt.subplots(figsize=(6, 2.6))
for name, each, prior, colour in (
    ("one kind", alone, task_prior.student_t, OTHER),
    ("two kinds", kinds, mixture.prior_of(), OURS),
):
    posterior = meta_niw.adapt(each, centre, prior, EXACT)
    density = np.exp(meta_niw.predict(posterior, edge).log_prob(grid))
    axis.plot(grid, density, color=colour, label=name)
axis.set(xlabel="y at x = 2", ylabel="density")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## 9. What was learned, as a prior elsewhere
#
# The law of a new task is a Student-t, with a form in NumPyro: any model may have it as the prior
# of a site. Here the points of a new line have outliers, and the noise is unknown. The same law as
# a Gaussian mixture, `posterior.to_mixture()`, is a prior for the `DistributionTransformer`.

# %%
x = np.stack([np.ones(4), np.array([-1.5, -0.5, 0.5, 1.5])], axis=1)
NEW = np.array([1.4, 0.0])  # its level and slope
y = x @ NEW
y[3] += 6  # an outlier


def robust_line(prior):
    theta = numpyro.sample("theta", prior)
    noise = numpyro.sample("noise", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.StudentT(2.0, x @ theta, noise), obs=y)


program = from_numpyro(robust_line, converged.posterior.marginal().to_numpyro())


@jax.jit
def weighted_slopes(key):
    particles = smc.importance(key, program, 20_000)
    slopes = jax.vmap(program.constrain)(particles.values)["theta"][:, 1:]
    return slopes, particles.weights[:, None], particles.ess()


slopes, weights, ess = map(np.asarray, weighted_slopes(jax.random.key(11)))
print(f"effective draws: {ess:.0f} of {len(slopes)}")
plain = meta_niw.adapt(converged, meta_niw.episode(x, y), local=EXACT)
print(f"slope: true {NEW[1]:.2f}, known Gaussian noise {float(plain.mean()[1]):.2f}")
low, middle, high = (quantiles(slopes, weights, p)[0] for p in (0.025, 0.5, 0.975))
print(f"with outliers in the model {middle:.2f}, 95 % in [{low:.2f}, {high:.2f}]")
mix = converged.posterior.to_mixture()
print(f"as a mixture: {mix.log_weights.size} Gaussians over {mix.means.shape[1]} weights")
