"""k-means of frames that are streamed: it finds clusters, is repeatable, and a saved fit is what was fitted."""

import dataclasses
import json
import pickle
import sys
import tracemalloc

import numpy as np
import pytest

from featurestore.errors import MissingDependencyError, SettingError, SourceError, SpecMismatchError
from featurestore.training.labels import KMeansModel, fit_kmeans
from featurestore.training.labels.kmeans import _batches
from featurestore.training.labels.kmeans_model import of_layer


def blobs(count=4_000, clusters=7, seed=0):
    """Frames around centres far apart, in the order of the clusters, as a track comes."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 20, (clusters, 5)).astype(np.float32)
    frames = np.repeat(centres, count // clusters, axis=0)
    return centres, frames + random.normal(0, 0.1, frames.shape).astype(np.float32)


def in_blocks(frames, size=374):
    return lambda _: (frames[i : i + size] for i in range(0, len(frames), size))


@pytest.mark.slow
def test_clusters_that_are_apart_are_found():
    centres, frames = blobs()
    found, count = fit_kmeans(in_blocks(frames), clusters=7, batch_size=500, passes=3)
    assert count == len(frames)
    distances = np.linalg.norm(found[:, None] - centres, axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(7))
    assert distances.min(axis=1).max() < 0.05


@pytest.mark.slow
def test_it_is_nearly_as_good_as_k_means_of_everything_at_once():
    from sklearn.cluster import KMeans

    frames = np.random.default_rng(0).normal(size=(6_000, 6)).astype(np.float32)
    found, _ = fit_kmeans(in_blocks(frames), clusters=20, batch_size=1_000)
    best = KMeans(20, n_init=1, random_state=0).fit(frames).inertia_
    inertia = ((frames[:, None] - found) ** 2).sum(axis=2).min(axis=1).sum()
    assert inertia < 1.03 * best


@pytest.mark.slow
def test_the_same_seed_gives_the_same_centres_and_another_one_others():
    _, frames = blobs()
    again = [fit_kmeans(in_blocks(frames), clusters=9, batch_size=300, passes=2, seed=s)[0] for s in (3, 3, 4)]
    np.testing.assert_array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


@pytest.mark.slow
def test_blocks_may_be_of_any_size():
    _, frames = blobs()
    whole, _ = fit_kmeans(in_blocks(frames, 10_000), clusters=7, batch_size=1_000, passes=1)
    pieces, _ = fit_kmeans(in_blocks(frames, 1), clusters=7, batch_size=1_000, passes=1)
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.slow
def test_each_pass_is_told_its_number_and_reads_everything():
    _, frames = blobs(1_000)
    asked = []

    def read(number):
        asked.append(number)
        return in_blocks(frames)(number)

    assert fit_kmeans(read, clusters=5, batch_size=400, passes=3)[1] == len(frames)
    assert asked == [0, 1, 2]


def test_memory_does_not_depend_on_how_many_frames_there_are():
    random = np.random.default_rng(0)
    blocks = (random.random((100, 256), dtype=np.float32) for _ in range(400))
    tracemalloc.start()
    frames = sum(len(batch) for batch in _batches(blocks, 200, random))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 40_000
    assert peak < 20 * 200 * 256 * 4  # twenty batches


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clusters": 0}, "`clusters` must be at least 1"),
        ({"clusters": 5, "passes": 0}, "`passes` must be at least 1"),
        ({"clusters": 50, "batch_size": 40}, "`batch_size` must be at least 50, as many as `clusters`, not 40"),
        ({"clusters": 500, "batch_size": 500}, "70 frames make no 500 `clusters`"),
        ({"clusters": 5, "seed": -1}, "`seed` must be"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    _, frames = blobs(70)
    with pytest.raises(SettingError, match=message):
        fit_kmeans(in_blocks(frames), **settings)
    with pytest.raises(SettingError, match="no frames"):
        fit_kmeans(lambda _: [], clusters=2)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[labels\]'"):
        fit_kmeans(in_blocks(blobs()[1]), clusters=2)


@pytest.fixture
def fit(spec):
    centers = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    return KMeansModel(centers=centers, spec=of_layer(spec, 7), details={"seed": 3, "clusters": 11})


def test_the_nearest_centre_is_assigned(fit):
    frames = np.random.default_rng(1).normal(size=(20_000, 4)).astype(np.float32)
    nearest = np.linalg.norm(frames[:, None].astype(np.float64) - fit.centers, axis=2).argmin(axis=1)
    assert (fit.assign(frames) == nearest).mean() > 0.9999
    np.testing.assert_array_equal(fit.assign(fit.centers), np.arange(11))


def test_a_fit_comes_back_as_it_was_saved_without_a_pickle(fit, tmp_path):
    fit.save(tmp_path / "deep" / "fit.npz")
    loaded = KMeansModel.load(tmp_path / "deep" / "fit.npz")
    np.testing.assert_array_equal(loaded.centers, fit.centers)
    assert (loaded.spec, loaded.details, loaded.layer) == (fit.spec, fit.details, 7)
    with np.load(tmp_path / "deep" / "fit.npz", allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
    assert about["fingerprint"] == fit.spec.fingerprint
    fit.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "deep" / "fit.npz").read_bytes()


def test_a_fit_is_for_its_features_alone(fit, spec, other_spec):
    fit.check(spec)
    fit.check(dataclasses.replace(spec, layers=(0, 7, 12)))
    for other in (other_spec, dataclasses.replace(spec, layers=(7,), overlap=0.0)):
        with pytest.raises(SpecMismatchError, match="the fit is of other features") as caught:
            fit.check(other)
        assert set(caught.value.differences) in ({"revision"}, {"overlap"})


class Boom:
    def __reduce__(self):
        return print, ("boom",)


def test_what_is_no_fit_is_refused_and_never_run(fit, tmp_path, capsys):
    path = tmp_path / "fit.npz"

    def refused(message):
        with pytest.raises(SourceError, match=message):
            KMeansModel.load(path)

    refused("cannot be read: No such file")
    path.write_bytes(b"")
    refused("no fit of fs-extract labels")
    path.write_bytes(pickle.dumps(Boom()))
    refused("no fit of fs-extract labels")
    np.savez(path, centers=np.array([Boom()], dtype=object), about=np.array("{}"))
    refused("no fit of fs-extract labels")
    np.savez(path, centers=fit.centers)
    refused("no fit of fs-extract labels")
    for change in ({"format": 2}, {"fingerprint": "0" * 64}, {"spec": {}}):
        about = {"format": 1, "fingerprint": fit.spec.fingerprint, "spec": fit.spec.to_dict(), **change}
        np.savez(path, centers=fit.centers, about=np.array(json.dumps(about)))
        refused("no fit of fs-extract labels")
    for centers in (fit.centers[:, :3], fit.centers[:0], fit.centers.astype(np.float64), fit.centers * np.nan):
        dataclasses.replace(fit, centers=centers).save(path)
        refused("its centres are")
    fit.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("no fit of fs-extract labels")
    assert capsys.readouterr().out == ""
