"""From a store and its manifests to files of labels."""

import dataclasses

import numpy as np
import pytest

from featurestore.errors import SettingError, SourceError, SpecMismatchError, TrackNotFoundError
from featurestore.training.labels import KMeansModel, label_store, read_labels, write_manifests
from featurestore.training.labels.frames import track_frames

FAST = {"layer": 7, "clusters": 6, "batch_size": 500, "passes": 2}


@pytest.fixture
def data(music, tmp_path):
    write_manifests(music, tmp_path / "data", valid=0.3)
    return tmp_path / "data"


@pytest.fixture
def store(music, store_of):
    return store_of(music)


def tracks(data, split):
    return [line.split("\t")[0][:-4] for line in (data / f"{split}.tsv").read_text().splitlines()[1:]]


@pytest.mark.slow
def test_a_line_of_labels_for_each_file_of_the_manifests(store, data):
    report = label_store(store, data, **FAST)
    assert report.files == {"train": 7, "valid": 3}
    assert (report.used, report.clusters, report.layer, report.name) == (6, 6, 7, "km")
    assert 5 < report.perplexity <= 6
    assert report.inertia == pytest.approx(4 * 0.1**2, rel=0.1)
    assert (data / "dict.km.txt").read_text() == "0 1\n1 1\n2 1\n3 1\n4 1\n5 1\n"
    fit = KMeansModel.load(data / "fit.km.npz")
    for split in ("train", "valid"):
        lines = (data / f"{split}.km").read_text().splitlines()
        for track_id, line in zip(tracks(data, split), lines, strict=True):
            wanted = fit.assign(np.concatenate(list(track_frames(store, track_id, 7))))
            assert [int(label) for label in line.split(" ")] == wanted.tolist()
        assert report.labels[split] == sum(len(x) for x in read_labels(data, split, "km"))


@pytest.mark.slow
def test_labels_are_the_clusters_that_there_are(store, data):
    """Layer 7 is layer 3 turned round, so the same frames belong together."""
    label_store(store, data, **FAST)
    label_store(store, data, **FAST | {"layer": 3}, name="three")
    pairs = {
        *zip(
            np.concatenate(read_labels(data, "train", "km")).tolist(),
            np.concatenate(read_labels(data, "train", "three")).tolist(),
            strict=True,
        )
    }
    assert len(pairs) == 6


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes(store, data, tmp_path):
    for name in ("one", "two"):
        label_store(store, tmp_path / name, manifest=data, **FAST)
    label_store(store, tmp_path / "three", manifest=data, seed=1, **FAST)
    names = {"train.km", "valid.km", "dict.km.txt", "fit.km.npz"}
    assert {x.name for x in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "train.km").read_bytes() != (tmp_path / "three" / "train.km").read_bytes()


@pytest.mark.slow
def test_a_fit_labels_other_stores_of_the_same_features(store, data, music, store_of, spec, other_spec, tmp_path):
    label_store(store, data, **FAST)
    fit = data / "fit.km.npz"
    # Other layers beside it do not matter.
    only_7 = store_of(music, "only.zarr", spec=dataclasses.replace(spec, layers=(7,)))
    report = label_store(only_7, tmp_path / "again", manifest=data, fit=fit, name="again")
    assert report.fit == fit
    assert (tmp_path / "again" / "train.again").read_bytes() == (data / "train.km").read_bytes()
    assert not (tmp_path / "again" / "fit.again.npz").exists()
    other = store_of(music, "other.zarr", spec=other_spec)
    with pytest.raises(SpecMismatchError, match=r"`revision` is '2', not '1'"):
        label_store(other, tmp_path / "never", manifest=data, fit=fit)
    with pytest.raises(SettingError, match="is of layer 7, not 3"):
        label_store(store, tmp_path / "never", manifest=data, fit=fit, layer=3)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_a_share_of_the_tracks_can_be_fitted(store, data):
    label_store(store, data, fraction=0.3, **FAST)
    details = KMeansModel.load(data / "fit.km.npz").details
    assert (details["tracks"], details["fraction"]) == (2, 0.3)
    assert len(read_labels(data, "train", "km")) == 7


@pytest.mark.slow
def test_without_a_valid_tsv_there_are_no_labels_of_it(store, music, tmp_path):
    write_manifests(music, tmp_path / "data", valid=0)
    assert label_store(store, tmp_path / "data", **FAST).files == {"train": 10}
    assert not (tmp_path / "data" / "valid.km").exists()


@pytest.mark.slow
def test_a_manifest_that_does_not_fit_the_store_is_refused_before_any_work(store, data, music, store_of, clip):
    def refused(error, message, opened=store, **settings):
        with pytest.raises(error, match=message):
            label_store(opened, data, **FAST | settings)
        assert not (data / "train.km").exists()
        assert not (data / "fit.km.npz").exists()

    refused(SettingError, "no layer 4", layer=4)
    refused(SettingError, "`fraction` must be", fraction=0)
    refused(SettingError, "`name` must be", name="../x")
    refused(SettingError, "`name` must be", name="tsv")
    refused(SettingError, "`seed` must be", seed=-1)
    refused(SettingError, "`batch_size` must be at least 6, as many as `clusters`, not 5", batch_size=5)
    refused(SettingError, "make no 5000 `clusters`", clusters=5_000, batch_size=5_000)
    refused(SourceError, r"has no train\.tsv", manifest=data.parent)
    lacking = store_of(music, "lacking.zarr", leave_out=tracks(data, "train")[2:4])
    refused(
        TrackNotFoundError, r"no track of 2 of the 7 files of .*train\.tsv, the first '.*' \(line 4\)", lacking
    )
    pooled = store_of(music, "pooled.zarr", kinds=("segments",))
    refused(TrackNotFoundError, r"no raw features of 7 of the 7 files .* `feature_level='all'`", pooled)
    changed = data / "train.tsv"
    lines = changed.read_text().splitlines()
    lines[3] = lines[3].split("\t")[0] + "\t99999"
    changed.write_text("\n".join(lines) + "\n")
    refused(SourceError, r"line 4 of .*train\.tsv: the store .* labels for the 4\.17 s of ")


@pytest.mark.slow
def test_audio_of_any_rate_has_labels_at_the_rate_of_the_frames(tmp_path, clip, store_of):
    for number, rate in enumerate((16_000, 24_000, 44_100)):
        clip(tmp_path / "music" / f"{number}.wav", rate * 2, rate)
    write_manifests(tmp_path / "music", tmp_path / "data", valid=0)
    report = label_store(store_of(tmp_path / "music"), tmp_path / "data", **FAST)
    assert report.labels == {"train": 3 * 149}
    read = read_labels(tmp_path / "data", "train", "km", sample_rate=None)
    assert [len(x) for x in read] == [149] * 3


@pytest.mark.slow
def test_ids_are_those_of_the_build(tmp_path, music, store_of, spec):
    """`--dataset` and `--id-from` are settings of a build, so they are here, too."""
    write_manifests(music, tmp_path / "data", valid=0)
    with pytest.raises(TrackNotFoundError, match="'set/a/0'"):
        label_store(store_of(music), tmp_path / "data", dataset="set", **FAST)


@pytest.mark.slow
def test_progress_counts_every_reading_of_a_track(store, data):
    told = []
    label_store(store, data, progress=lambda *now: told.append(now), **FAST)
    assert told == [(n, 24) for n in range(1, 25)]  # 7 tracks twice, and all 10


@pytest.mark.slow
def test_nothing_is_left_of_a_failure_on_the_way(store, data):
    label_store(store, data, **FAST)
    before = {x.name: x.read_bytes() for x in data.iterdir()}

    def fail(done, total):
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_store(store, data, progress=fail, seed=1, **FAST)
    assert {x.name: x.read_bytes() for x in data.iterdir()} == before
