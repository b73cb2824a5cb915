"""Writes docs/laws.md: every public block with the construct that it comes from, law and check.

Run: ./run python docs/make_laws.py
"""

import inspect
from pathlib import Path

import jax

from bayesinf import laws, mcmc, smc
from bayesinf.types import Law, law_of

PAGE = Path(__file__).with_name("laws.md")
HEAD = """# Names, constructs, laws, checks

The representations and transformations of "Denotational validation of higher-order Bayesian
inference" (Ścibior et al., POPL 2018; the paper), as this package has them. m(r) is the
unnormalised measure that a representation r stands for; a transformation T is valid if it keeps it.

| here | in the paper | stands for |
|---|---|---|
| `programs.Program`, `from_numpyro` | a program in any representation | prior(dx) x likelihood(x) |
| `programs.Target` | a score without a sampler | exp(sum of its log terms) dx |
| `programs.Tempered`, `ByDatum` | - | targets by temperature, by number of data |
| `programs.Trace` | Tr | one run: values and log densities by site |
| `programs.FeynmanKac` | Sus, a suspended program | M_0 prod M_t G_t |
| `distributions.Particles` | Pop | E[Z sum_i W_i delta(x_i)] |
| `distributions.Enumerated` | Enum | sum_k w_k delta(x_k) |

Three algorithms of the paper, as compositions:

```python
# SMC: spawn, then for each suspension resample, advance, score
particles = smc.spawn(key, program.sample, n)
for key, input in zip(keys, fk.inputs):
    particles = smc.resample(key, particles, smc.systematic)
    moved = smc.propagate(key, particles, lambda key, x: fk.step(key, x, input))
    particles = smc.reweight(moved, fk.log_potential(particles.values, moved.values, input), t)

# trace Metropolis-Hastings: a site, a proposal, the full ratio
kernel = mcmc.trace_mh({"rain": proposal, "sprinkler": mcmc.DiscreteGibbs(values)})

# resample-move SMC: score, resample, move, all under one target
particles = smc.reweight(particles, log_increment, level)
particles = smc.resample(key, particles, smc.systematic)
particles, info = smc.move(key, kernel, path, particles)
```
(In a program of yours each call has a key of its own.)

The laws, and what an exact pass means: for a fixed structure of branches the error is an analytic
function of the entries of the tables, so a random table refutes a wrong formula almost surely. Not
covered are Jacobians, gradients and normal noise, for which the statistical form stands, and
underflow, large populations and mixing, for which no law speaks.

"""
# What a block is in the paper; the others it does not have.
PAPER = {
    "mcmc.Metropolis": "mhStep on a density",
    "mcmc.Involutive": "Metropolis-Hastings-Green",
    "mcmc.trace_mh": "MHT, trace Metropolis-Hastings",
    "mcmc.cycle": "composition of valid transformations",
    "mcmc.repeat": "composition of valid transformations",
    "mcmc.PseudoMarginal": "mhStep over an inner measure (as PMMH)",
    "smc.spawn": "spawn n",
    "smc.importance": "hoist of the sampler, with score",
    "smc.reweight": "score",
    "smc.resample": "resample",
    "smc.multinomial": "resample, one scheme",
    "smc.systematic": "resample, one scheme",
    "smc.stratified": "resample, one scheme",
    "smc.residual": "resample, one scheme",
    "smc.propagate": "advance",
    "smc.step": "advance . hoist resample",
    "smc.run": "finish . (advance . hoist resample)^k . spawn n",
    "smc.move": "hoist mhStep",
    "smc.collapse": "collapse",
    "smc.normalise": "normalise",
    "smc.marginal": "marginal",
    "smc.hoist": "hoist",
    "smc.along": "resample-move SMC",
    "smc.pmmh": "mhStep over SMC's evidence",
}


def rows() -> list[str]:
    """Returns the lines of the table of blocks."""
    kinds = {row.block: row.check for row in laws.rows()}
    lines = ["| block | in the paper | law | checked |", "|---|---|---|---|"]
    for part in (mcmc, smc):
        for name in part.__all__:
            block, label = getattr(part, name), f"{part.__name__.rpartition('.')[2]}.{name}"
            if not callable(block) or (inspect.isclass(block) and issubclass(block, tuple)):
                continue
            claim = law_of(block)
            law, check = (claim.name, kinds[label]) if isinstance(claim, Law) else ("-", claim)
            lines.append(f"| `{label}` | {PAPER.get(label, '-')} | {law} | {check} |")
    learned = [row for row in laws.rows() if not row.block.startswith(("mcmc.", "smc."))]
    return [*lines, *(f"| `{row.block}` | - | {row.law.name} | {row.check} |" for row in learned)]


def page() -> str:
    """Returns the whole page."""
    names = ("preserves", "proper", "invariant", "reweights", "consistent", "calibrated")
    from bayesinf import types

    table = ["| law | meaning |", "|---|---|"]
    table += [f"| {name} | {getattr(types, name).meaning} |" for name in names]
    return HEAD + "\n".join([*table, "", *rows(), ""])


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    PAGE.write_text(page(), encoding="utf-8")
