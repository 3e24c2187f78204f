"""`build SOURCE features.h5`: the old file or the new one, and tracks are added as to a store."""

import shutil

import numpy as np
import pytest
from killing import killed

from featurestore import FeatureStore, build
from featurestore.errors import NotAStoreError, SettingError, SpecMismatchError, StoreAccessError
from featurestore.pipeline.alone import alone

pytestmark = pytest.mark.slow
SETTINGS = {"model": "logmel", "feature_level": "segments", "layers": [0, 2]}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_tracks_are_added_and_what_is_there_is_leftalone(music, tmp_path):
    path = tmp_path / "out" / "f.h5"
    report = build(music, path, limit=2, **SETTINGS)
    assert (report.processed, report.store) == (2, str(path))
    first = FeatureStore(path)
    before = {track_id: first.segments(track_id).to_numpy() for track_id in first}
    assert build(music, path, dry_run=True, **SETTINGS).to_do == 2
    report = build(music, path, **SETTINGS)
    assert (report.processed, report.cached) == (2, 2)
    assert names(tmp_path / "out") == ["f.h5"]
    build(music, tmp_path / "s.zarr", **SETTINGS)
    wanted, found = FeatureStore(tmp_path / "s.zarr"), FeatureStore(path)
    assert sorted(found.track_ids) == sorted(wanted.track_ids)
    assert found.spec == wanted.spec == first.spec
    for track_id in wanted:
        np.testing.assert_allclose(found.segments(track_id)[:], wanted.segments(track_id)[:], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.segments(track_id), before.get(track_id, found.segments(track_id)))
        assert found.provenance(track_id)["audio"] == wanted.provenance(track_id)["audio"]


def test_what_cannot_be_leaves_everything_as_it_was(music, tmp_path):
    path = tmp_path / "out" / "f.h5"
    with pytest.raises(SettingError, match="float32"):
        build(music, path, dtype="float16", **SETTINGS)
    build(music, path, limit=1, **SETTINGS)
    before = path.read_bytes()
    with pytest.raises(SpecMismatchError):
        build(music, path, **(SETTINGS | {"layers": [0]}))
    with alone(path.with_name("f.h5.building"), path), pytest.raises(StoreAccessError, match="another build"):
        build(music, path, **SETTINGS)
    assert path.read_bytes() == before
    assert names(tmp_path / "out") == ["f.h5"]
    path.write_bytes(b"x" * 100)
    with pytest.raises(NotAStoreError, match="no file of HDF5"):
        build(music, path, **SETTINGS)
    assert names(tmp_path / "out") == ["f.h5"]


def test_a_killed_build_leaves_the_old_file_or_the_new_one_and_the_next_one_goes_on(music, tmp_path):
    path = tmp_path / "f.h5"
    build(music, path, limit=1, **SETTINGS)
    before, first = path.read_bytes(), FeatureStore(path).track_ids
    imports = (
        "import torch; torch.set_num_threads(1); from featurestore import build; import featurestore.pipeline"
    )
    code = f"build(sys.argv[3], sys.argv[4], **{SETTINGS})"
    for _ in killed(imports, code, music, path):
        opened = FeatureStore(path)
        if path.read_bytes() == before:
            assert opened.track_ids == first
            continue
        assert len(opened) == 4
        assert opened.verify(deep=True).ok
        path.write_bytes(before)
        shutil.rmtree(path.with_name("f.h5.building"), ignore_errors=True)
    report = build(music, path, **SETTINGS)
    assert (report.processed + report.cached, len(FeatureStore(path))) == (4, 4)
    assert [name for name in names(tmp_path) if "f.h5" in name] == ["f.h5"]
