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
# # Sensor fusion with a Distribution Transformer
#
# A filter repeats two steps: the state moves, then it is read. Bayes' rule for the second step
# has no closed form once a sensor is not linear and Gaussian. A *Distribution Transformer* is a
# network that does it in one pass: it takes a Gaussian mixture (the prior) and readings, and
# returns a Gaussian mixture (the posterior). The posterior is the next prior, so it runs in a
# loop.
#
# What this notebook shows:
#
# 1. one update, against the exact posterior;
# 2. what is exact whatever the network's weights are;
# 3. a real robot that does not know where it is, and finds out;
# 4. how honest the filter is about its own error.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

import bayesinf as bi
from bayesinf.fusion import methods, range_bearing, robot
from bayesinf.fusion.log import first_ranges, truth_at
from bayesinf.fusion.read import read_log
from bayesinf.programs import Dynamics, StateSpace, reading

INK, NETWORK, EXACT = "#222222", "#0072B2", "#D55E00"

# %% [markdown]
# ## 1. One update
#
# The network `range-bearing-4d` was trained on the paper's tracking problem: a target with
# position and velocity in the plane, a range finder with short echoes and clutter, and a bearing
# with wrapped noise. Here is one prior, one pair of readings, and what comes back. The dots are
# the exact posterior, by a million draws of the prior weighted by the likelihood.

# %%
dt = bi.transformers_gmm.load("range-bearing-4d")
model = range_bearing.model()
prior = range_bearing.initial(range_bearing.NUM_COMPONENTS)
readings = {"range": reading([2.2]), "bearing": reading([0.2])}
posterior = dt(model, prior, readings)

draws = prior.sample(jax.random.key(0), (1_000_000,))
log_likelihood = jax.jit(jax.vmap(lambda x: model.log_likelihood(x, readings)))(draws)
weights = np.asarray(jax.nn.softmax(log_likelihood), float)
exact = draws[np.random.default_rng(0).choice(len(weights), 2_000, p=weights / weights.sum())]

grid = np.linspace(-1.5, 3.5, 160)
points = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1))


def show(axis, mixture, title, colour):
    density = np.exp(mixture.marginal([0, 2]).log_prob(points))
    axis.contour(grid, grid, density, 6, colors=colour, linewidths=1)
    axis.set(title=title, xlabel="x (km)", aspect="equal")


figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
linearised, _ = bi.kalman.extended.update(model, prior, readings)
for axis, mixture, title, colour in zip(
    axes,
    (prior, linearised, posterior),
    ("prior", "linearised update", "Distribution Transformer"),
    (INK, INK, NETWORK),
    strict=True,
):
    axis.scatter(*np.asarray(exact[:, [0, 2]]).T, s=2, color=EXACT, alpha=0.3, lw=0)
    show(axis, mixture, title, colour)
    axis.plot(0, 0, "k+", ms=9)
axes[0].set_ylabel("y (km)")
figure.tight_layout()

# %% [markdown]
# In numbers: the mean log density of the exact posterior's draws. The higher, the smaller the KL
# divergence from the exact posterior.

# %%
for name, mixture in (("linearised", linearised), ("network", posterior)):
    print(f"{name:12}{float(jnp.mean(mixture.log_prob(exact))):8.3f} nats")

# %% [markdown]
# ## 2. Exact where it can be
#
# The network corrects a linearised update, and its corrections are multiplied by how far the
# readings depart from a quadratic. So a linear-Gaussian sensor gets the Kalman update, with *any*
# weights, and a missing reading gives the prior back. A network of random weights, at a sensor it
# never saw:

# %%
random = bi.transformers_gmm.DistributionTransformer(jax.random.key(7), 4, ("range", "bearing"))
scale = StateSpace(
    prior,
    Dynamics(lambda x, noise, elapsed, u: x, 0),
    {"scale": lambda x, context: dist.Normal(2 * x[0] - x[3], 0.3)},
)
weighed = {"scale": reading([1.7, np.nan])}
ours = random(scale, prior, weighed)
kalman, _ = bi.kalman.kalman.update(scale, prior, weighed)
print("largest difference from Kalman:", float(jnp.max(jnp.abs(ours.means - kalman.means))))
nothing = random(scale, prior, {"scale": reading([np.nan])})
print("largest difference from the prior:", float(jnp.max(jnp.abs(nothing.means - prior.means))))

# %% [markdown]
# ## 3. A robot that does not know where it is
#
# Plaza1 is a real log: a robot mower with odometry and ultra-wideband ranges to four beacons. The
# ranges are about 7 % too long and nobody tells the filter, so offset, scale and noise level are
# part of the state. The filter starts anywhere in the beacons' area, at any heading. The network
# was trained on simulated logs only.

# %%
log = first_ranges(read_log(None), 400)
start = robot.unknown_start(log)
network = bi.transformers_gmm.load("robot")
filter_ = bi.kalman.Method(bi.kalman.gaussian_sum().predict, network.update)
robot_model = robot.model(start)
frames = robot.frames(log)
step = eqx.filter_jit(bi.kalman.step)

belief, pictures = start, {}
for i in range(150):
    frame = jax.tree.map(lambda leaf, i=i: leaf[i], frames)
    belief, info = step(filter_, robot_model, belief, frame)
    if i in (0, 2, 6, 149):
        pictures[i] = belief
    if i == 23:
        belief = bi.distributions.reduce(belief, 48, robot_model.angles)

x, y = (
    np.linspace(log.beacon_xy[:, a].min() - 20, log.beacon_xy[:, a].max() + 20, 140) for a in (0, 1)
)
plane = jnp.asarray(np.stack(np.meshgrid(x, y), -1))
truth, heading = truth_at(log, log.range_t)
figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True)
for axis, (i, belief) in zip(axes, pictures.items(), strict=True):
    place = belief.marginal([0, 1])
    axis.contourf(x, y, np.exp(place.log_prob(plane)) ** 0.5, 12, cmap="Blues")
    live = np.exp(belief.log_weights) > 0.01
    means = np.asarray(belief.means)[live]
    axis.quiver(*means[:, :2].T, np.cos(means[:, 2]), np.sin(means[:, 2]), color=NETWORK, scale=12)
    axis.plot(*log.beacon_xy.T, "k^", ms=6)
    axis.plot(*truth[i], "o", mfc="none", mec=EXACT, ms=10, mew=2)
    axis.set(title=f"after {i + 1} ranges", xlabel="x (m)", aspect="equal")
    axis.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
axes[0].set_ylabel("y (m)")
figure.tight_layout()

# %% [markdown]
# The first ranges mislead it: the network was not trained on starts this wide, and puts too much
# weight on one place of the ring that a single range leaves. After a few more the place is found,
# while the robot still stands; the headings (arrows) stay open until it has driven far enough to
# tell them apart.
#
# ## 4. How honest is it?
#
# The same log from a known start, with an extended Kalman filter whose noise is fitted by its own
# innovation likelihood. Range errors wander slowly and differ between beacons, so a filter that
# believes its model grows over-confident: the normalised squared error (NEES) of an honest filter
# is 2 on average. The network learned from simulated logs how much to trust a range.

# %%
pose = np.array([*truth_at(log, np.array([log.start_t]))[0][0], log.truth_heading[0]])
setting = methods.setting(log, pose)
tracks = {"network": methods.distribution_transformer(setting), "EKF": methods.ekf(setting)[0]}
figure, axis = plt.subplots(figsize=(9, 3.4))
seconds = log.range_t - log.start_t
for (name, track), colour in zip(tracks.items(), (NETWORK, INK), strict=True):
    weights = np.exp(track.log_weights)
    mean = np.einsum("tk,tki->ti", weights, track.means)
    gaps = track.means - mean[:, None]
    covariance = np.einsum("tk,tkij,tklj->til", weights, track.chols, track.chols)
    covariance += np.einsum("tk,tki,tkj->tij", weights, gaps, gaps)
    error = truth - mean
    nees = np.einsum("ti,tij,tj->t", error, np.linalg.inv(covariance), error)
    late = seconds > 60
    rmse = np.sqrt(np.mean(np.sum(error[late] ** 2, axis=1)))
    print(f"{name:9} RMSE {rmse:.3f} m   NEES {nees[late].mean():.2f}")
    axis.plot(seconds, np.linalg.norm(error, axis=1), color=colour, lw=1, label=f"{name}: error")
    claim = np.sqrt(np.trace(covariance, axis1=1, axis2=2))
    axis.plot(seconds, claim, color=colour, lw=1, ls="--", label=f"{name}: what it claims")
axis.set(xlabel="time (s)", ylabel="position error (m)", yscale="log")
axis.legend(fontsize=8, ncols=2)
figure.tight_layout()

# %% [markdown]
# The whole log, all methods and the table: `./run bayesinf fuse`, and with `--start unknown` from
# nowhere. Your own log works the same way: see `bayesinf fuse --help`.
