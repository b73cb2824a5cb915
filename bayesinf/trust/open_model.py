"""A NumPyro model whose data come later: a state, readings of it, and draws of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, PyTree

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.programs.model import from_numpyro
from bayesinf.programs.program import Program
from bayesinf.programs.state_space import Dynamics, Reading, StateSpace
from bayesinf.trust.rebase import AsPoint, flatten
from bayesinf.types import Key, require

Data = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A NumPyro model of which the sites `observed` get their values later; `open_model` makes one.

    The state is a vector: the sites that are not observed, in the unconstrained coordinates of
    their supports, in the order of their names.

    Attributes:
        run: from data by site to a run of the model with them.
        observed: the names of the sites that data are for.
        coordinates: a name for each coordinate of the state.
        shapes: shape and dtype of the data by site.
        as_point: from a state to its coordinates by site.
    """

    run: "Conditioned"
    observed: tuple[str, ...]
    coordinates: tuple[str, ...]
    shapes: dict[str, jax.ShapeDtypeStruct]
    as_point: AsPoint

    @property
    def dim(self) -> int:
        return len(self.coordinates)

    def sample(self, key: Key) -> Float[Array, " d"]:
        """Returns a draw of the model's own prior."""
        return flatten(self.from_numpyro(self.blank()).sample(key))

    def simulate(self, key: Key, x: Float[Array, " d"]) -> dict[str, Array]:
        """Returns data drawn given the state."""
        nodes = self.nodes(x, {}, key)
        return {name: jnp.asarray(nodes[name]["value"]) for name in self.observed}

    def program(self, prior: GaussianMixture | None, data: Data) -> Program:
        """Returns the program of the state given data, under a prior of it or the model's own."""
        own = self.from_numpyro(data)
        likelihood, constrain = (_At(f, self.as_point) for f in (own.log_likelihood, own.constrain))
        if prior is not None:
            return Program(prior.sample, prior.log_prob, likelihood, constrain)
        return Program(self.sample, _At(own.log_prior, self.as_point), likelihood, constrain)

    def state_space(self) -> StateSpace:
        """Returns the model as a state that stays where it is, with a sensor a site."""
        origin = GaussianMixture(jnp.zeros(1), jnp.zeros((1, self.dim)), jnp.eye(self.dim)[None])
        sensors: dict[str, Any] = {name: _Site(self, name) for name in self.observed}
        return StateSpace(origin, Dynamics(_stay, 0), sensors)

    def readings(self, data: Data) -> dict[str, Reading]:
        """Returns each site as one reading; all data are its context, as a site may depend on
        those before it."""
        context = {name: data[name][None] for name in self.observed}
        return {name: Reading(context[name], context, jnp.ones(1, bool)) for name in self.observed}

    def data(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Returns data as they were expected.

        Raises:
            ValueError: a site is missing or unknown, or its values have another shape, or are NaN
                or infinite.
        """
        if set(data) != set(self.observed):
            came, expected = ", ".join(sorted(data)) or "none", ", ".join(self.observed)
            raise ValueError(f"data: sites {came} came, {expected} were expected")
        made = {}
        for name, shape in self.shapes.items():
            value = data[name]
            if jnp.shape(value) != shape.shape:
                raise ValueError(
                    f"data[{name!r}]: shape {jnp.shape(value)} came, {shape.shape} was expected"
                )
            made[name] = jnp.asarray(value, shape.dtype)
            if not isinstance(value, Tracer):
                finite = jnp.isfinite(made[name])
                require(finite, f"data[{name!r}]: NaN or infinite came, finite was expected")
        return made

    def blank(self) -> dict[str, Array]:
        """Returns data without meaning, of the right shapes."""
        return {name: jnp.ones(shape.shape, shape.dtype) for name, shape in self.shapes.items()}

    def from_numpyro(self, data: Data) -> Program:
        """Returns the model's program given data, over points by site."""
        return from_numpyro(self.run, dict(data))

    def nodes(self, x: Float[Array, " d"], data: Data, key: Key | None = None) -> dict[str, Any]:
        """Returns the sites of a run at a state; those without data are drawn."""
        from numpyro import handlers
        from numpyro.distributions import biject_to

        point = self.as_point(x)

        def place(site):
            at = point.get(site["name"])
            return None if at is None else biject_to(site["fn"].support)(at)

        placed = handlers.substitute(self.run, substitute_fn=place)
        seeded = handlers.seed(placed, jax.random.key(0) if key is None else key)
        return handlers.trace(seeded).get_trace(data)


class Conditioned:
    """A model given data; itself by identity, so that nothing compiles anew for other data."""

    def __init__(self, model: Callable[[], Any]):
        self.model = model

    def __call__(self, data: Data) -> Any:
        from numpyro.handlers import condition

        return condition(self.model, dict(data))()


def open_model(model: Callable[[], Any], observed: Sequence[str]) -> OpenModel:
    """Returns a NumPyro model as a state and readings of it.

    Args:
        model: a NumPyro model without arguments (`functools.partial` gives it its covariates) and
            without data.
        observed: the names of the sites that data will come for.

    Raises:
        ValueError: a site is named: it is observed already, a factor, discrete and not observed, of
            a scaled density, or missing.
    """
    from numpyro import handlers

    sites: dict[str, Any] = {}

    def run_once(key: Key) -> None:
        nodes = handlers.trace(handlers.seed(model, key)).get_trace()
        sites.update({name: node for name, node in nodes.items() if node["type"] == "sample"})

    jax.eval_shape(run_once, jax.random.key(0))  # shapes alone, whatever the values would be
    observed = tuple(dict.fromkeys(observed))
    if not observed or any(name not in sites for name in observed):
        known = ", ".join(sites) or "none"
        raise ValueError(f"observed: {observed} came, some of the model's sites ({known}) expected")
    for name, node in sites.items():
        if node["is_observed"]:
            raise ValueError(
                f"model: site {name!r} is a factor or has its value already, so it cannot be "
                "drawn; a model that is called without data was expected"
            )
        if node["scale"] is not None and not (np.isscalar(node["scale"]) and node["scale"] == 1):
            raise ValueError(
                f"model: the density of site {name!r} is scaled, of which no data can be drawn; a "
                "plate without subsampling was expected"
            )
        if name not in observed and node["fn"].support.is_discrete:
            raise ValueError(
                f"model: site {name!r} is discrete and not observed, and a mixture of Gaussians is "
                "no posterior for it; sum it out in the model, as by `dist.MixtureSameFamily`"
            )
    shapes = {
        name: jax.ShapeDtypeStruct(jnp.shape(sites[name]["value"]), sites[name]["value"].dtype)
        for name in observed
    }
    run = Conditioned(model)
    blank = {name: jnp.ones(shape.shape, shape.dtype) for name, shape in shapes.items()}
    point = jax.eval_shape(lambda key: from_numpyro(run, blank).sample(key), jax.random.key(0))
    coordinates = [
        name + "".join(f"[{i}]" for i in index)
        for name in sorted(point)
        for index in np.ndindex(point[name].shape)
    ]
    return OpenModel(run, observed, tuple(coordinates), shapes, AsPoint(point))


class _Site(eqx.Module):
    model: OpenModel = eqx.field(static=True)
    name: str = eqx.field(static=True)

    def __call__(self, state: Float[Array, " d"], data: PyTree) -> Any:
        return self.model.nodes(state, data)[self.name]["fn"]


class _At(eqx.Module):
    function: Callable[[PyTree], Any]
    as_point: AsPoint = eqx.field(static=True)

    def __call__(self, x: Float[Array, " d"]) -> Any:
        return self.function(self.as_point(x))


def _stay(state, noise, elapsed, input) -> Float[Array, " d"]:
    del noise, elapsed, input
    return state
