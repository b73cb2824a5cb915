"""Equations that only move elements, of numbers as of draws and keys.

Each rule takes the equation's parameters, the shape of its result, and its operands, arrays whose
first axis runs over the worlds (or has length 1).
"""

import numpy as np
from jax.lax import GatherScatterMode

from bayesinf.validation.exact.values import Refused


def align(array: np.ndarray, ndim: int) -> np.ndarray:
    """Returns an array with as many axes as a result of `ndim` axes has, worlds included."""
    shape = array.shape
    return array.reshape(shape[0], *(1,) * (ndim - len(shape)), *shape[1:])


def _rows(array: np.ndarray, ndim: int) -> np.ndarray:
    """Returns the index of each world in its array, to lie beside indices of `ndim` axes."""
    return np.arange(len(array)).reshape(-1, *(1,) * (ndim - 1))


def _broadcast_in_dim(params, shape, x):
    spread = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], x.shape[1:], strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(len(x), *spread), (len(x), *shape))


def _reshape(params, shape, x):
    if params.get("dimensions") is not None:
        x = x.transpose(0, *(d + 1 for d in params["dimensions"]))
    return x.reshape(len(x), *shape)


def _squeeze(params, shape, x):
    return x.reshape(len(x), *shape)


def _transpose(params, shape, x):
    return x.transpose(0, *(d + 1 for d in params["permutation"]))


def _rev(params, shape, x):
    return np.flip(x, tuple(d + 1 for d in params["dimensions"]))


def _slice(params, shape, x):
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    return x[(slice(None), *map(slice, starts, limits, strides))]


def _split(params, shape, x):
    edges = np.cumsum(params["sizes"])[:-1]
    return np.split(x, edges, axis=params["axis"] + 1)


def _concatenate(params, shape, *xs):
    worlds = max(len(x) for x in xs)
    xs = [np.broadcast_to(x, (worlds, *x.shape[1:])) for x in xs]
    return np.concatenate(xs, axis=params["dimension"] + 1)


def _stack(params, shape, *xs):
    worlds = max(len(x) for x in xs)
    xs = [np.broadcast_to(x, (worlds, *x.shape[1:])) for x in xs]
    return np.stack(xs, axis=params["axis"] + 1)


def _select_n(params, shape, which, *cases):
    ndim = len(shape) + 1
    which = align(which, ndim)
    if len(cases) == 2:
        return np.where(which.astype(bool), align(cases[1], ndim), align(cases[0], ndim))
    out = align(cases[0], ndim)
    for i, case in enumerate(cases[1:], start=1):
        out = np.where(which == i, align(case, ndim), out)
    return out


def _window(starts, sizes, shape):
    """Returns indices into an array of `shape` of the window at `starts`, moved inside."""
    index = []
    for axis, (start, size, full) in enumerate(zip(starts, sizes, shape, strict=True)):
        start = np.clip(start.astype(np.int64), 0, full - size)
        offsets = np.arange(size).reshape(-1, *(1,) * (len(sizes) - 1 - axis))
        index.append(align(start, len(sizes) + 1) + offsets)
    return index


def _dynamic_slice(params, shape, x, *starts):
    index = _window(starts, params["slice_sizes"], x.shape[1:])
    return x[(_rows(x, x.ndim), *index)]


def _dynamic_update_slice(params, shape, x, update, *starts):
    worlds = max(len(a) for a in (x, update, *starts))
    out = np.array(np.broadcast_to(x, (worlds, *x.shape[1:])))
    index = _window(starts, update.shape[1:], x.shape[1:])
    out[(_rows(out, out.ndim), *index)] = update
    return out


def _positions(
    shape, indices, window, offset_dims, collapsed, indexed, batched, batches, full, clip
):
    """Returns, for each element of a gather's result, where it lies along each operand axis.

    Returns also whether it lies inside. `shape` is the result's, `window` the size of a slice
    along each operand axis, `full` the operand's shape; the rest are the dimension numbers.
    """
    ndim = len(shape)
    spread = [d for d in range(ndim) if d not in offset_dims]
    offsets = iter(sorted(offset_dims))
    inside, places = np.ones((1,) * (ndim + 1), bool), []
    for axis, (size, length) in enumerate(zip(full, window, strict=True)):
        place = np.zeros((1,) * (ndim + 1), np.int64)
        if axis in indexed:
            start = indices[..., indexed.index(axis)].astype(np.int64)
            beside = [1] * ndim
            for d, n in zip(spread, start.shape[1:], strict=True):
                beside[d] = n
            start = start.reshape(len(start), *beside)
            if not clip:
                inside = inside & (start >= 0) & (start <= size - length)
            place = place + np.clip(start, 0, size - length)
        elif axis in batched:
            d = spread[batches[batched.index(axis)]]
            place = place + np.arange(size).reshape(-1, *(1,) * (ndim - 1 - d))
        if axis not in collapsed and axis not in batched:
            d = next(offsets)
            place = place + np.arange(length).reshape(-1, *(1,) * (ndim - 1 - d))
        places.append(place)
    return places, inside


def _gather(params, shape, x, indices):
    dims, mode = params["dimension_numbers"], params["mode"]
    places, inside = _positions(
        shape,
        indices,
        params["slice_sizes"],
        dims.offset_dims,
        dims.collapsed_slice_dims,
        dims.start_index_map,
        dims.operand_batching_dims,
        dims.start_indices_batching_dims,
        x.shape[1:],
        mode != GatherScatterMode.FILL_OR_DROP,
    )
    ndim = len(shape) + 1
    out = x[(_rows(x, ndim), *places)]
    out = np.broadcast_to(out, (len(out), *shape))
    if np.all(inside):
        return out
    return np.where(inside, out, _fill(x.dtype, params["fill_value"]))


def _fill(dtype: np.dtype, value) -> np.ndarray:
    """Returns what a gather gives out of bounds."""
    if dtype.kind == "V":
        raise Refused("an index out of bounds of draws or keys")
    if value is None:
        if dtype.kind == "f":
            value = np.nan
        elif dtype.kind == "i":
            value = np.iinfo(dtype).min
        elif dtype.kind == "u":
            value = np.iinfo(dtype).max
        else:
            raise Refused("an index out of bounds")
    return np.asarray(value, dtype)


def scatter(combine):
    """Returns the rule of a scatter that combines by `combine(array, index, updates)`."""

    def rule(params, shape, x, indices, updates):
        dims = params["dimension_numbers"]
        lost = {*dims.inserted_window_dims, *dims.operand_batching_dims}
        offsets = iter(sorted(dims.update_window_dims))
        window = [1 if d in lost else updates.shape[1 + next(offsets)] for d in range(len(shape))]
        places, inside = _positions(
            updates.shape[1:],
            indices,
            window,
            dims.update_window_dims,
            dims.inserted_window_dims,
            dims.scatter_dims_to_operand_dims,
            dims.operand_batching_dims,
            dims.scatter_indices_batching_dims,
            shape,
            params["mode"] == GatherScatterMode.CLIP,
        )
        worlds = max(len(a) for a in (x, indices, updates))
        out = np.array(np.broadcast_to(x, (worlds, *shape)))
        full = (worlds, *updates.shape[1:])
        index = np.broadcast_arrays(_rows(out, len(full)), *places, np.broadcast_to(inside, full))
        *index, inside = index
        updates = np.broadcast_to(updates, full)
        combine(out, tuple(i[inside] for i in index), updates[inside])
        return out

    return rule


def _set(array, index, updates):
    array[index] = updates


def _unstack(params, shape, x):
    return list(np.moveaxis(x, params["axis"] + 1, 0))


RULES = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "copy": lambda params, shape, x: x,
    "copy_p": lambda params, shape, x: x,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "optimization_barrier": lambda params, shape, *xs: list(xs),
    "reshape": _reshape,
    "rev": _rev,
    "scatter": scatter(_set),
    "select_n": _select_n,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": lambda params, shape, x: x,
    "transpose": _transpose,
    "unstack": _unstack,
}

# The operands of these that say where, and not what.
INDICES = {
    "dynamic_slice": lambda n: range(1, n),
    "dynamic_update_slice": lambda n: range(2, n),
    "gather": lambda n: (1,),
    "scatter": lambda n: (1,),
    "select_n": lambda n: (0,),
}
