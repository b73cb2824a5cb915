"""The worlds: their masses, how far each uniform is known in them, and all that lives in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bayesinf.validation.exact.values import Refused, join

# Mergers wait until the worlds have grown by this factor since the last one.
_GROWTH = 1.5
_FEW = 64


@dataclass
class Stats:
    """What a run cost: worlds at its peak, splits, mergers, compiled equations, seconds."""

    peak: int = 1
    splits: int = 0
    merges: int = 0
    compiled: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Group:
    """A part of the worlds with all that lives in them."""

    masses: np.ndarray
    intervals: dict[int, np.ndarray]
    scopes: list[dict]


class Worlds:
    """All worlds at once.

    `masses` has one entry a world. `intervals` holds, for each uniform about which something was
    decided, the interval `(W, 2)` where it lies; the others lie in [0, 1]. Whatever must survive a
    split lives in a scope, a dictionary of values, all of which are re-indexed together.
    """

    def __init__(self, masses: np.ndarray, max_worlds: int):
        self.masses = masses
        self.intervals: dict[int, np.ndarray] = {}
        self.scopes: list[dict] = []
        self.spent: set[int] = set()
        self.missing_mass = 0.0
        self.stats = Stats()
        self._max_worlds = max_worlds
        self._merged = 1
        self._num_uniforms = 0

    def __len__(self) -> int:
        return len(self.masses)

    def check_size(self, num_worlds: int):
        """Raises `Refused` where these are more worlds than are allowed."""
        if num_worlds > self._max_worlds:
            raise Refused(f"more than max_worlds={self._max_worlds} worlds")

    def fresh(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the identities `(1, *shape)` of new uniforms."""
        first, size = self._num_uniforms, int(np.prod(shape))
        self._num_uniforms += size
        return np.arange(first, first + size).reshape(1, *shape)

    @contextmanager
    def scope(self, values: dict) -> Iterator[dict]:
        """Keeps `values` in step with the worlds while the body runs."""
        self.scopes.append(values)
        try:
            yield values
        finally:
            self.scopes.pop()

    # Splits. Each takes `law(t, origin)` for t = 0, 1, ...: `origin` says from which of the
    # worlds at the start each world of now stems.

    def choose(self, count: int, law: Callable) -> tuple[np.ndarray, np.ndarray]:
        """Splits every world `count` times in turn, by probabilities `law(t, origin)` `(W, K)`.

        Returns:
            The outcomes `(W', count)`, and from which world `(W',)` each stems.
        """
        origin, history = np.arange(len(self)), []
        for t in range(count):
            parent, outcome = self._split(law(t, origin))
            origin = origin[parent]
            history.append((parent, outcome))
        self._take_scopes(origin)
        index, outcomes = np.arange(len(self)), []
        for parent, outcome in reversed(history):
            outcomes.append(outcome[index])
            index = parent[index]
        empty = np.zeros((len(self), 0), int)
        return np.stack(outcomes[::-1], axis=1) if outcomes else empty, origin

    def cut(self, count: int, law: Callable) -> np.ndarray:
        """Cuts a uniform in every world `count` times in turn.

        `law(t, origin)` returns the identities `(W,)` of the uniforms and the edges `(W, K + 1)`
        of the pieces, from one end of its interval to the other.

        Returns:
            From which world `(W',)` each stems.
        """
        origin = np.arange(len(self))
        for t in range(count):
            uid, edges = law(t, origin)
            width = edges[:, -1:] - edges[:, :1]
            parent, piece = self._split(np.diff(edges, axis=1) / width)
            self._narrow(uid[parent], edges[parent, piece], edges[parent, piece + 1])
            origin = origin[parent]
        self._take_scopes(origin)
        return origin

    def _split(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parent, outcome = np.nonzero(probabilities > 0)
        self.stats.splits += 1
        self.stats.peak = max(self.stats.peak, len(parent))
        self.check_size(len(parent))
        self._take_masses(parent)
        self.masses = self.masses * probabilities[parent, outcome]
        return parent, outcome

    # Uniforms.

    def bounds(self, uid: np.ndarray) -> np.ndarray:
        """Returns where the uniforms `uid` `(W or 1, ...)` lie, `(W or 1, ..., 2)`.

        Raises:
            Refused: for a uniform of which more is known than an interval.
        """
        out = np.broadcast_to(np.array([0.0, 1.0]), (*uid.shape, 2))
        refined = [int(u) for u in np.unique(uid) if u in self.intervals or u in self.spent]
        if not refined:
            return out
        if not self.spent.isdisjoint(refined):
            raise Refused("noise that was used twice, so that the outcomes depend on each other")
        out = np.broadcast_to(out, (len(self), *uid.shape[1:], 2)).copy()
        uid = np.broadcast_to(uid, out.shape[:-1])
        for u in refined:
            at = np.nonzero(uid == u)
            out[at] = self.intervals[u][at[0]]
        return out

    def is_fresh(self, uid: np.ndarray) -> bool:
        """Whether nothing is known about any of these uniforms."""
        ids = {int(u) for u in np.unique(uid)}
        return ids.isdisjoint(self.spent) and ids.isdisjoint(self.intervals)

    def _narrow(self, uid: np.ndarray, low: np.ndarray, high: np.ndarray):
        for u in np.unique(uid[uid >= 0]):
            at = uid == u
            interval = self.intervals.get(int(u))
            if interval is None:
                interval = np.broadcast_to(np.array([0.0, 1.0]), (len(self), 2))
            interval = interval.copy()
            interval[at] = np.stack([low, high], axis=1)[at]
            self.intervals[int(u)] = interval

    # Mergers.

    def merge_if_grown(self):
        if len(self) > max(_FEW, _GROWTH * self._merged):
            self.merge()

    def merge(self):
        """Makes worlds that agree on all that lives in them into one."""
        values = [v for scope in self.scopes for v in scope.values()]
        live = set().union(*(v.uniforms() for v in values))
        self.intervals = {u: bounds for u, bounds in self.intervals.items() if u in live}
        columns = [_columns(v.array) for v in values if len(v.array) > 1 and len(self) > 1]
        columns += [_columns(bounds) for bounds in self.intervals.values() if len(self) > 1]
        columns = [c for c in columns if c.shape[1]]
        masses = self.masses
        if columns:
            rows = np.ascontiguousarray(np.concatenate(columns, axis=1))
            rows = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
            _, index, group = np.unique(rows, return_index=True, return_inverse=True)
        else:
            index, group = np.zeros(1, int), np.zeros(len(self), int)
        if len(index) < len(self):
            self._take_masses(index)
            self._take_scopes(index)
            self.masses = np.bincount(group.ravel(), masses, len(index))
        self.stats.merges += 1
        self._merged = len(self)

    # Groups.

    def group(self) -> Group:
        """Returns all worlds as they are now."""
        return Group(self.masses, dict(self.intervals), [dict(scope) for scope in self.scopes])

    def enter(self, group: Group, worlds: np.ndarray):
        """Goes on with some worlds of a group alone."""
        self.masses, self.intervals = group.masses, dict(group.intervals)
        self._fill(group.scopes)
        self._take_masses(worlds)
        self._take_scopes(worlds)

    def join(self, groups: list[Group]):
        """Goes on with the worlds of several groups together."""
        sizes = [len(g.masses) for g in groups]
        self.masses = np.concatenate([g.masses for g in groups])
        unit = np.array([[0.0, 1.0]])
        refined = {u for g in groups for u in g.intervals}
        self.intervals = {
            u: np.concatenate(
                [
                    np.broadcast_to(g.intervals.get(u, unit), (n, 2))
                    for g, n in zip(groups, sizes, strict=True)
                ]
            )
            for u in refined
        }
        together = zip(*(g.scopes for g in groups), strict=True)
        self._fill([{k: join([s[k] for s in same], sizes) for k in same[0]} for same in together])
        self.stats.peak = max(self.stats.peak, len(self))

    def _fill(self, contents: list[dict]):
        for scope, content in zip(self.scopes, contents, strict=True):
            scope.clear()
            scope.update(content)

    def _take_masses(self, worlds: np.ndarray):
        self.masses = self.masses[worlds]
        self.intervals = {u: bounds[worlds] for u, bounds in self.intervals.items()}

    def _take_scopes(self, worlds: np.ndarray):
        for scope in self.scopes:
            scope.update({name: value.take(worlds) for name, value in scope.items()})


def _columns(array: np.ndarray) -> np.ndarray:
    """Returns integers `(W, C)` that agree where two worlds agree.

    Floats are rounded to 12 decimals of their unit, or of the largest where all are smaller.
    """
    if array.dtype.names:
        return np.concatenate([_columns(array[name]) for name in array.dtype.names], axis=1)
    flat = np.ascontiguousarray(array).reshape(len(array), -1)
    if flat.dtype.kind == "V":
        words = np.frombuffer(flat.tobytes(), np.uint32)
        return words.reshape(len(flat), -1).astype(np.int64)
    if flat.dtype.kind == "c":
        flat = flat.view(np.finfo(flat.dtype).dtype)
    if flat.dtype.kind != "f":
        return flat.astype(np.int64)
    flat = flat.astype(float)
    size = np.abs(flat, where=np.isfinite(flat), out=np.zeros_like(flat)).max(initial=0.0)
    scaled = flat * (1e12 / min(1.0, max(size, 1e-290)))
    rounded = np.where(np.abs(scaled) < 2.0**52, np.rint(scaled), scaled) + 0.0
    return np.where(np.isnan(rounded), np.nan, rounded).view(np.int64)
