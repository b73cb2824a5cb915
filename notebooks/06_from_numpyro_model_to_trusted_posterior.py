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
# # From a NumPyro model to a posterior you can trust
#
# A toxicology laboratory doses animals and counts how many die. Every new compound is the same
# small logistic regression with other data, and often another prior. Here one call turns the model
# into a network that answers at once, and everything after it asks whether to believe the answer.
#
# 1. the model, trained in one call;
# 2. its certificate: is it calibrated?
# 3. an experiment, and the same experiment under another prior;
# 4. the answer corrected by the model, and held against NUTS;
# 5. five hundred compounds in one call, each with a flag;
# 6. what the guard says to data unlike any it was trained on.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from IPython.display import display

from bayesinf import mcmc, trust
from bayesinf.distributions import gaussian
from bayesinf.plots.trust import ranks_figure

plt.rcParams["figure.dpi"] = 80
INK, OURS, EXACT = "#222222", "#0072B2", "#D55E00"

# %% [markdown]
# ## 1. The model
#
# Log doses and group sizes are those of the classical bioassay of Racine et al. (1986).

# %%
LOG_DOSE = jnp.array([-0.86, -0.30, -0.05, 0.73])
ANIMALS = 5


def bioassay(deaths=None):
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.LogNormal(1.5, 1.0))
    with numpyro.plate("groups", 4):
        logits = level + slope * LOG_DOSE
        numpyro.sample("deaths", dist.Binomial(ANIMALS, logits=logits), obs=deaths)


begin = time.perf_counter()
amortized = trust.amortize(
    jax.random.key(0), bioassay, ["deaths"], num_components=3, num_chunks=30, progress=False
)
print(f"trained and checked in {time.perf_counter() - begin:.0f} s\n")
print(amortized.report)

# %% [markdown]
# ## 2. The certificate
#
# Over priors of the family and data of the model, the truth's rank among draws of the posterior is
# uniform if the posterior is right. The band is what uniform ranks stay in.

# %%
figure = ranks_figure(amortized.calibration)
display(figure)
plt.close(figure)

# %% [markdown]
# ## 3. One experiment, two priors
#
# The network was told a prior along with the data, so another one is another argument. The second
# is a toxicologist's who has seen this family of compounds before.

# %%
data = {"deaths": jnp.array([0, 1, 3, 5])}
informed = gaussian(jnp.array([1.0, 2.0]), jnp.diag(jnp.array([0.25, 0.1])))
answers = {
    "the model's prior": amortized.posterior(None, data),
    "an informed one": amortized.posterior(informed, data),
}
for name, answer in answers.items():
    sd = jnp.sqrt(jnp.diagonal(answer.covariance()))
    print(
        f"{name:18} level {answer.mean()[0]:.2f} +- {sd[0]:.2f}, "
        f"log slope {answer.mean()[1]:.2f} +- {sd[1]:.2f}"
    )

# %% [markdown]
# ## 4. Corrected, and held against NUTS
#
# `correct` weighs draws of the answer by the model's own density. k-hat below its bound says that
# the weights can be trusted, and then averages are exact as draws grow.

# %%
particles, info = amortized.correct(jax.random.key(1), None, data, num_particles=4_000)
print(f"k-hat {info.k_hat:.2f}, effective draws {info.ess:.0f} of 4000, trusted: {info.trusted}")
program = amortized.program(None, data)
draws = mcmc.sample(
    jax.random.key(2), program, mcmc.NUTS(), num_warmup=500, num_samples=1_000, progress=False
)
corrected = jax.vmap(program.constrain)(particles.values)
weights = np.exp(np.asarray(particles.log_weights))
fast = jax.vmap(program.constrain)(answers["the model's prior"].sample(jax.random.key(3), (4_000,)))
weights = weights / weights.sum()
for site in ("level", "slope"):
    print(
        f"mean {site}: network {fast[site].mean():.2f}, "
        f"corrected {weights @ np.asarray(corrected[site]):.2f}, "
        f"NUTS {draws.positions[site].mean():.2f}"
    )

figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
nuts = draws.positions
axis.plot(
    nuts["level"].ravel(), nuts["slope"].ravel(), ".", color=EXACT, markersize=1, label="NUTS"
)
axis.plot(fast["level"][:800], fast["slope"][:800], ".", color=OURS, markersize=2, label="network")
axis.set(xlabel="level", ylabel="slope", xlim=(-3, 6), ylim=(0, 40))
axis.legend(frameon=False, markerscale=5)
display(figure)
plt.close(figure)

# %% [markdown]
# ## 5. Five hundred compounds
#
# Simulated here; each has its data, and each answer its own k-hat and flag. Those that the weights
# do not serve are tempered from the network's answer to the model's posterior, the others are not.

# %%
NUM = 500
truth = jax.vmap(amortized.prior.sample)(jax.random.split(jax.random.key(4), NUM))
chances = jax.vmap(lambda u: 1 / (1 + jnp.exp(-u[0] - jnp.exp(u[1]) * LOG_DOSE)))(truth)
deaths = jax.random.binomial(jax.random.key(5), ANIMALS, chances).astype(int)
many = {"deaths": deaths}


@jax.jit
@jax.vmap
def ask(each):
    return amortized.posterior(None, each)


posteriors = jax.block_until_ready(ask(many))
begin = time.perf_counter()
jax.block_until_ready(ask(many))
seconds = time.perf_counter() - begin
found, infos = trust.correct_many(
    jax.random.key(6), posteriors, lambda each: amortized.program(None, each), many
)
inside = np.mean(np.asarray(infos.k_hat) < 0.7)
print(
    f"all posteriors in {1e3 * seconds:.0f} ms; k-hat below .7 for {inside:.1%}; "
    f"{int(infos.annealed.sum())} tempered; {int(infos.trusted.sum())} trusted"
)

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.hist(np.asarray(infos.k_hat), bins=60, color=OURS)
axis.axvline(0.7, color=EXACT, linestyle=":")
axis.set(xlabel="k-hat", ylabel="compounds")
display(figure)
plt.close(figure)

# %% [markdown]
# ## 6. Unlike anything it was trained on
#
# The guard needs no likelihood. It compares a prior, or data, with those of the training.

# %%
strange = {"deaths": jnp.array([5, 0, 5, 0])}
far = gaussian(jnp.array([12.0, 1.5]), 0.1 * jnp.eye(2))
for name, prior, each in (
    ("the bioassay", None, data),
    ("the informed prior", informed, data),
    ("a prior far away", far, data),
    ("more doses, fewer deaths", None, strange),
):
    look = amortized.guard(prior, each)
    print(f"{name:26} flagged: {bool(look.flagged)}")
