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
# # Any prior at run time
#
# A sensor reads zero plus noise of unknown variance. What we believe of it differs from sensor to
# sensor: a data sheet, a drawer of old calibrations, a colleague's guess. A network that was
# trained for one prior answers for one prior; this one takes the prior with every call.
#
# 1. a network, for a family of priors;
# 2. five priors, as they come: distributions, samples, a formula;
# 3. one call each, and how far it is from the exact posterior;
# 4. the posterior is the next prior: a jitted loop over readings;
# 5. a prior that is far from the family, told and mended.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from IPython.display import display

from bayesinf import trust
from bayesinf.distributions import GaussianMixture
from bayesinf.reproduce import line
from bayesinf.transformers_gmm import Basis, prior

plt.rcParams["figure.dpi"] = 80
OURS, EXACT = "#0072B2", "#D55E00"
POSITIVE = dist.constraints.positive

# %% [markdown]
# ## 1. A network
#
# It is trained on mixtures around the model's own prior, in $u = \log \sigma^2$, where they have
# all of the line.


# %%
def sensor(z=None):
    variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
    numpyro.sample("z", dist.Normal(0.0, jnp.sqrt(variance)), obs=z)


amortized = trust.amortize(
    jax.random.key(0), sensor, ["z"], num_components=5, num_chunks=30, progress=False
)
print(amortized.report)

# %% [markdown]
# ## 2. Five priors
#
# `prior.from_numpyro`, `from_samples` and `from_log_density` give a mixture on the unconstrained
# coordinate and say how far it is from what came, in nats. The space comes along, so that what is
# made of the mixture can be read as a variance again.

# %%
keys = iter(jax.random.split(jax.random.key(1), 10))
drawer = np.random.default_rng(0).gamma(6.0, 0.25, 4_000)  # variances of sensors measured before


def guess(variance):
    """A colleague's: the standard deviation is about 1, give or take a half."""
    sd = jnp.sqrt(variance)
    return -2 * (sd - 1) ** 2 - jnp.log(sd)


spread = GaussianMixture(
    jnp.full(5, -jnp.log(5.0)), jnp.linspace(-4, 2, 5)[:, None], jnp.ones((5, 1, 1))
)
priors = {
    "inverse gamma": prior.from_numpyro(next(keys), dist.InverseGamma(3.0, 2.0), 5),
    "log-normal": prior.from_numpyro(next(keys), dist.LogNormal(0.0, 0.7), 1),
    "gamma": prior.from_numpyro(next(keys), dist.Gamma(3.0, 2.0), 5),
    "a drawer of samples": prior.from_samples(next(keys), drawer, 5, support=POSITIVE),
    "a formula": prior.from_log_density(next(keys), guess, spread, POSITIVE, ()),
}
for name, each in priors.items():
    variance = each.constrain(each.mixture)
    low, high = variance.quantile(0.05), variance.quantile(0.95)
    print(
        f"{name:20} fit within {max(float(each.info.kl), 0):.4f} nats, "
        f"mean {variance.mean():.2f}, 90 % in {low:.2f} to {high:.2f}"
    )

# %% [markdown]
# ## 3. One call each
#
# On the line quadrature is exact, so we can see what is lost. A prior of one component is
# answered with one, which cannot be skew; hand it over in five where that counts.


# %%
def log_target(mixture, readings, u):
    """The log of prior times likelihood, for any number of readings."""
    log_likelihoods = dist.Normal(0.0, jnp.exp(0.5 * u)).log_prob(readings)
    return mixture.log_prob(u[None]) + jnp.sum(log_likelihoods)


@jax.jit
def quadrature(mixture, readings):
    """The exact posterior on nodes."""
    basis = Basis(mixture.mean(), mixture.chol())
    return line.on_nodes(partial(log_target, mixture, readings), basis, -12.0, 12.0, 2_000)


@jax.jit
def update(mixture, z):
    return amortized.posterior(mixture, {"z": z})


reading = jnp.array(2.5)
figure, axes = plt.subplots(1, len(priors), figsize=(15, 2.8), sharey=True, layout="constrained")
grid = jnp.linspace(0.02, 8, 400)
for axis, (name, each) in zip(axes, priors.items(), strict=True):
    posterior = update(each.mixture, reading)
    exact = quadrature(each.mixture, reading[None])
    kl = exact.kl(line.mixture_log_prob(posterior, exact.nodes))
    before, after = each.constrain(each.mixture), each.constrain(posterior)
    axis.plot(grid, jnp.exp(before.log_prob(grid)), color="0.6", label="prior")
    axis.plot(grid, jnp.exp(after.log_prob(grid)), color=OURS, label="network")
    true = jnp.exp(jnp.interp(jnp.log(grid), exact.nodes, exact.log_prob)) / grid
    axis.plot(grid, true, ":", color=EXACT, label="exact")
    axis.set(title=f"{name}\nKL {kl:.1e} nats", xlabel="variance")
    true_mean = exact.expect(jnp.exp(exact.nodes))
    print(f"{name:20} mean {after.mean():.3f}, exactly {true_mean:.3f}")
axes[0].legend(frameon=False)
display(figure)
plt.close(figure)

# %% [markdown]
# ## 4. The posterior is the next prior
#
# The answer is a mixture as the prior was, so the network runs in a loop, compiled once. Thirty
# readings of a sensor whose variance is 2; what one update leaves, the next ones build on.

# %%
NUMS = (1, 2, 3, 5, 10, 20, 30)
readings = jnp.sqrt(2.0) * jax.random.normal(jax.random.key(3), (30,))


@jax.jit
def loop(mixture, readings):
    def step(belief, z):
        belief = update(belief, z)
        return belief, belief

    return jax.lax.scan(step, mixture, readings)[1]


figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for (name, each), color in zip(
    priors.items(), ("#E69F00", OURS, "#009E73", "#CC79A7", EXACT), strict=True
):
    beliefs = loop(each.mixture, readings)
    gaps = []
    for num in NUMS:
        exact = quadrature(each.mixture, readings[:num])
        belief = jax.tree.map(lambda leaf, num=num: leaf[num - 1], beliefs)
        gaps.append(float(exact.kl(line.mixture_log_prob(belief, exact.nodes))))
    axis.semilogy(NUMS, gaps, "o-", color=color, markersize=3, label=name)
    last = each.constrain(belief)
    print(
        f"{name:20} after 30 readings {last.mean():.2f} +- {jnp.sqrt(last.variance()):.2f}, "
        f"exactly {exact.expect(jnp.exp(exact.nodes)):.2f}; KL {gaps[-1]:.1e}"
    )
axis.set(xlabel="readings so far", ylabel="KL from the exact posterior [nats]")
axis.legend(frameon=False)
display(figure)
plt.close(figure)

# %% [markdown]
# ## 5. A prior far from the family
#
# A sensor that is said to be very quiet, and a reading that says otherwise. The guard, which needs
# no likelihood, flags the prior; `correct` weighs draws of the answer by the model itself, and
# tempers where k-hat says that weights will not do.

# %%
quiet = GaussianMixture(
    jnp.log(jnp.array([0.7, 0.3])), jnp.array([[-9.0], [-6.0]]), 0.5 * jnp.ones((2, 1, 1))
)
for name, each, z in (
    ("the inverse gamma", priors["inverse gamma"].mixture, 2.5),
    ("the quiet sensor", quiet, 0.5),
):
    data = {"z": jnp.array(z)}
    look = amortized.guard(each, data)
    particles, info = amortized.correct(jax.random.key(4), each, data, num_particles=4_000)
    exact = quadrature(each, jnp.array([z]))
    weights = jnp.exp(particles.log_weights - jax.nn.logsumexp(particles.log_weights))
    mean = weights @ particles.values[:, 0]
    print(
        f"{name:18} flagged: {bool(look.flagged)}, k-hat {info.k_hat:.2f}, tempered: "
        f"{bool(info.annealed)}\n{'':18} log evidence {info.log_evidence:.3f} (exactly "
        f"{exact.log_evidence:.3f}), mean of u {mean:.3f} ({exact.expect(exact.nodes):.3f})"
    )
