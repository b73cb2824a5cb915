"""Trained networks in files: arrays and a header in JSON, and those that ship, by name.

A file is an `.npz` archive: a member `header`, the bytes of a JSON object, and the network's arrays
`leaf_000`, `leaf_001`, ... in the order of its tree. Nothing in it is code. The header holds

    kind            "bayesinf network"
    format          version of this layout
    package         version of bayesinf that wrote it
    architecture    name of the class, and what its constructor took
    arrays          path in the tree, shape and dtype of every array
    trained_on      what it was trained on
    command         what made it
    figures         how good it is
    sha256          of the rest of the header and the arrays
"""

import hashlib
import importlib.metadata
import io
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayesinf.programs.state_space import StateSpace
from bayesinf.transformers_gmm.network import DistributionTransformer

KIND = "bayesinf network"
FORMAT = 1
WEIGHTS = Path(__file__).parent / "weights"
_SUFFIX = ".npz"
_FIELDS = {
    "format": int,
    "package": str,
    "architecture": dict,
    "arrays": list,
    "trained_on": str,
    "command": str,
    "figures": dict,
    "sha256": str,
}
_ARGUMENTS = {
    "dim": int,
    "sensors": list,
    "width": int,
    "num_blocks": int,
    "num_heads": int,
    "num_splits": int,
}


def save(
    path: str | Path, dt: DistributionTransformer, *, trained_on: str, command: str, figures: dict
) -> None:
    """Writes a network to a file, as a whole or not at all.

    Args:
        path: the file; its name is taken as it is.
        dt: the network.
        trained_on: the problems it was trained on, in words.
        command: what makes it again.
        figures: how good it is, numbers by name.

    Raises:
        ValueError: `dt` holds numbers that are not finite, or `figures` cannot be written as JSON.
    """
    leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(dt, eqx.is_array))[0]
    arrays = [np.asarray(leaf) for _, leaf in leaves]
    for (place, _), array in zip(leaves, arrays, strict=True):
        if not np.isfinite(array).all():
            name = jax.tree_util.keystr(place)
            raise ValueError(f"dt{name}: NaN or infinite values came, finite was expected")
    header = {
        "kind": KIND,
        "format": FORMAT,
        "package": importlib.metadata.version("bayesinf"),
        "architecture": {
            "class": DistributionTransformer.__name__,
            "dim": dt.dim,
            "sensors": list(dt.sensors),
            "width": dt.width,
            "num_blocks": dt.num_blocks,
            "num_heads": dt.num_heads,
            "num_splits": dt.num_splits,
        },
        "arrays": [
            {"name": jax.tree_util.keystr(place), "shape": array.shape, "dtype": str(array.dtype)}
            for (place, _), array in zip(leaves, arrays, strict=True)
        ],
        "trained_on": trained_on,
        "command": command,
        "figures": figures,
    }
    try:
        # Once through JSON, so that what is hashed is what will be read.
        header = json.loads(json.dumps(header, allow_nan=False, default=_plain))
    except (TypeError, ValueError) as error:
        raise ValueError(f"figures: {error}; finite numbers by name were expected") from None
    header["sha256"] = _digest(header, arrays)
    members = {f"leaf_{i:03d}": array for i, array in enumerate(arrays)}
    text = np.frombuffer(json.dumps(header, indent=1).encode(), np.uint8)
    _write(Path(path), {"header": text, **members})


def load(name_or_path: str | Path) -> DistributionTransformer:
    """Returns the network that ships under a name, or that a file holds.

    Raises:
        ValueError: there is none, or the file is truncated, corrupted, of another kind, written by
            a newer version, or does not hold what its header says. One line names the file, the
            field, what came and what was expected.
    """
    path, header, arrays = _read(name_or_path)
    skeleton = _skeleton(path, header["architecture"])
    shapes, static = eqx.partition(skeleton, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    places, structure = jax.tree_util.tree_flatten_with_path(shapes)
    if len(arrays) != len(places):
        raise _error(path, "arrays", f"{len(arrays)} arrays", f"{len(places)}")
    for i, ((place, shape), array) in enumerate(zip(places, arrays, strict=True)):
        field = f"arrays[{i}] ({jax.tree_util.keystr(place)})"
        if array.shape != shape.shape:
            raise _error(path, field, f"shape {array.shape}", shape.shape)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise _error(path, field, f"dtype {array.dtype}", "a float")
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise _error(path, field, f"dtype {array.dtype}", "float32, or jax_enable_x64 set")
        if not np.isfinite(array).all():
            raise _error(path, field, "NaN or infinite values", "finite ones")
    leaves = [jnp.asarray(array) for array in arrays]
    return eqx.combine(jax.tree.unflatten(structure, leaves), static)


def describe(name_or_path: str | Path) -> dict[str, Any]:
    """Returns the header of a shipped network or a file, once the whole file was found sound.

    Raises:
        ValueError: as `load`, but for what concerns the architecture alone.
    """
    return _read(name_or_path)[1]


def shipped() -> list[str]:
    """Returns the names of the networks that ship with the package."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in WEIGHTS.glob(f"*{_SUFFIX}"))


def check_model(dt: Any, model: StateSpace) -> None:
    """Raises `ValueError` for a model whose state is not of the network's dimension.

    Sensors that the network was not trained on are no error: they run untrained.
    """
    if model.initial.dim != dt.dim:
        raise ValueError(
            f"model: a state of dimension {model.initial.dim} came, the network was built for "
            f"{dt.dim}"
        )


def _read(name_or_path: str | Path) -> tuple[Path, dict[str, Any], list[np.ndarray]]:
    """Returns a file's path, header and arrays, all as they were written."""
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and name_or_path in shipped():
        path = WEIGHTS / f"{name_or_path}{_SUFFIX}"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(shipped()) or "none"
        raise _error(path, "file", "none", f"a file, or a shipped network ({known})") from None
    except OSError as error:
        raise _error(path, "file", f"{error.strerror}", "a readable file") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
    # A damaged archive raises whatever its reader stumbles over.
    except Exception as error:
        came = f"{len(content)} bytes that are no sound .npz archive ({type(error).__name__})"
        raise _error(path, "file", came, "the whole of what bayesinf wrote") from None
    header = _header(path, members.pop("header", None))
    names = [f"leaf_{i:03d}" for i in range(len(header["arrays"]))]
    if list(members) != names:
        came, expected = f"{len(members)} arrays", f"{len(names)}, named leaf_000 and on"
        raise _error(path, "arrays", came, expected)
    arrays = list(members.values())
    written = {key: value for key, value in header.items() if key != "sha256"}
    digest = _digest(written, arrays)
    if digest != header["sha256"]:
        raise _error(
            path, "sha256", f"content with {digest[:12]}...", header["sha256"][:12] + "..."
        )
    for i, (said, array) in enumerate(zip(header["arrays"], arrays, strict=True)):
        came = {"shape": list(array.shape), "dtype": str(array.dtype)}
        if not isinstance(said, dict) or {key: said.get(key) for key in came} != came:
            raise _error(path, f"arrays[{i}]", came, said)
    return path, header, arrays


def _header(path: Path, member: np.ndarray | None) -> dict[str, Any]:
    """Returns the header that a member of the archive holds."""
    if member is None:
        raise _error(path, "header", "none", f"the header of a {KIND}")
    try:
        header = json.loads(member.tobytes())
    except ValueError:
        raise _error(path, "header", "bytes that are no JSON", "a JSON object") from None
    kind = header.get("kind") if isinstance(header, dict) else type(header).__name__
    if kind != KIND:
        raise _error(path, "kind", repr(kind), repr(KIND))
    for field, kind in _FIELDS.items():
        value = header.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            came = "none" if field not in header else f"{value!r}"
            raise _error(path, field, came, f"a {kind.__name__}")
        if field == "format" and not 1 <= header[field] <= FORMAT:
            by = f" (written by bayesinf {header.get('package')})"
            raise _error(
                path, field, f"{value}{by}", f"at most {FORMAT}, which this older version reads,"
            )
    return header


def _skeleton(path: Path, architecture: dict[str, Any]) -> DistributionTransformer:
    """Returns the network of an architecture with shapes in place of its arrays."""
    came = architecture.get("class")
    if came != DistributionTransformer.__name__:
        raise _error(path, "architecture.class", came, DistributionTransformer.__name__)
    given = {name: value for name, value in architecture.items() if name != "class"}
    if {name: type(value) for name, value in given.items()} != _ARGUMENTS:
        expected = ", ".join(f"{name} ({kind.__name__})" for name, kind in _ARGUMENTS.items())
        raise _error(path, "architecture", given, expected)
    given["sensors"] = tuple(given["sensors"])
    try:
        return eqx.filter_eval_shape(DistributionTransformer, jax.random.key(0), **given)
    except ValueError as error:
        raise _error(path, "architecture", f"{given} ({error})", "a network's") from None


def _digest(header: dict[str, Any], arrays: list[np.ndarray]) -> str:
    """Returns the SHA-256 of a header and the bytes of its arrays."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _plain(number: Any) -> Any:
    """Returns a NumPy or JAX number or array as JSON knows it."""
    if isinstance(number, np.generic | np.ndarray | jax.Array):
        return np.asarray(number).tolist()
    raise TypeError(f"a {type(number).__name__} came")


def _write(path: Path, members: dict[str, np.ndarray]) -> None:
    """Writes beside the file and renames, so that the file is the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            np.savez(file, allow_pickle=False, **members)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _error(path: Path, field: str, came: Any, expected: Any) -> ValueError:
    return ValueError(f"{path}: {field}: {came} came, {expected} was expected")
