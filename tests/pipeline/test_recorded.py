"""A store remembers how it was built: what a build is not given comes from there."""

import subprocess
import sys
import threading

import pytest

from featurestore import FeatureStore, StoreWriter, build
from featurestore.errors import SpecMismatchError
from featurestore.pipeline.plan import Job

SPECTRA = {"model": "logmel", "layers": [0, 2], "segment_duration": 1.0, "overlap": 0.25, "dtype": "float16"}


@pytest.fixture
def store(music, tmp_path):
    build(music, tmp_path / "s.zarr", **SPECTRA, codec="zstd", feature_level="aggregated", limit=3)
    return tmp_path / "s.zarr"


def kinds(store):
    opened = FeatureStore(store)
    return {track_id: opened.provenance(track_id)["kinds"] for track_id in opened}


@pytest.mark.slow
def test_a_build_without_options_goes_on_as_the_store_was_built(music, store):
    before = FeatureStore(store).spec
    report = build(music, store)
    assert (report.processed, report.cached, report.model) == (1, 3, "logmel")
    assert FeatureStore(store).spec == before
    assert set(map(tuple, kinds(store).values())) == {("aggregated",)}


@pytest.mark.slow
def test_new_stores_hold_segments(music, tmp_path):
    build(music, tmp_path / "new.zarr", model="logmel", limit=1)
    assert list(kinds(tmp_path / "new.zarr").values()) == [["segments", "aggregated"]]


@pytest.mark.slow
def test_options_that_are_given_are_not_overruled(music, store):
    with pytest.raises(SpecMismatchError) as caught:
        build(music, store, overlap=0.5, codec="none")
    assert caught.value.differences == {"overlap": (0.25, 0.5), "codec": ("zstd", "none")}


@pytest.mark.slow
def test_a_higher_level_needs_leave_and_says_what_it_costs(music, store):
    with pytest.raises(SpecMismatchError, match=r"4 tracks \(7\.1 s of audio\).*about \d+.*`upgrade=True`"):
        build(music, store, feature_level="segments")
    assert build(music, store, feature_level="segments", dry_run=True).to_do == 4
    assert set(map(tuple, kinds(store).values())) == {("aggregated",)}
    assert build(music, store, feature_level="segments", upgrade=True).processed == 4
    assert set(map(tuple, kinds(store).values())) == {("segments", "aggregated")}
    assert build(music, store).cached == 4


@pytest.mark.slow
def test_a_lower_level_is_no_reason_to_do_anything(music, store):
    build(music, store, feature_level="all", upgrade=True)
    assert build(music, store, feature_level="aggregated").cached == 4
    assert build(music, store).cached == 4


@pytest.mark.slow
def test_one_track_that_was_written_otherwise_does_not_raise_the_level(music, store):
    spec = FeatureStore(store).spec
    with StoreWriter(store, spec=spec) as writer:
        import numpy as np

        writer.put("a/by-hand", {"segments": np.ones((2, 2, spec.dim))})
    build(music, store)
    assert kinds(store)["b/three"] == ["aggregated"]


@pytest.mark.slow
def test_a_build_that_goes_on_looks_at_each_track_once_before_it_extracts(music, store, monkeypatch):
    looked, real = [], Job.is_satisfied_by

    def look(self, existing, track, spec):
        looked.append((threading.current_thread().name.split("-look")[0], track.track_id))
        return real(self, existing, track, spec)

    monkeypatch.setattr(Job, "is_satisfied_by", look)
    report = build(music, store)
    assert (report.processed, report.cached) == (1, 3)
    planned = sorted(track_id for thread, track_id in looked if thread == "featurestore")
    assert planned == ["a/one", "a/two", "b/one", "b/three"]
    assert len(looked) == 5  # and the one to do again under its lock


@pytest.mark.slow
def test_a_run_with_nothing_to_do_does_not_open_the_model(music, tmp_path, model_folder):
    arguments = f"{str(music)!r}, {str(tmp_path / 's.zarr')!r}"
    options = f"model={str(model_folder)!r}, segment_duration=1.0"
    build(music, tmp_path / "s.zarr", model=str(model_folder), segment_duration=1.0)
    for settings in ("", options):
        code = f"""
import sys
from featurestore import build
report = build({arguments}, {settings})
assert (report.cached, report.processed) == (4, 0)
assert "torch" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_files_that_fail_are_named_even_if_nothing_is_to_be_done(music, store):
    build(music, store)
    (music / "broken.wav").write_bytes(b"")
    report = build(music, store)
    assert (report.cached, report.failed) == (4, 1)
    assert report.errors[0].track_id == "broken"


@pytest.mark.slow
def test_other_weights_in_the_same_folder_are_noticed(music, tmp_path, model_folder):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    build(music, tmp_path / "s.zarr", model=str(model), segment_duration=1.0, limit=1)
    weights = next(model.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SpecMismatchError, match="weights_sha256"):
        build(music, tmp_path / "s.zarr", limit=1)
