"""A network with a likelihood, as a function of the flat vector of its adapted weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, PyTree, Shaped

from bayesinf.meta_niw.episodes import Episode, finite_rows, hide
from bayesinf.meta_niw.likelihoods import Likelihood


class Model(eqx.Module):
    """What an episode's data say of theta, the adapted weights; see `model`.

    Attributes:
        adapted: initial values of the leaves that adapt; `initial` is their flat vector.
        frozen: the other array leaves, None in the places of the adapted ones.
        likelihood: the density of a row's y given the network's outputs there.
    """

    adapted: tuple[Array | None, ...]
    frozen: tuple[Array | None, ...]
    likelihood: Likelihood
    rest: tuple[Any, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    apply_fn: Callable = eqx.field(static=True)
    features: Callable | None = eqx.field(static=True)

    @property
    def dim(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers of theta each adapted leaf has, in the order of theta."""
        return tuple(leaf.size for leaf in self.adapted if leaf is not None)

    @property
    def initial(self) -> Float[Array, " d"]:
        """The adapted leaves' initial values."""
        return jnp.concatenate([leaf.reshape(-1) for leaf in self.adapted if leaf is not None])

    def params(self, theta: Float[Array, " d"]) -> PyTree:
        """Returns the network's parameters with theta in the places of the adapted leaves."""
        parts = iter(jnp.split(theta, np.cumsum(self.sizes)[:-1].tolist()))
        return self._params(
            [None if leaf is None else next(parts).reshape(leaf.shape) for leaf in self.adapted]
        )

    def _params(self, adapted: Sequence[Array | None]) -> PyTree:
        leaves = [
            next((part for part in parts if part is not None), None)
            for parts in zip(adapted, self.frozen, self.rest, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def embed(self, x: Shaped[Array, "..."], num_axes: int) -> Shaped[Array, "..."]:
        """Returns what the network's frozen first part makes of the inputs, once for all steps of
        a local fit; rows stand on the first `num_axes` axes. Without `features`, the inputs."""
        if self.features is None:
            return x
        lead, row = x.shape[:num_axes], x.shape[num_axes:]
        # The adapted leaves are not there: what uses them cannot be done once for all steps.
        found = self.features(self._params([None] * len(self.adapted)), x.reshape(-1, *row))
        return found.reshape(*lead, *found.shape[1:])

    def outputs(
        self, theta: Float[Array, " d"], x: Shaped[Array, "k *feature"]
    ) -> Float[Array, "k o"]:
        """Returns the network's outputs at k (embedded) inputs.

        Raises:
            ValueError: they are no numbers, or not one row of them for each input.
        """
        found = self.apply_fn(self.params(theta), x)
        shape, dtype = jnp.shape(found), getattr(found, "dtype", type(found))
        fits = len(shape) in (1, 2) and shape[0] == x.shape[0] and 0 not in shape[1:]
        if not fits or not jnp.issubdtype(jnp.result_type(found), jnp.floating):
            raise ValueError(
                f"apply_fn: outputs of shape {shape} and dtype {dtype} came for {x.shape[0]} "
                f"inputs, floats of shape ({x.shape[0]}, o) or ({x.shape[0]},) were expected"
            )
        return found.reshape(x.shape[0], -1)

    def log_likelihood(self, theta: Float[Array, " d"], episode: Episode) -> Float[Array, ""]:
        """Returns the log density of the rows that are there."""
        rows = jax.vmap(self.likelihood.log_prob)(self.outputs(theta, episode.x), episode.y)
        return jnp.sum(jnp.where(episode.mask, rows, 0))

    def sound(self, episodes: Episode) -> Episode:
        """Returns the episodes without what the likelihood cannot take, their inputs embedded.

        A row that is there and holds NaN, an infinity, or a y outside of the likelihood's support
        is an error where values are known, and is hidden where they are traced.

        Raises:
            ValueError: such a row; or the outputs do not fit y.
        """
        mask = episodes.mask.astype(bool)
        num_axes = mask.ndim
        for name in ("x", "y"):
            shape = getattr(episodes, name).shape
            if shape[:num_axes] != mask.shape:
                raise ValueError(
                    f"{name}: shape {shape} came, leading axes {mask.shape} as the mask's expected"
                )
        episodes = episodes._replace(mask=mask)
        good_x, good_y = _look(self, episodes)
        for name, good in (("x", good_x), ("y", good_y)):
            bad = mask & ~good
            if not isinstance(bad, Tracer) and bool(jnp.any(bad)):
                place = tuple(map(int, np.argwhere(np.asarray(bad))[0]))
                value = np.asarray(getattr(episodes, name)[place])
                expected = "finite numbers were" if name == "x" else f"{self._support()} was"
                raise ValueError(f"{name}: {value} came in row {place}, {expected} expected")
        episodes = hide(episodes, good_x & good_y)
        return episodes._replace(x=self.embed(episodes.x, num_axes))

    def _support(self) -> str:
        return f"a value in the support of the {type(self.likelihood).__name__} likelihood"


@eqx.filter_jit
def _look(model: Model, episodes: Episode) -> tuple[Bool[Array, "*n k"], Bool[Array, "*n k"]]:
    """Returns in which rows x is finite and y in the likelihood's support."""
    x, y, mask = episodes
    lead = mask.shape
    if 0 in lead:
        return jnp.ones(lead, bool), jnp.ones(lead, bool)
    rows = jax.eval_shape(lambda x: model.embed(x, mask.ndim), x)
    row = jax.ShapeDtypeStruct((1, *rows.shape[mask.ndim :]), rows.dtype)
    num_outputs = jax.eval_shape(model.outputs, model.initial, row).shape[1]
    y_row, size = y.shape[mask.ndim :], model.likelihood.row_size(num_outputs)
    if math.prod(y_row) != size:
        raise ValueError(
            f"y: rows of shape {y_row} came for {num_outputs} outputs of apply_fn, {size} numbers "
            f"were expected by the {type(model.likelihood).__name__} likelihood"
        )
    valid = jax.vmap(lambda y: model.likelihood.valid(y, num_outputs))(y.reshape(-1, *y_row))
    return finite_rows(x, mask.ndim), valid.reshape(lead)


def model(
    apply_fn: Callable[[PyTree, Array], Array],
    params: PyTree,
    likelihood: Likelihood,
    adapt: PyTree = True,
    features: Callable[[PyTree, Array], Array] | None = None,
) -> Model:
    """Returns a network with a likelihood, as a function of its adapted weights.

    Args:
        apply_fn: from parameters and k inputs to k outputs, each of its own input alone:
            `network.apply` of Flax; `lambda net, x: jax.vmap(net)(x)` of Equinox, whose modules are
            parameters; `lambda weights, x: x @ weights` is a linear model.
        params: the parameters, a pytree. Leaves that hold no floats never adapt.
        likelihood: the density of a row's y given the outputs there.
        adapt: which leaves adapt, a pytree of truths or a prefix of one; all by default.
        features: the network's first part, of leaves that do not adapt; `apply_fn` then takes what
            it returns. A local fit of several steps goes through it once.

    Raises:
        ValueError: no leaf adapts, or `adapt` is no tree of truths over the parameters.
    """
    leaves, structure = jax.tree.flatten(params)
    try:
        chosen = jax.tree.leaves(
            jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), adapt, params)
        )
    except ValueError as error:
        raise ValueError(f"adapt: no prefix of the tree of params came ({error})") from None
    if not all(isinstance(flag, bool | np.bool_) for flag in chosen):
        raise ValueError("adapt: leaves other than True and False came")
    arrays = [jnp.asarray(leaf) if eqx.is_array(leaf) or isinstance(leaf, np.ndarray) else None
              for leaf in leaves]  # fmt: skip
    flags = [
        flag and array is not None and jnp.issubdtype(array.dtype, jnp.floating)
        for flag, array in zip(chosen, arrays, strict=True)
    ]
    if not any(flags):
        raise ValueError("adapt: no leaf of params that holds floats was chosen, one was expected")
    return Model(
        tuple(array if flag else None for array, flag in zip(arrays, flags, strict=True)),
        tuple(None if flag else array for array, flag in zip(arrays, flags, strict=True)),
        likelihood,
        tuple(leaf if array is None else None for leaf, array in zip(leaves, arrays, strict=True)),
        structure,
        apply_fn,
        features,
    )
