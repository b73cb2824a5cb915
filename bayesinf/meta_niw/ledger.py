"""Adding and removing episodes: the global posterior as a sum that can be undone."""

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayesinf.distributions.covariance import Blocks, Diagonal, Full, LowRank
from bayesinf.distributions.niw import Natural, NormalInverseWishart
from bayesinf.distributions.operators import Outer, Sum
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import LAPLACE, Local, State, nonempty, sound


class Ledger(NamedTuple):
    """A learner that remembers what each episode added; `ledger` opens one.

    The natural parameters are summed on the host in double precision, and a removed episode's are
    subtracted: its data leave the sum to rounding. The contributions of episodes added later were
    fitted with it in the prior and keep a trace of that; steps of `cavi` over those that are left
    take it away as well.

    Attributes:
        state: the learner's.
        total: natural parameters of its posterior.
        entries: by the name of each episode, what it added.
    """

    state: State
    total: Natural
    entries: Mapping[Hashable, Natural]

    def add(self, name: Hashable, episode: Episode, local: Local = LAPLACE) -> "Ledger":
        """Returns the ledger with one more episode, as `update` would take it.

        Raises:
            ValueError: there is one of this name, the episode is none or several, or has no data.
        """
        if name in self.entries:
            raise ValueError(f"name: {name!r} is in the ledger, a new one was expected")
        one = sound(self.state, episode)
        if one.mask.shape[0] != 1 or not bool(nonempty(one)[0]):
            raise ValueError(
                f"episode: mask of shape {episode.mask.shape} came, one episode with data expected"
            )
        entry = jax.tree.map(_double, _contribution(self.state, one, local))
        return self._moved(np.add, entry, {**self.entries, name: entry}, 1)

    def remove(self, name: Hashable) -> "Ledger":
        """Returns the ledger without an episode.

        Raises:
            ValueError: there is none of this name: it was never added, or has been removed.
        """
        if name not in self.entries:
            raise ValueError(
                f"name: {name!r} is not in the ledger; it was never added, or has been removed"
            )
        left = {key: entry for key, entry in self.entries.items() if key != name}
        return self._moved(np.subtract, self.entries[name], left, -1)

    def _moved(self, operation, entry: Natural, entries: dict, step: int) -> "Ledger":
        total = jax.tree.map(operation, self.total, entry) if entries else _total(self.state.prior)
        posterior = _from_total(self.state.prior, total)
        state = self.state._replace(posterior=posterior, count=self.state.count + step)
        return Ledger(state, total, MappingProxyType(entries))


def ledger(state: State) -> Ledger:
    """Returns the empty ledger of a learner that has seen nothing.

    Raises:
        ValueError: it has seen episodes, or its scale is `LowRank`, which is a projection of sums
            and can undo none.
    """
    if int(state.count) != 0:
        raise ValueError(
            f"state: one that has seen {state.count} episodes came, a new one expected"
        )
    if isinstance(state.prior.scale, LowRank):
        raise ValueError("state: a LowRank scale came, Diagonal, Full or Blocks was expected")
    return Ledger(state, _total(state.prior), MappingProxyType({}))


@eqx.filter_jit
def _contribution(state: State, episodes: Episode, local: Local) -> Natural:
    network, _, posterior, _ = state
    episode = jax.tree.map(lambda rows: rows[0], episodes)
    found = local(network, posterior.loc, posterior.expected_precision(), episode)
    second = Sum([1, 1], [found.cov, Outer(found.mean[:, None])])
    one = jnp.ones((), found.mean.dtype)
    return Natural(one, found.mean, one, posterior.scale.moments(second))


def _double(leaf: Any) -> Any:
    return np.asarray(leaf, np.float64)


def _total(prior: NormalInverseWishart) -> Natural:
    loc, strength, df = map(_double, (prior.loc, prior.strength, prior.df))

    def second(scale: Any, loc: np.ndarray) -> np.ndarray:
        if isinstance(scale, Diagonal):
            return _double(scale.diag) + strength * loc**2
        chol = _double(scale.chol)
        return chol @ chol.T + strength * np.outer(loc, loc)

    return Natural(strength, strength * loc, df, _by_block(prior.scale, second, loc))


def _from_total(prior: NormalInverseWishart, total: Natural) -> NormalInverseWishart:
    strength, weighted, df, seconds = total
    loc = weighted / strength
    dtype = prior.loc.dtype

    def scale(like: Any, loc: Any, second: Any) -> Any:
        if isinstance(like, Diagonal):
            return Diagonal(jnp.asarray(second - strength * loc**2, dtype))
        centred = second - strength * np.outer(loc, loc)
        return Full(jnp.asarray(np.linalg.cholesky(centred), dtype))

    if isinstance(prior.scale, Blocks):
        parts = zip(prior.scale.blocks, _split(prior.scale, loc), seconds, strict=True)
        found: Any = Blocks(scale(*each) for each in parts)
    else:
        found = scale(prior.scale, loc, seconds)
    return NormalInverseWishart(
        jnp.asarray(loc, dtype), jnp.asarray(strength, dtype), jnp.asarray(df, dtype), found
    )


def _by_block(scale: Any, f, loc: np.ndarray) -> Any:
    if isinstance(scale, Blocks):
        return tuple(map(f, scale.blocks, _split(scale, loc)))
    return f(scale, loc)


def _split(scale: Blocks, loc: Any) -> list[np.ndarray]:
    return np.split(loc, np.cumsum([each.dim for each in scale.blocks])[:-1])
