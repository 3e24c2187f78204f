"""Addresses where a path is expected: no folder called `s3:` is made, and `file://` and `~` are understood."""

import os
from pathlib import Path

import pytest
from samples import SPEC, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.addresses import local_path
from featurestore.errors import NotAStoreError

READ_ONLY = [
    "s3://bucket/store.zarr",
    "gs://bucket/x",
    "https://host/store.zarr",
    Path("s3://bucket/store.zarr"),
    Path("gs://b/s.zarr"),
]


@pytest.mark.parametrize("address", READ_ONLY)
def test_a_bucket_is_not_written_to(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NotAStoreError, match=r"build it in one, and then `fs-extract push FOLDER (s3|gs|https)://"
    ):
        StoreWriter(address, spec=SPEC)
    assert os.listdir() == []


@pytest.mark.parametrize("address", ["hf://datasets/me/x", "new+thing://x"])
@pytest.mark.parametrize("make", [FeatureStore, lambda path: StoreWriter(path, spec=SPEC)])
def test_what_is_no_folder_is_refused_with_a_way_out(tmp_path, monkeypatch, address, make):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAStoreError, match=r"is an address.*only local folders.*mount it.*copy it"):
        make(address)
    assert os.listdir() == []


def test_a_file_of_another_computer_is_refused(tmp_path):
    with pytest.raises(NotAStoreError, match="on another computer"):
        FeatureStore("file://nas/music/store.zarr")


def test_addresses_of_local_files_are_understood(tmp_path):
    path = tmp_path / "my store 100%.zarr"
    write_store(path, {"a": features(0)})
    assert FeatureStore(path.as_uri()).path == path
    with StoreWriter(f"file://localhost{path.as_uri()[7:]}", spec=SPEC) as writer:
        writer.put("b", features(1))
    assert FeatureStore(path).track_ids == ["a", "b"]


def test_home_folders_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    write_store("~/store.zarr", {"a": features(0)})
    assert os.listdir(tmp_path) == ["store.zarr"]
    assert FeatureStore(Path("~/store.zarr")).track_ids == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "a#b.zarr",
        "a?b.zarr",
        "100% done.zarr",
        "with space.zarr",
        "ünï.zarr",
        "a:b.zarr",
        "[x].zarr",
        "*.zarr",
        "c:/x",
    ],
)
def test_names_that_are_awkward_and_paths(tmp_path, monkeypatch, name):
    import xarray
    import zarr

    monkeypatch.chdir(tmp_path)
    write_store(Path(name), {"t": features(0)}, pack=True)
    assert local_path(name) == name
    assert (read_all(FeatureStore(name), "t")["raw"] == features(0)["raw"]).all()
    assert zarr.open_group(tmp_path / name, mode="r")["aggregated/t"].shape == (3, 4)
    assert xarray.open_zarr(tmp_path / name / "packed").sizes["track"] == 1


def test_a_folder_of_that_name_is_one(tmp_path, monkeypatch):
    """Made by an earlier release, for example."""
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "s3:" / "bucket", {"a": features(0)})
    assert FeatureStore(Path("s3:/bucket")).track_ids == ["a"]
