"""A tree of .npy becomes a store, bit for bit, whose tracks a build counts as there."""

import numpy as np
import pytest

from featurestore import FeatureStore, StoreWriter, build
from featurestore.errors import SettingError, SourceError
from featurestore.pipeline.importing import import_tree
from fs_extract.commands import run

pytestmark = pytest.mark.slow
LOGMEL = {"model": "logmel", "segment_duration": 1.0, "layers": [0, 2]}


@pytest.fixture
def tree(music, tmp_path):
    """What a build of the music has extracted, as a tree of arrays."""
    build(music, tmp_path / "built.zarr", feature_level="all", **LOGMEL)
    return FeatureStore(tmp_path / "built.zarr").export(tmp_path / "tree", "npy", level="all")


def test_a_build_counts_what_was_imported_as_there(music, tree, tmp_path):
    report = import_tree(tree, tmp_path / "s.zarr", audio=music, **LOGMEL)
    assert (report.imported, report.there, report.without_audio) == (4, 0, ())
    built, imported = FeatureStore(tmp_path / "built.zarr"), FeatureStore(tmp_path / "s.zarr")
    assert imported.spec == built.spec
    for track_id in built.track_ids:
        for kind in ("raw", "segments"):
            theirs, ours = (getattr(store, kind)(track_id) for store in (built, imported))
            assert theirs[:].tobytes() == ours[:].tobytes()
            np.testing.assert_allclose(ours.starts, theirs.starts, atol=1e-3)
        theirs, ours = (store.aggregated(tracks=[track_id])[:] for store in (built, imported))
        assert theirs.tobytes() == ours.tobytes()
    again = build(music, tmp_path / "s.zarr", feature_level="all", **LOGMEL)
    assert (again.processed, again.cached) == (0, 4)
    assert import_tree(tree, tmp_path / "s.zarr", audio=music, **LOGMEL).there == 4


def test_ids_with_a_prefix(music, tree, tmp_path):
    report = import_tree(tree, tmp_path / "s.zarr", audio=music, dataset="mine/", **LOGMEL)
    assert (report.imported, report.without_audio) == (4, ())
    assert FeatureStore(tmp_path / "s.zarr").track_ids == [
        f"mine/{x}" for x in ("a/one", "a/two", "b/one", "b/three")
    ]
    assert build(music, tmp_path / "s.zarr", feature_level="all", dataset="mine", **LOGMEL).cached == 4
    assert import_tree(tree, tmp_path / "s.zarr", dataset="mine", **LOGMEL).there == 4
    assert import_tree(tree, tmp_path / "s.zarr", dataset="other", **LOGMEL).without_audio[0] == "other/a/one"
    with pytest.raises(SettingError, match="`dataset` must be a name"):
        import_tree(tree, tmp_path / "s.zarr", dataset="", **LOGMEL)


def test_a_last_window_that_others_leave_out_may_be_missing(music, tree, tmp_path):
    for kind in ("raw", "segments"):
        path = tree / kind / "a" / "one.npy"
        np.save(path, np.load(path)[:-1])
    import_tree(tree, tmp_path / "s.zarr", audio=music, **LOGMEL)
    assert FeatureStore(tmp_path / "s.zarr").segments("a/one").starts.tolist() == [0.0, 0.5]
    assert build(music, tmp_path / "s.zarr", **LOGMEL).cached == 4


def test_windows_that_cannot_be_are_refused(music, tree, tmp_path):
    with pytest.raises(SettingError, match=r"has 3 windows, and 1.6 s of audio have 6 of 1.0 s with overlap 0.8"):
        import_tree(tree, tmp_path / "s.zarr", audio=music, overlap=0.8750, **LOGMEL)


def test_a_tree_that_is_not_of_this_music_is_refused(tree, tmp_path, clip):
    clip(tmp_path / "other" / "z.wav")
    with pytest.raises(SourceError, match=r"no track of .* is in"):
        import_tree(tree, tmp_path / "s.zarr", audio=tmp_path / "other", **LOGMEL)
    with pytest.raises(SourceError, match="has no raw, segments or aggregated"):
        import_tree(tmp_path / "other", tmp_path / "s.zarr", **LOGMEL)
    assert not (tmp_path / "s.zarr").exists()


def test_the_command(music, tree, tmp_path, capsys):
    (music / "a" / "one.wav").unlink()
    options = ["--model", "logmel", "--segment-duration", "1", "--layers", "0,2", "--audio", str(music)]
    assert run(["import", str(tree), str(tmp_path / "s.zarr"), *options]) == 0
    out = capsys.readouterr().out
    assert "4 tracks were imported" in out
    assert "1 of them have no audio, and a build will extract them again, like 'a/one'" in out


def test_put_knows_starts_and_audio(music, tmp_path):
    build(music, tmp_path / "s.zarr", feature_level="segments", **LOGMEL)
    store = FeatureStore(tmp_path / "s.zarr")
    arrays = {"segments": store.segments("a/one")[:]}
    with StoreWriter(tmp_path / "t.zarr", spec=store.spec) as writer:
        writer.put("a/one", arrays, starts=[0.0, 0.5, 0.6], audio=music / "a" / "one.wav")
    copy = FeatureStore(tmp_path / "t.zarr")
    assert copy.segments("a/one").starts.tolist() == [0.0, 0.5, 0.6]
    theirs = store.provenance("a/one")["audio"]
    assert copy.provenance("a/one")["audio"].items() <= theirs.items()
    assert build(music, tmp_path / "t.zarr", feature_level="segments", **LOGMEL).cached == 1
