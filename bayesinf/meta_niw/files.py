"""Learners in files: arrays and a header in JSON; nothing in a file is code.

A file is an `.npz` archive: a member `header`, the bytes of a JSON object with the fields `kind`,
`format`, `package`, `arrays` (name, shape and dtype of each) and `sha256` (of the rest and the
arrays), and the arrays `leaf_000`, `leaf_001`, ... The network's functions are not in it, so
`load` takes a learner that has them.
"""

import hashlib
import importlib.metadata
import io
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

KIND, FORMAT = "bayesinf meta-learner", 1
S = TypeVar("S")


def save(path: str | Path, state: Any) -> None:
    """Writes a learner's state, or any other pytree of arrays, to a file: as a whole or not at all.

    Raises:
        ValueError: the state holds numbers that are not finite.
    """
    named = _named(state)
    arrays = [np.asarray(leaf) for _, leaf in named]
    for (name, _), array in zip(named, arrays, strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"state{name}: NaN or infinite values came, finite was expected")
    header = {
        "kind": KIND,
        "format": FORMAT,
        "package": importlib.metadata.version("bayesinf"),
        "arrays": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for (name, _), array in zip(named, arrays, strict=True)
        ],
    }
    header["sha256"] = _digest(header, arrays)
    members = {f"leaf_{i:03d}": array for i, array in enumerate(arrays)}
    text = np.frombuffer(json.dumps(header, indent=1).encode(), np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            np.savez(file, allow_pickle=False, header=text, **members)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def load(path: str | Path, like: S) -> S:
    """Returns the state in a file, of the kind and shapes of `like`, whose functions it gets.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds the state of another learner.
    """
    header, arrays = _read(Path(path))
    named = _named(like)
    expected = [
        {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in named
    ]
    if len(header["arrays"]) != len(expected):
        raise _error(path, "arrays", len(header["arrays"]), f"{len(expected)}, those of `like`,")
    for i, (came, wanted) in enumerate(zip(header["arrays"], expected, strict=True)):
        if came != wanted:
            raise _error(path, f"arrays[{i}]", came, wanted)
    places, rest = eqx.partition(like, eqx.is_array)
    structure = jax.tree.structure(places)
    return eqx.combine(jax.tree.unflatten(structure, list(map(jnp.asarray, arrays))), rest)


def _named(state: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(state, eqx.is_array))[0]
    return [(jax.tree_util.keystr(place), leaf) for place, leaf in leaves]


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _error(path, "file", error.strerror, "a readable file") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
        header = json.loads(members.pop("header").tobytes())
        kind, version, digest = header["kind"], header["format"], header.pop("sha256")
    # A damaged archive raises whatever its reader stumbles over.
    except Exception as error:
        came = f"{len(content)} bytes that are no sound archive ({type(error).__name__})"
        raise _error(path, "file", came, f"a {KIND}") from None
    if kind != KIND:
        raise _error(path, "kind", repr(kind), repr(KIND))
    if version != FORMAT:
        raise _error(path, "format", version, FORMAT)
    arrays = list(members.values())
    if _digest(header, arrays) != digest:
        raise _error(path, "sha256", "content of another digest", digest)
    return header, arrays


def _digest(header: dict[str, Any], arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _error(path: Path | str, field: str, came: Any, expected: Any) -> ValueError:
    return ValueError(f"{path}: {field}: {came} came, {expected} was expected")
