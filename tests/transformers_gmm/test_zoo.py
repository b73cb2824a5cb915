"""Networks in files: what is saved is what is loaded, and nothing else is."""

import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf.distributions.gmm import gaussian
from bayesinf.programs import Frame, StateSpace, linear_gaussian
from bayesinf.transformers_gmm import (
    DistributionTransformer,
    check_model,
    describe,
    load,
    run,
    save,
    shipped,
    stream,
    zoo,
)

ABOUT = {"trained_on": "nothing", "command": "none", "figures": {"nll": np.float32(0.5), "n": 3}}


@pytest.fixture(scope="module")
def dt():
    return DistributionTransformer(
        jax.random.key(0), 2, ("range", "bearing"), width=8, num_blocks=2, num_heads=2, num_splits=1
    )


@pytest.fixture(scope="module")
def content(dt, tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "network.npz"
    save(path, dt, **ABOUT)
    return path.read_bytes()


def members(content):
    with np.load(io.BytesIO(content)) as archive:
        return dict(archive)


def rewritten(content, change, sign=True):
    """Returns the file after `change(header, arrays)`, with a checksum that fits if `sign`."""
    arrays = members(content)
    header = json.loads(arrays.pop("header").tobytes())
    change(header, arrays)
    header.pop("sha256", None)
    digest = zoo._digest(header, list(arrays.values()))
    header["sha256"] = digest if sign else "0" * 64
    file = io.BytesIO()
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return file.getvalue()


def refused(tmp_path, content, *words):
    """Checks that a file is refused by one line that names it, and by whatever `words` say."""
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=" was expected") as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in (*words, " came"):
        assert word in message
    return message


def test_a_network_comes_back_bit_for_bit(dt, tmp_path):
    path = tmp_path / "new" / "any.name"
    save(path, dt, **ABOUT)
    save(path, dt, **ABOUT)
    assert eqx.tree_equal(load(path), dt)
    assert eqx.tree_equal(load(str(path)), dt)
    assert [file.name for file in path.parent.iterdir()] == ["any.name"]


def test_double_precision_comes_back_too(dt, tmp_path, x64):
    double = jax.tree.map(lambda leaf: leaf.astype(float) if eqx.is_array(leaf) else leaf, dt)
    save(tmp_path / "double.npz", double, **ABOUT)
    assert eqx.tree_equal(load(tmp_path / "double.npz"), double)
    with jax.enable_x64(False):
        refused(tmp_path, (tmp_path / "double.npz").read_bytes(), "float64", "jax_enable_x64")


def test_the_header_says_what_the_file_holds(dt, tmp_path):
    save(tmp_path / "it.npz", dt, **ABOUT)
    header = describe(tmp_path / "it.npz")
    assert header["architecture"] == {
        "class": "DistributionTransformer",
        "dim": 2,
        "sensors": ["range", "bearing"],
        "width": 8,
        "num_blocks": 2,
        "num_heads": 2,
        "num_splits": 1,
    }
    assert header["figures"] == {"nll": 0.5, "n": 3}
    assert (header["trained_on"], header["command"]) == ("nothing", "none")
    numbers = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(dt, eqx.is_array)))
    assert sum(np.prod(array["shape"]) for array in header["arrays"]) == numbers


def test_shipped_networks_load_by_name(dt, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    save(tmp_path / "one.npz", dt, **ABOUT)
    assert shipped() == ["one"]
    assert eqx.tree_equal(load("one"), dt)
    with pytest.raises(ValueError, match=r"two: file: none came, .* \(one\) was expected"):
        load("two")


def test_every_shipped_network_is_sound_and_small():
    for name in shipped():
        load(name)
        assert describe(name)["figures"]
        assert (zoo.WEIGHTS / f"{name}.npz").stat().st_size < 2e6


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(content, tmp_path, share):
    refused(tmp_path, content[: int(share * len(content))], "file", "sound")


def test_a_flipped_bit_changes_nothing_or_is_refused(dt, content, tmp_path):
    path = tmp_path / "flipped.npz"
    rng = np.random.default_rng(0)
    refusals = []
    for place in rng.integers(len(content), size=300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            # Some bits, such as a member's date, mean nothing.
            assert eqx.tree_equal(load(path), dt)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert all(message.startswith(f"{path}: ") for message in refusals)


def test_foreign_files_are_refused(tmp_path):
    refused(tmp_path, b"a text\n", "file", "sound")
    file = io.BytesIO()
    np.savez(file, x=np.zeros(3))
    refused(tmp_path, file.getvalue(), "header", "none")
    for header in (b"{", b"[]", b'{"kind": "song"}'):
        file = io.BytesIO()
        np.savez(file, header=np.frombuffer(header, np.uint8))
        refused(tmp_path, file.getvalue(), "header" if header == b"{" else "kind")
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    refused(tmp_path, file.getvalue(), "file")
    file = io.BytesIO()
    np.savez(file, header=np.array([{}], object))
    refused(tmp_path, file.getvalue(), "file", "sound")
    refused(tmp_path, b"", "file", "sound")
    with pytest.raises(ValueError, match=": file: Is a directory came, a readable file"):
        load(tmp_path)


def test_what_the_checksum_does_not_fit_is_refused(content, tmp_path):
    def swap(header, arrays):
        arrays["leaf_000"] = arrays["leaf_000"] + 1

    refused(tmp_path, rewritten(content, swap, sign=False), "sha256")


def test_a_newer_format_is_refused(content, tmp_path):
    def age(header, arrays):
        header["format"], header["package"] = 2, "9.0"

    refused(tmp_path, rewritten(content, age), "format: 2", "9.0", "older version")


@pytest.mark.parametrize("field", ["format", "architecture", "arrays", "figures", "trained_on"])
def test_a_header_without_a_field_is_refused(content, tmp_path, field):
    refused(tmp_path, rewritten(content, lambda header, _: header.pop(field)), field, "none")


@pytest.mark.parametrize(
    ("argument", "value", "word"),
    [
        ("class", "AbsoluteTransformer", "architecture.class"),
        ("dim", 3, "shape"),
        ("width", 16, "shape"),
        ("width", 9, "num_heads"),
        ("num_blocks", 1, "arrays"),
        ("sensors", ["range"], "sensor_embeddings"),
        ("sensors", None, "architecture"),
        ("dim", "two", "architecture"),
        ("depth", 3, "depth"),
    ],
)
def test_an_architecture_that_does_not_match_is_refused(content, tmp_path, argument, value, word):
    def change(header, arrays):
        header["architecture"][argument] = value

    refused(tmp_path, rewritten(content, change), word)


def test_arrays_that_do_not_match_are_refused(content, tmp_path):
    def lose(header, arrays):
        arrays.pop("leaf_003")

    def retype(header, arrays):
        arrays["leaf_003"] = arrays["leaf_003"].astype(int)

    def retype_in_both(header, arrays):
        retype(header, arrays)
        header["arrays"][3]["dtype"] = "int64"

    def spoil(header, arrays):
        arrays["leaf_003"] = np.full_like(arrays["leaf_003"], np.nan)

    refused(tmp_path, rewritten(content, lose), "arrays")
    refused(tmp_path, rewritten(content, retype), "arrays[3]", "int64")
    refused(tmp_path, rewritten(content, retype_in_both), "arrays[3]", "int64", "float")
    refused(tmp_path, rewritten(content, spoil), "arrays[3]", "NaN")


def test_save_refuses_what_load_would(dt, tmp_path):
    path = tmp_path / "bad.npz"
    spoiled = eqx.tree_at(lambda dt: dt.head.norm.weight, dt, jnp.full(8, jnp.nan))
    with pytest.raises(ValueError, match=r"dt\.head\.norm\.weight: NaN or infinite values came"):
        save(path, spoiled, **ABOUT)
    for figure in (np.nan, object()):
        with pytest.raises(ValueError, match=r"figures: .* numbers by name were expected"):
            save(path, dt, **{**ABOUT, "figures": {"nll": figure}})
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_dimension_is_refused(dt):
    def model(dim):
        return StateSpace(
            gaussian(jnp.zeros(dim), jnp.eye(dim)),
            linear_gaussian(jnp.eye(dim), jnp.eye(dim)),
            {"never seen": lambda state, context: dist.Normal(state[0], 1)},
        )

    check_model(dt, model(2))
    message = "model: a state of dimension 3 came, the network was built for 2"
    for call in (
        check_model,
        lambda *a: run(*a, Frame(jnp.ones(1), None, {})),
        lambda *a: next(stream(*a, [])),
    ):
        with pytest.raises(ValueError, match=message):
            call(dt, model(3))
