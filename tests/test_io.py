"""Files of trained parameters: every bit comes back, or one clear error."""

import io
import json
import pathlib
import pickle
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sbijax as sj
from sbijax import densities, networks
from tests.helpers import assert_same_bits


def small(num_outputs, width=6, activation=jax.nn.silu):
    return networks.mlp(num_outputs, hidden_sizes=(width,), activation=activation)


def make_npe(distribution=None, width=6, activation=jax.nn.silu, embedding=None):
    """A small estimator; equal arguments make equal functions."""
    prior = sj.make_prior(distribution or dist.Normal(0.0, 1.0))
    density = densities.mdn(
        num_components=2, network=lambda num: small(num, width, activation)
    )
    return sj.make_npe(
        prior, density=density, embedding=embedding or networks.flatten()
    )


def make_sims(num_columns=2, num_rows=30):
    rng = np.random.default_rng(0)
    theta = rng.normal(size=num_rows)
    noise = rng.normal(size=(num_rows, num_columns))
    return sj.make_simulations(theta, theta[:, None] + noise)


def init(estimator, sims, seed=0):
    return jax.jit(estimator.init)(jax.random.key(seed), sims)


NPE = make_npe()
PARAMS = init(NPE, make_sims())


@pytest.fixture
def path(tmp_path):
    """A file of `PARAMS`."""
    path = tmp_path / "npe.sbijax"
    sj.save(path, NPE, PARAMS)
    return path


def rewrite(path, *, manifest=None, members=None):
    """Change the manifest by a function, or replace members of the archive."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    if manifest is not None:
        record = json.loads(contents["manifest.json"])
        contents["manifest.json"] = json.dumps(manifest(record) or record).encode()
    contents.update(members or {})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)


# Round trips ------------------------------------------------------------------


def test_dict_theta_and_nested_x(tmp_path):
    npe = make_npe({"rate": dist.LogNormal(0.0, 1.0), "pair": dist.Normal(np.zeros(2))})
    rng = np.random.default_rng(0)
    theta = {"rate": rng.lognormal(size=20), "pair": rng.normal(size=(20, 2))}
    x = (
        rng.normal(size=(20, 2, 2)),
        {"dict": theta["rate"], "shape": theta["pair"]},
        [theta["rate"], (theta["rate"],)],
    )
    params = init(npe, sj.make_simulations(theta, x))
    sj.save(tmp_path / "file", npe, params)
    again = sj.load(str(tmp_path / "file"), npe)
    assert_same_bits(again, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again))
    assert type(again.stats) is type(params.stats) is sj.Stats
    x_observed = jax.tree.map(lambda leaf: leaf[3], x)
    draws = sj.infer(npe, again, x_observed).sample(jax.random.key(1), 3)
    assert_same_bits(
        draws, sj.infer(npe, params, x_observed).sample(jax.random.key(1), 3)
    )


def test_ensembles(tmp_path):
    many = sj.ensemble(NPE, num_members=3)
    params = init(many, make_sims())
    sj.save(tmp_path / "file", many, params)
    assert_same_bits(sj.load(tmp_path / "file", many), params)
    with pytest.raises(ValueError, match="another estimator"):
        sj.load(tmp_path / "file", sj.ensemble(NPE, num_members=2))
    with pytest.raises(ValueError, match="another estimator"):
        sj.load(tmp_path / "file", NPE)


def test_dtypes_that_numpy_does_not_know(tmp_path):
    def init_fn(key, x):
        return {
            "half": jax.random.normal(key, (2,), jnp.bfloat16),
            "count": jnp.array(3, jnp.int8),
            "none": jnp.zeros((0, 4)),
        }

    def apply(params, x):
        return x * params["half"].astype(x.dtype) + params["count"]

    npe = make_npe(embedding=sj.Network(init_fn, apply))
    params = init(npe, make_sims())
    assert params.net["embedding"]["half"].dtype == jnp.bfloat16
    sj.save(tmp_path / "file", npe, params)
    assert_same_bits(sj.load(tmp_path / "file", npe), params)


def test_special_values(tmp_path):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42], np.float32)
    special = np.append(special, np.array([0x7FC00123], np.uint32).view(np.float32))

    def fill(leaf):
        return jnp.asarray(np.resize(special, leaf.shape))

    params = PARAMS._replace(net=jax.tree.map(fill, PARAMS.net))
    sj.save(tmp_path / "file", NPE, params)
    assert_same_bits(sj.load(tmp_path / "file", NPE), params)


def test_arrays_on_the_host(tmp_path):
    sj.save(tmp_path / "file", NPE, jax.device_get(PARAMS))
    assert_same_bits(sj.load(tmp_path / "file", NPE), PARAMS)


def test_an_estimator_without_a_density(tmp_path):
    npe = NPE._replace(log_prob=None)
    sj.save(tmp_path / "file", npe, PARAMS)
    assert_same_bits(sj.load(tmp_path / "file", npe), PARAMS)


def test_an_estimator_that_is_built_again(path):
    assert_same_bits(sj.load(path, make_npe()), PARAMS)


def test_the_file_is_replaced(path):
    other = init(NPE, make_sims(), seed=1)
    sj.save(path, NPE, other)
    assert_same_bits(sj.load(path, NPE), other)
    assert list(path.parent.iterdir()) == [path]


# What is not saved ------------------------------------------------------------


@pytest.mark.parametrize("params", [PARAMS.net, (PARAMS, None), tuple(PARAMS), None])
def test_other_things_than_parameters_are_not_saved(tmp_path, params):
    with pytest.raises(TypeError, match="^params must be of type Params"):
        sj.save(tmp_path / "file", NPE, params)
    assert not list(tmp_path.iterdir())


class Data(NamedTuple):
    series: jax.Array


def test_structures_that_a_file_cannot_hold_are_refused(tmp_path):
    sims = make_sims()
    sims = sims._replace(x={"deep": Data(sims.x)})
    with pytest.raises(TypeError, match="got a Data among them"):
        sj.save(tmp_path / "file", NPE, init(NPE, sims))
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_text_come_back_or_are_refused(tmp_path):
    sims = make_sims()
    params = init(NPE, sims._replace(x={0: sims.x, 1: sims.x}))
    try:
        sj.save(tmp_path / "file", NPE, params)
    except TypeError:
        return
    assert_same_bits(sj.load(tmp_path / "file", NPE), params)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sj.save(tmp_path / "missing" / "file", NPE, PARAMS)


# Failures while writing -------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [0, 1, 5])
def test_a_failure_while_writing_keeps_the_old_file(path, monkeypatch, error, when):
    before, calls, write = path.read_bytes(), [], np.save

    def fail(*args, **kwargs):
        calls.append(None)
        if len(calls) > when:
            raise error("disk full")
        write(*args, **kwargs)

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(error):
        sj.save(path, NPE, init(NPE, make_sims(), seed=1))
    monkeypatch.undo()
    assert len(calls) == when + 1
    assert path.read_bytes() == before
    assert_same_bits(sj.load(path, NPE), PARAMS)


def test_a_failure_while_writing_leaves_nothing_behind(path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        sj.save(path, NPE, PARAMS)
    assert list(path.parent.iterdir()) == [path]


# Other estimators -------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (make_npe(width=7), r"is float32\[6, 6\] in the file and float32\[7, 6\]"),
        (make_npe(dist.Normal(0.0, 3.0)), "log-density of the stored example was"),
        (make_npe(dist.Laplace(0.0, 1.0)), "log-density of the stored example was"),
        (make_npe(activation=jax.nn.tanh), "log-density of the stored example was"),
        (make_npe(dist.Normal(np.zeros(2))), "theta"),
        (make_npe({"a": dist.Normal(0.0)}), "theta"),
        (make_npe(embedding=small(2)), r"\['embedding'\].* is absent in the file"),
        (NPE._replace(init=lambda key, sims: {}), "in the file and absent"),
    ],
    ids=[
        *("width", "scale", "prior", "activation", "dims", "structure"),
        *("embedding", "empty"),
    ],
)
def test_a_file_of_another_estimator_is_refused(path, other, words):
    with pytest.raises(ValueError, match=f"another estimator.*{words}"):
        sj.load(path, other)


def test_a_prior_that_excludes_the_stored_example_is_refused(path):
    # The same shapes; its log-density of the example is -inf, not a number.
    theta = float(PARAMS.stats.example.theta)
    other = make_npe(dist.Uniform(theta + 1.0, theta + 2.0))
    with pytest.raises(ValueError, match="another estimator"):
        sj.load(path, other)


def test_another_standardizer_is_refused(tmp_path):
    def build(standardizer):
        density = densities.mdn(num_components=1, network=small)
        return sj.make_npe(
            sj.make_prior(dist.Normal(0.0, 1.0)),
            density=density,
            embedding=networks.flatten(),
            standardizer=standardizer,
        )

    sj.save(tmp_path / "file", NPE, PARAMS)
    with pytest.raises(ValueError, match="another estimator"):
        sj.load(tmp_path / "file", build(networks.zscore()))
    with pytest.raises(ValueError, match="another estimator"):
        sj.load(tmp_path / "file", build(networks.no_standardizer()))


def test_another_shape_of_x_is_refused(tmp_path):
    # A network that takes pairs only, and a file of triples.
    def apply(params, x):
        if x.shape != (2,):
            raise ValueError("this network takes pairs")
        return x

    pairs = make_npe(embedding=sj.Network(lambda key, x: {}, apply))
    sj.save(tmp_path / "pairs", pairs, init(pairs, make_sims()))
    assert sj.load(tmp_path / "pairs", pairs).stats.example.x.shape == (2,)
    sj.save(tmp_path / "triples", NPE, init(NPE, make_sims(num_columns=3)))
    words = r"another estimator.* x float32\[3\], which .*this network takes pairs"
    with pytest.raises(ValueError, match=words):
        sj.load(tmp_path / "triples", pairs)
    # The loaded parameters are for triples; other observations do not fit them.
    params = sj.load(tmp_path / "triples", NPE)
    with pytest.raises(ValueError, match="^x has another shape"):
        sj.infer(NPE, params, np.zeros(2))


# Damaged files ----------------------------------------------------------------

DAMAGED = "is damaged or is not a file written by sbijax.save"


def test_truncated_files(path):
    whole = path.read_bytes()
    lengths = {0, 1, 3, 4, 30, len(whole) - 22, len(whole) - 1}
    lengths |= set(np.linspace(0, len(whole), 40, dtype=int)[:-1].tolist())
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=DAMAGED):
            sj.load(path, NPE)


def test_flipped_bytes_are_noticed_or_harmless(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for place in rng.choice(len(whole), 60, replace=False):
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        path.write_bytes(flipped)
        try:
            found = sj.load(path, NPE)
        except ValueError:
            num_refused += 1
        else:  # a date in a header, say
            assert_same_bits(found, PARAMS)
    assert num_refused > 30


@pytest.mark.parametrize(
    "contents",
    [
        np.random.default_rng(0).bytes(1000),
        b"PK\x03\x04" + np.random.default_rng(1).bytes(1000),
        b"just text\n" * 50,
        b"{}",
        pickle.dumps({"net": [1, 2, 3]}),
    ],
    ids=["random", "zip-like", "text", "json", "pickle"],
)
def test_files_of_another_kind(tmp_path, contents):
    (tmp_path / "file").write_bytes(contents)
    with pytest.raises(ValueError, match=DAMAGED) as error:
        sj.load(tmp_path / "file", NPE)
    assert str(tmp_path / "file") in str(error.value)


def test_archives_of_another_kind(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("arrays.npz", "empty.zip"):
        with pytest.raises(ValueError, match=DAMAGED):
            sj.load(tmp_path / name, NPE)


def test_missing_files_and_folders(tmp_path):
    for name in ("missing", "."):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            sj.load(tmp_path / name, NPE)


def test_a_later_format(path):
    def later(manifest):
        manifest["format"] += 1
        manifest["sbijax"] = "9.9"
        manifest["leaves"] = "something new"

    rewrite(path, manifest=later)
    with pytest.raises(ValueError, match=r"format 2 \(sbijax 9\.9\).*Upgrade sbijax"):
        sj.load(path, NPE)


def test_members_that_are_missing_or_other_arrays(path):
    whole = path.read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    for name in ("manifest.json", "0.npy", "3.npy"):
        for data in (None, b"", b"not an array", buffer.getvalue()):
            path.write_bytes(whole)
            rewrite(path, members={name: data})
            with pytest.raises(ValueError, match=DAMAGED):
                sj.load(path, NPE)


def edit(field, value):
    def change(manifest):
        manifest[field] = value

    return change


def drop(field):
    return lambda manifest: manifest.pop(field) and None


def edit_leaf(field, value):
    def change(manifest):
        manifest["leaves"][2][field] = value

    return change


def drop_from_leaf(field):
    def change(manifest):
        del manifest["leaves"][2][field]

    return change


def edit_example(name, node):
    def change(manifest):
        manifest["example"]["dict"][name] = node

    return change


def drop_from_example(name):
    def change(manifest):
        del manifest["example"]["dict"][name]

    return change


WRONG_FIELDS = {
    "no format": drop("format"),
    "no example": drop("example"),
    "no leaves": drop("leaves"),
    "no check": drop("check"),
    "format is text": edit("format", "one"),
    "format is a digit as text": edit("format", "1"),
    "format is a list": edit("format", [1]),
    "format is null": edit("format", None),
    "example is a number": edit("example", 3),
    "example is a list": edit("example", {"list": []}),
    "example is empty": edit("example", {"dict": {}}),
    "example without theta": drop_from_example("theta"),
    "example without x": drop_from_example("x"),
    "example without weight": drop_from_example("weight"),
    "example of another shape": edit_example("x", {"shape": [3], "dtype": "float32"}),
    "example of a negative shape": edit_example(
        "x", {"shape": [-2], "dtype": "float32"}
    ),
    "example of an unknown dtype": edit_example("x", {"shape": [2], "dtype": "real"}),
    "example of text": edit_example("x", {"shape": [2], "dtype": "<U3"}),
    "example of another structure": edit_example("theta", {"tuple": []}),
    "leaves are a number": edit("leaves", 7),
    "leaves are empty": edit("leaves", []),
    "leaves are words": edit("leaves", ["a", "b"]),
    "leaf without a name": drop_from_leaf("name"),
    "leaf without a shape": drop_from_leaf("shape"),
    "leaf without a dtype": drop_from_leaf("dtype"),
    "leaf of another name": edit_leaf("name", ".net['other']"),
    "leaf of a name that is a list": edit_leaf("name", ["a"]),
    "leaf of another shape": edit_leaf("shape", [1, 1]),
    "leaf of a free shape": edit_leaf("shape", [-1]),
    "leaf of another dtype": edit_leaf("dtype", "int32"),
    "leaf of objects": edit_leaf("dtype", "object"),
    "leaf of an unknown dtype": edit_leaf("dtype", "real"),
    "check is text": edit("check", "one"),
    "check is a number as text": edit("check", "1.0"),
    "check is a list": edit("check", []),
    "check is another number": edit("check", 123.0),
    "check is not a number": edit("check", float("nan")),
    "manifest is a list": lambda manifest: [1],
    "manifest is a number": lambda manifest: 1,
}


@pytest.mark.parametrize("change", WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_wrong_fields_of_the_manifest(path, change):
    rewrite(path, manifest=change)
    with pytest.raises(ValueError, match="damaged|another estimator"):
        sj.load(path, NPE)


def test_another_order_of_the_arrays_is_harmless_or_refused(path):
    # The ends of the ranges, which no density sees, trade places together with
    # their names: only the names tell them apart.
    with zipfile.ZipFile(path) as archive:
        entries = json.loads(archive.read("manifest.json"))["leaves"]
        names = [entry["name"] for entry in entries]
        i, j = (names.index(f".stats.x['range'][0][{end}]") for end in (0, 1))
        members = {
            f"{i}.npy": archive.read(f"{j}.npy"),
            f"{j}.npy": archive.read(f"{i}.npy"),
        }

    def exchange(manifest):
        leaves = manifest["leaves"]
        leaves[i], leaves[j] = leaves[j], leaves[i]

    rewrite(path, manifest=exchange, members=members)
    try:
        found = sj.load(path, NPE)
    except ValueError:
        return
    assert_same_bits(found, PARAMS)


# Nothing is executed ----------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.mkdir, (self.marker,)


def object_array(marker):
    buffer = io.BytesIO()
    array = np.empty(1, object)
    array[0] = Trap(marker)
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_the_trap_works(tmp_path):
    np.load(io.BytesIO(object_array(tmp_path / "marker")), allow_pickle=True)
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize("name", ["0.npy", "4.npy", "manifest.json"])
def test_pickled_arrays_are_not_executed(path, name):
    marker = path.parent / "marker"
    rewrite(path, members={name: object_array(marker)})
    with pytest.raises(ValueError, match=DAMAGED):
        sj.load(path, NPE)
    assert not marker.exists()


def test_pickles_are_not_executed(path):
    marker = path.parent / "marker"
    contents = pickle.dumps(Trap(marker))
    for members in ({"0.npy": contents}, {"manifest.json": contents}):
        sj.save(path, NPE, PARAMS)
        rewrite(path, members=members)
        with pytest.raises(ValueError, match=DAMAGED):
            sj.load(path, NPE)
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=DAMAGED):
        sj.load(path, NPE)
    path.write_bytes(object_array(marker))
    with pytest.raises(ValueError, match=DAMAGED):
        sj.load(path, NPE)
    assert not marker.exists()


def test_loading_needs_no_pickle(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle is read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert_same_bits(sj.load(path, NPE), PARAMS)


def test_a_file_holds_bytes_and_json_only(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("manifest.json"))
        arrays = [
            np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
            for name in names
            if name != "manifest.json"
        ]
    assert len(arrays) == len(manifest["leaves"]) == len(jax.tree.leaves(PARAMS))
    assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing to save"):
        sj.save(tmp_path / "missing" / "file", NPE, PARAMS)
