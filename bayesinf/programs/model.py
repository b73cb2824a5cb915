"""NumPyro models as programs, in coordinates where every site is unconstrained."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.programs.program import Program, Trace
from bayesinf.programs.target import ByDatum
from bayesinf.types import Key, law, preserves

Point = dict[str, Array]


@law(preserves)
def from_numpyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
    """Returns the program of a NumPyro model and its data.

    A point is a dictionary by site name. A continuous site is in the unconstrained coordinates of
    its support, with the Jacobian in the prior's density, so that any kernel may move it; a
    discrete one is as it is. `program.constrain(point)` gives the model's own values, and
    `program.trace(point)` the run of the model with its log densities by site. Observed sites and
    factors are the likelihood; plates, scales and masks count as in NumPyro.

    Law: preserves; the program stands for the model's measure, pushed to these coordinates.

    Raises:
        ValueError: the model has a site that is neither sampled nor observed, or nothing observed,
            or nothing to infer.
    """
    run = _Run(model, args, kwargs)
    run.check()
    return Program(run.sample, run.log_prior, run.log_likelihood, run.constrain, run.trace)


def by_datum(program: Program, site: str) -> ByDatum:
    """Returns the path of a program from `from_numpyro` through the data of one observed site.

    The site's other axes count as one datum; everything else that is observed counts from the
    start. Each step evaluates the whole model.
    """
    run = getattr(program.trace, "__self__", None)
    if not isinstance(run, _Run):
        raise ValueError("program: one that `from_numpyro` made was expected")
    node = run.nodes(run.sample(jax.random.key(0))).get(site)
    if node is None or not node["is_observed"] or jnp.ndim(node["log_prob"]) == 0:
        raise ValueError(f"site: {site!r} came, an observed site with a leading axis was expected")
    rest = _Rest(run, site)
    return ByDatum(rest.log_density, rest.log_datum, jnp.arange(node["log_prob"].shape[0]))


class _Run(eqx.Module):
    model: Callable[..., Any] = eqx.field(static=True)
    args: tuple
    kwargs: dict[str, Any]

    def nodes(self, point: Point) -> dict[str, Any]:
        """Returns the sample sites of a run with their log densities, elementwise, and Jacobians.

        Transforms are found on the way, as a support may depend on the sites before it.
        """
        from numpyro import handlers

        log_dets = {}

        def place(site):
            name, u = site["name"], point.get(site["name"])
            if site["type"] != "sample" or u is None:
                return None
            if site["fn"].support.is_discrete:
                return u
            bijection = _bijection(site["fn"])
            value = bijection(u)
            log_dets[name] = jnp.sum(bijection.log_abs_det_jacobian(u, value))
            return value

        # A key, since control flow of the model may ask for one; no site does, having its value.
        placed = handlers.substitute(self.model, substitute_fn=place)
        seeded = handlers.seed(placed, jax.random.key(0))
        nodes = handlers.trace(seeded).get_trace(*self.args, **self.kwargs)
        return {
            name: {**node, "log_prob": _log_prob(node), "log_det": log_dets.get(name, 0.0)}
            for name, node in nodes.items()
            if node["type"] == "sample"
        }

    def sample(self, key: Key) -> Point:
        from numpyro import handlers

        # Observed values would only be returned as they are.
        nodes = handlers.trace(handlers.seed(self.model, key)).get_trace(*self.args, **self.kwargs)
        return {
            name: node["value"]
            if node["fn"].support.is_discrete
            else _bijection(node["fn"]).inv(node["value"])
            for name, node in nodes.items()
            if node["type"] == "sample" and not node["is_observed"]
        }

    def log_prior(self, point: Point) -> Float[Array, ""]:
        nodes = self.nodes(point).values()
        latent = [node for node in nodes if not node["is_observed"]]
        return sum((jnp.sum(node["log_prob"]) + node["log_det"] for node in latent), jnp.zeros(()))

    def log_likelihood(self, point: Point) -> Float[Array, ""]:
        nodes = self.nodes(point).values()
        observed = [node for node in nodes if node["is_observed"]]
        return sum((jnp.sum(node["log_prob"]) for node in observed), jnp.zeros(()))

    def constrain(self, point: Point) -> Point:
        nodes = self.nodes(point)
        return {name: node["value"] for name, node in nodes.items() if not node["is_observed"]}

    def trace(self, point: Point) -> Trace:
        nodes = self.nodes(point)
        log_probs = {name: jnp.sum(node["log_prob"]) for name, node in nodes.items()}
        choices = {name: node["value"] for name, node in nodes.items() if not node["is_observed"]}
        return Trace(choices, log_probs)

    def check(self) -> None:
        from numpyro import handlers

        seeded = handlers.seed(self.model, jax.random.key(0))
        nodes = handlers.trace(seeded).get_trace(*self.args, **self.kwargs).values()
        for node in nodes:
            if node["type"] in ("param", "mutable"):
                raise ValueError(
                    f"model: site {node['name']!r} is a numpyro.{node['type']}, neither sampled "
                    "nor observed; give it a prior or a value"
                )
        sites = [node for node in nodes if node["type"] == "sample"]
        if not any(node["is_observed"] for node in sites):
            raise ValueError("model: no observed site or factor came, at least one was expected")
        if all(node["is_observed"] for node in sites):
            raise ValueError("model: every site is observed, one to infer was expected")


class _Rest(eqx.Module):
    # Everything but the data of one site, and one datum of that site.
    run: _Run
    site: str = eqx.field(static=True)

    def log_density(self, point: Point) -> Float[Array, ""]:
        own = jnp.sum(self.run.nodes(point)[self.site]["log_prob"])
        return self.run.log_prior(point) + self.run.log_likelihood(point) - own

    def log_datum(self, point: Point, index: Array) -> Float[Array, ""]:
        return jnp.sum(self.run.nodes(point)[self.site]["log_prob"][index])


def _bijection(distribution):
    from numpyro.distributions import biject_to

    return biject_to(distribution.support)


def _log_prob(node):
    """Returns a site's log density, elementwise, -inf off a discrete support, scaled."""
    distribution, value = node["fn"], node["value"]
    log_prob = distribution.log_prob(value)
    if distribution.support.is_discrete and not node["is_observed"]:
        # NumPyro checks no traced value, and some families answer off their support.
        inside = distribution.support(value)
        log_prob = jnp.where(inside, log_prob, -jnp.inf)
    return log_prob if node["scale"] is None else node["scale"] * log_prob
