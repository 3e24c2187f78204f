"""The path of a store: what is behind it may go, change, or be somewhere else on another machine."""

import os
import pickle
import shutil

import numpy as np
import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureSpec, FeatureStore
from featurestore.errors import NotAStoreError, StoreAccessError

LOOKS = {
    "in": lambda store: "a" in store,
    "unknown in": lambda store: "z" in store,
    "has": lambda store: store.has("a"),
    "len": len,
    "track_ids": lambda store: store.track_ids,
    "provenance": lambda store: store.provenance("a"),
    "aggregated": lambda store: store.aggregated(layer=0)[:],
    "some": lambda store: store.aggregated(layer=0, tracks=["a"])[:],
    "segments": lambda store: store.segments("a"),
    "raw": lambda store: store.raw("a")[0],
    "all segments": lambda store: store.segments().to_numpy(),
    "remove": lambda store: store.remove("a"),
    "pack": lambda store: store.pack(),
    "verify": lambda store: store.verify(),
}


@pytest.fixture
def store(path):
    return write_store(path, {"a": features(0), "b": features(1)}, pack=True)


def views(store):
    return [
        store.aggregated(),
        store.aggregated(tracks=["a"]),
        store.segments("a"),
        store.raw("b"),
        store.segments(),
    ]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("looked_before", [False, True])
def test_a_store_that_is_gone_is_an_error_and_not_an_answer(store, look, looked_before):
    if looked_before and look not in ("remove", "verify"):
        LOOKS[look](store)
    store.path.rename(store.path.with_suffix(".gone"))
    with pytest.raises(NotAStoreError if look == "pack" else StoreAccessError):  # for a writer it is none
        LOOKS[look](store)
    assert not store.path.exists()


def test_a_view_of_a_store_that_is_gone_says_so_and_goes_on_when_it_is_back(store):
    held = views(store)
    before = [view.to_numpy() for view in held]
    held += views(store)
    store.path.rename(store.path.with_suffix(".gone"))
    for view in held:
        with pytest.raises(StoreAccessError, match="is gone"):
            view[:1]
    store.path.with_suffix(".gone").rename(store.path)
    for view, wanted in zip(held, [*before, *before], strict=True):
        assert np.array_equal(view, wanted)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", [{"model": "other"}, {"overlap": 0.25}])
def test_numbers_of_another_model_at_the_same_path_are_not_served(store, tmp_path, packed, settings):
    held = [*views(store), *views(store)]
    for view in held[:5]:
        view.to_numpy()
    spec = FeatureSpec(layers=(0, 1, 2), dim=4, **settings)
    other = {"a": features(7), "b": features(8)}
    write_store(tmp_path / "other.zarr", other, spec=spec, pack=packed)
    shutil.rmtree(store.path)
    (tmp_path / "other.zarr").rename(store.path)
    for view in held:
        with pytest.raises(StoreAccessError, match="other settings"):
            view.to_numpy()
    for look in LOOKS.keys() - {"verify", "remove", "pack"}:
        with pytest.raises(StoreAccessError, match="other settings"):
            LOOKS[look](store)
    assert np.array_equal(FeatureStore(store.path).aggregated(tracks=["a"])[0], features(7)["aggregated"])


def test_a_store_of_the_same_settings_at_the_same_path_is_read(store, tmp_path):
    view = store.aggregated(layer=1)
    write_store(tmp_path / "other.zarr", {"a": features(7), "b": features(8)}, pack=True)
    shutil.rmtree(store.path)
    (tmp_path / "other.zarr").rename(store.path)
    assert np.array_equal(view, [features(n)["aggregated"][1] for n in (7, 8)])


def test_a_pickle_is_opened_by_the_path_that_was_given(tmp_path):
    """As on a cluster, where every node has /data, and behind it another mount."""
    write_store(tmp_path / "head" / "store.zarr", {"a": features(0), "b": features(1)}, pack=True)
    os.symlink(tmp_path / "head", tmp_path / "data")
    store = FeatureStore(tmp_path / "data" / "store.zarr")
    expected = [np.asarray(view) for view in views(store)]
    pickled = pickle.dumps((store, views(store)))
    os.unlink(tmp_path / "data")
    (tmp_path / "head").rename(tmp_path / "node")
    os.symlink(tmp_path / "node", tmp_path / "data")
    there, held = pickle.loads(pickled)
    assert there.track_ids == ["a", "b"]
    for view, wanted in zip(held, expected, strict=True):
        assert np.array_equal(view, wanted)


def test_a_store_that_was_opened_by_a_relative_path_is_found_from_elsewhere(path, monkeypatch):
    write_store(path, {"a": features(0)})
    monkeypatch.chdir(path.parent)
    store = FeatureStore(path.name)
    monkeypatch.chdir("/")
    assert "a" in store
    assert "a" in pickle.loads(pickle.dumps(store))
    assert np.array_equal(pickle.loads(pickle.dumps(store.aggregated(layer=1)))[0], features(0)["aggregated"][1])
    assert store.spec == SPEC
