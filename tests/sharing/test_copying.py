"""Copies: bit for bit what the store has, in part if asked for, and nothing is overwritten."""

import shutil

import numpy as np
import pytest
from killing import killed

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import SettingError, SpecMismatchError, TrackExistsError
from fs_extract.commands import run

SPEC = FeatureSpec.for_arrays(layers=3, dim=4)


def write(path, ids, *, spec=SPEC, kinds=("raw", "segments"), shift=0.0):
    with StoreWriter(path, spec=spec, durable=False) as writer:
        for track_id in ids:
            raw = np.random.default_rng(ord(track_id[-1])).normal(size=(3, 3, 5, 4)).astype(spec.dtype) + shift
            with writer.track(track_id, kinds=kinds, attributes={"audio": {"sha256": track_id}}) as track:
                track.append(raw=raw, starts=[0.0, 2.5, 5.0])
    return FeatureStore(path)


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "s.zarr", ["a", "b", "x/c"])


def equal(ours, theirs, layers=None):
    for track_id in theirs.track_ids:
        known, copied = ours.provenance(track_id), theirs.provenance(track_id)
        assert copied["audio"] == known["audio"]
        assert copied["starts"] == known["starts"]
        np.testing.assert_array_equal(
            theirs.aggregated(tracks=[track_id])[:],
            ours.aggregated(layers, tracks=[track_id])[:].astype(theirs.spec.dtype),
        )
        for kind in set(copied["kinds"]) - {"aggregated"}:
            view, copy = getattr(ours, kind)(track_id, layers), getattr(theirs, kind)(track_id)
            np.testing.assert_array_equal(copy[:], view[:].astype(theirs.spec.dtype))


def test_all_of_it_and_again(store, tmp_path):
    copy = store.copy_to(tmp_path / "copy.zarr")
    assert copy.track_ids == store.track_ids
    assert copy.verify(deep=True).ok
    equal(store, copy)
    revisions = [copy.provenance(track_id)["revision"] for track_id in copy]
    again = store.copy_to(tmp_path / "copy.zarr")
    assert [again.provenance(track_id)["revision"] for track_id in again] == revisions


def test_a_part_of_it(store, tmp_path):
    copy = store.copy_to(
        tmp_path / "copy.zarr", tracks=["x/c", "a"], layers=[2, 0], level="segments", dtype="float16"
    )
    assert sorted(copy.track_ids) == ["a", "x/c"]
    assert copy.spec.layers == (0, 2)
    assert copy.provenance("a")["kinds"] == ["segments", "aggregated"]
    equal(store, copy, layers=[0, 2])


def test_out_of_a_file_of_hdf5(store, tmp_path):
    equal(store, FeatureStore(store.export(tmp_path / "s.h5", level="all")).copy_to(tmp_path / "copy.zarr"))


@pytest.mark.slow
def test_a_killed_copy_has_whole_tracks_and_goes_on(tmp_path):
    store = write(tmp_path / "s.zarr", [f"t{letter}" for letter in "abcde"])
    path = tmp_path / "copy.zarr"
    code = "FeatureStore(sys.argv[3]).copy_to(sys.argv[4])"
    for _ in killed("from featurestore import FeatureStore", code, store.path, path):
        if (path / "zarr.json").exists():
            copy = FeatureStore(path)
            equal(store, copy)
            if len(copy) == len(store):
                shutil.rmtree(path)
    copy = store.copy_to(path)
    assert sorted(copy.track_ids) == store.track_ids
    equal(store, copy)
    assert copy.verify(deep=True).ok


def test_other_features_of_one_name_are_an_error(store, tmp_path):
    other = write(tmp_path / "other.zarr", ["d", "a"], shift=1.0)
    copy = store.copy_to(tmp_path / "copy.zarr")
    with pytest.raises(TrackExistsError, match=r"'a' is in .*other.zarr and in .*copy.zarr"):
        other.copy_to(tmp_path / "copy.zarr")
    equal(store, FeatureStore(copy.path).copy_to(tmp_path / "again.zarr", tracks=["a", "b"]))


def test_what_cannot_be_had(store, tmp_path):
    half = write(tmp_path / "half.zarr", ["h"], spec=FeatureSpec.for_arrays(layers=3, dim=4, dtype="float16"))
    with pytest.raises(SettingError, match="does not become float32"):
        half.copy_to(tmp_path / "copy.zarr", dtype="float32")
    with pytest.raises(SpecMismatchError):
        half.copy_to(store.path)
    with pytest.raises(SettingError, match="no layer 7"):
        store.copy_to(tmp_path / "copy.zarr", layers=[7])
    assert not (tmp_path / "copy.zarr").exists()


def test_stores_are_merged_on_the_command_line(store, tmp_path, capsys):
    write(tmp_path / "other.zarr", ["d", "a"])
    out = tmp_path / "merged.zarr"
    assert run(["copy", str(store.path), str(tmp_path / "other.zarr"), str(out), "--layers", "1"]) == 0
    assert "4 tracks were copied" in capsys.readouterr().out
    merged = FeatureStore(out)
    assert sorted(merged.track_ids) == ["a", "b", "d", "x/c"]
    (tmp_path / "ids").write_text("d\nq\n")
    assert run(["copy", str(store.path), str(out), "--tracks", str(tmp_path / "ids"), "--layers", "1"]) == 2
    write(tmp_path / "half.zarr", ["h"], spec=FeatureSpec.for_arrays(layers=3, dim=4, dtype="float16"))
    capsys.readouterr()
    assert run(["copy", str(store.path), str(tmp_path / "half.zarr"), str(tmp_path / "none.zarr")]) == 2
    assert "--dtype is 'float32' and 'float16'" in capsys.readouterr().err
    assert not (tmp_path / "none.zarr").exists()
