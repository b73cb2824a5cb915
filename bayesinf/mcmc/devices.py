"""Chains over several devices, where between two of them no chain waits for another."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

_AXIS = "chains"


def spread(tree: PyTree, num_chains: int) -> PyTree:
    """Returns a pytree with its arrays, which have a leading axis of chains, laid out over devices.

    With one device it stays as it is, wherever that is.
    """
    mesh = _mesh(num_chains)
    if mesh.size == 1:
        return tree
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(_AXIS))), rest)


def map_chains(function: Callable, num_chains: int) -> Callable:
    """Returns `function(common, *own)` for all chains: `own` has a leading axis of them.

    On one device this is `jax.vmap`, whose chains wait for each other in every loop.
    """
    mesh = _mesh(num_chains)

    def mapped(common: Any, *own: Any):
        if num_chains > mesh.size:
            return jax.vmap(lambda *own: function(common, *own))(*own)
        # A chain alone takes one branch of a condition, where a batch computes both.
        alone = function(common, *jax.tree.map(lambda leaf: leaf[0], own))
        return jax.tree.map(lambda leaf: leaf[None], alone)

    if mesh.size == 1:
        return mapped

    def placed(common: Any, *own: Any):
        specs = (PartitionSpec(), *(PartitionSpec(_AXIS) for _ in own))
        here = jax.shard_map(
            mapped, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(_AXIS), check_vma=False
        )
        return here(common, *own)

    return placed


def _mesh(num_chains: int) -> Mesh:
    """Returns as many devices as the chains can be spread over evenly."""
    devices = jax.local_devices()
    num = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
    return jax.make_mesh((num,), (_AXIS,), (AxisType.Auto,), devices=devices[:num])
