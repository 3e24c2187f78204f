"""Opening a store: what is none is told from what is damaged, too new or out of reach."""

import json
import os
import shutil
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import (
    CorruptTrackError,
    NotAStoreError,
    SettingError,
    StoreAccessError,
    StoreVersionError,
)


def edit_root(path, change):
    file = path / "zarr.json"
    document = json.loads(file.read_text())
    change(document["attributes"]["featurestore"], document)
    file.write_text(json.dumps(document))


def foreign_group(path):
    import zarr

    zarr.create_group(path)


def foreign_array(path):
    import zarr

    zarr.create_array(path, shape=(3,), dtype="f4")


@pytest.mark.parametrize("name", ["s.h5", "s.HDF5", "s.nc", "s.csv", "s.parquet"])
def test_no_store_is_made_that_is_named_as_a_file(tmp_path, name):
    with pytest.raises(SettingError, match=f"{name} would be a folder"):
        StoreWriter(tmp_path / name, spec=SPEC)
    assert list(tmp_path.iterdir()) == []
    with StoreWriter(tmp_path / "s.zarr", spec=SPEC):
        pass
    (tmp_path / "s.zarr").rename(tmp_path / name)
    StoreWriter(tmp_path / name, spec=SPEC).close()  # one that is there is a store


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for make in (lambda: FeatureStore(""), lambda: StoreWriter("", spec=SPEC)):
        with pytest.raises(NotAStoreError, match="path of the store is empty"):
            make()
    assert os.listdir() == []


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_folder_may_become_a_store_and_stays_where_it_is(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = os.stat(".").st_ino
    write_store(Path(name), {"a": features(0)})
    assert os.stat(tmp_path / "here").st_ino == os.stat(".").st_ino == before
    assert os.listdir(tmp_path) == ["here"]
    assert FeatureStore(".").track_ids == ["a"]


@pytest.mark.parametrize("where", ["new.zarr", "raw/x", "packed/deep/below"])
def test_no_store_is_made_inside_a_store(path, where):
    store = write_store(path, {"a": features(0)})
    with pytest.raises(NotAStoreError, match="is inside the store"):
        StoreWriter(path / where, spec=SPEC)
    assert store.verify(deep=True).ok


def test_a_store_may_be_made_below_a_group_of_others(tmp_path):
    foreign_group(tmp_path / "data.zarr")
    StoreWriter(tmp_path / "data.zarr" / "features", spec=SPEC).close()
    assert len(FeatureStore(tmp_path / "data.zarr" / "features")) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "holds no feature store"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: (path.mkdir(), (path / "zarr.json").mkdir()), "holds no feature store"),
        (lambda path: (path.mkdir(), (path / "zarr.json").write_text("{")), "holds no feature store"),
        (lambda path: (path.mkdir(), (path / "zarr.json").write_text("[]")), "holds no feature store"),
        (lambda path: (path.mkdir(), (path / "zarr.json").write_bytes(b"\xff\xfe")), "holds no feature store"),
        (lambda path: (path.mkdir(), (path / "zarr.json").symlink_to("/etc/passwd")), "link"),
        (lambda path: (path.mkdir(), os.mkfifo(path / "zarr.json")), "holds no feature store"),
        (foreign_group, "holds no feature store"),
        (foreign_array, "holds no feature store"),
    ],
    ids=[
        "missing",
        "file",
        "empty",
        "dangling",
        "folder",
        "cut",
        "list",
        "bytes",
        "link",
        "fifo",
        "group",
        "array",
    ],
)
def test_what_is_no_store_is_not_opened(path, make, message):
    make(path)
    with pytest.raises(NotAStoreError, match=message):
        FeatureStore(path)
    assert not (path / ".featurestore").exists()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5_000, "a/" * 3_000])
def test_impossible_paths_hold_no_store(tmp_path, name):
    with pytest.raises((NotAStoreError, StoreAccessError)):
        FeatureStore(str(tmp_path / name))
    with pytest.raises((NotAStoreError, StoreAccessError)):
        StoreWriter(str(tmp_path / name), spec=SPEC)


@pytest.mark.parametrize("version", [4, 99, 1e308, "1", [1], {}, None, True])
def test_a_newer_format_is_named(path, version):
    write_store(path, {})
    edit_root(path, lambda own, _: own.update(format=version))
    for open_store in (FeatureStore, lambda path: StoreWriter(path, spec=SPEC)):
        with pytest.raises(StoreVersionError, match="upgrade featurestore"):
            open_store(path)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda own, _, value=value: own.update(format=value) for value in (0, -1)),
        lambda own, _: own.pop("spec"),
        lambda own, _: own.pop("fingerprint"),
        lambda own, _: own.pop("checksum"),
        lambda own, _: own.update(fingerprint="0" * 64),
        lambda own, _: own.update(checksum="0" * 64),
        lambda own, _: own["spec"].update(dim=5),
        lambda own, _: own["spec"].update(model="another"),
        lambda own, _: own["spec"].update(unknown=1),
        lambda own, _: own["spec"].pop("layers"),
        *(lambda own, _, value=value: own.update(spec=value) for value in ([], 1, "x", None, [[1]], {})),
        *(
            lambda own, _, value=value: own["spec"].update(layers=value)
            for value in ("abc", 3, [], [True], [1e308], [-1], {"a": 1}, [[0]], [10**400], None)
        ),
        *(
            lambda own, _, value=value: own["spec"].update(dim=value)
            for value in (0, -1, True, 1e308, "4", 10**400, 2**40, None)
        ),
        *(lambda own, _, value=value: own["spec"].update(dtype=value) for value in ("float64", ["float32"], None)),
        lambda own, _: own["spec"].update(model=nested(500)),
    ],
)
def test_damaged_metadata_of_the_store_is_named(path, change):
    write_store(path, {})
    edit_root(path, change)
    for open_store in (FeatureStore, lambda path: StoreWriter(path, spec=SPEC)):
        with pytest.raises(CorruptTrackError, match="root metadata"):
            open_store(path)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_others_may_add_attributes(path):
    import zarr

    store = write_store(path, {"a": features()}, pack=True)
    zarr.open_group(path, mode="a").attrs["note"] = "mine"
    zarr.open_group(path / "raw", mode="a").attrs["note"] = "mine too"
    assert FeatureStore(path).track_ids == ["a"]
    assert store.verify(deep=True).problems == ()
    store.pack()


@pytest.mark.parametrize("name", ["raw", "segments", "aggregated", ".featurestore"])
def test_damaged_structure_is_found(path, name):
    store = write_store(path, {"a": features()})
    (path / name / "zarr.json").write_text("{}")
    (problem,) = store.verify().problems
    assert problem.what == "structure"
    assert name in problem.message


@pytest.fixture
def as_nobody():
    """A folder for anyone, and a way to be no one in particular in it: root may do everything."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)

    def run(work):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                work()
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    yield folder, run
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_store_that_may_only_be_read_is_read(as_nobody):
    folder, run = as_nobody
    path = folder / "store.zarr"
    store = write_store(path, {"a": features(0), "x" * 300: features(1)}, pack=True)
    os.system(f"chmod -R a+rX,a-w {path}")

    def work():
        store = FeatureStore(path)
        assert len(store) == 2
        assert np.array_equal(store.raw("a"), features(0)["raw"])
        assert np.array_equal(store.aggregated()[0], features(0)["aggregated"])
        assert store.verify(deep=True).ok
        for change in (store.pack, lambda: store.remove("a"), lambda: StoreWriter(path, spec=SPEC)):
            with pytest.raises(StoreAccessError, match="permission denied"):
                change()

    run(work)
    assert store.verify(deep=True).ok


@pytest.mark.slow
def test_a_store_that_may_not_be_read_says_so(as_nobody):
    folder, run = as_nobody
    write_store(folder / "closed" / "store.zarr", {"a": features(0)})
    write_store(folder / "store.zarr", {"a": features(0), "b": features(1)})
    (folder / "closed").chmod(0o700)
    (folder / "store.zarr" / "aggregated" / "a" / "c.0.0").chmod(0)
    (folder / "store.zarr" / "raw" / "b").chmod(0)

    def work():
        with pytest.raises(StoreAccessError, match="permission denied"):
            FeatureStore(folder / "closed" / "store.zarr")
        with pytest.raises(StoreAccessError, match="permission denied"):
            StoreWriter(folder / "new.zarr", spec=SPEC)
        store = FeatureStore(folder / "store.zarr")
        with pytest.raises(StoreAccessError, match="permission denied"):
            np.asarray(store.aggregated())
        with pytest.raises(StoreAccessError, match="permission denied"):
            np.asarray(store.raw("b"))
        assert np.array_equal(store.segments("b"), features(1)["segments"])

    run(work)
