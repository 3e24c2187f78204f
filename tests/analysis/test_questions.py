"""Questions to a store: similar tracks and moments, its table of tracks, datasets of torch."""

import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.analysis import collate_ragged
from featurestore.errors import SettingError, TrackNotFoundError

SPEC = FeatureSpec.for_arrays(layers=2, dim=8)


def segments(number):
    return np.random.default_rng(number % 5).normal(size=(2 + number % 3, 2, 8)) + 0.01 * number + 3


@pytest.fixture
def store(tmp_path):
    with StoreWriter(tmp_path / "s.zarr", spec=SPEC, durable=False) as writer:
        for number in range(10):
            with writer.track(
                f"t{number}", kinds=["segments"], attributes={"warnings": ["quiet"] * number}
            ) as track:
                block = segments(number)
                track.append(segments=block, starts=(2.5 * np.arange(len(block))).tolist())
    return FeatureStore(tmp_path / "s.zarr")


def test_a_track_is_like_its_twin(store):
    found = store.similar("t1", layer=1, k=3)
    assert len(found) == 3
    assert "t1" not in [match.track_id for match in found]
    rows = store.aggregated(layer=1).to_numpy().astype(np.float64)
    rows -= rows.mean(axis=0)
    scores = rows @ rows[1] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[1])
    scores[1] = -2
    assert found[0].track_id == store.track_ids[int(scores.argmax())]
    np.testing.assert_allclose([match.score for match in found], np.sort(scores)[:-4:-1], atol=1e-5)


def test_a_moment_is_like_the_moment_of_its_twin(store):
    match = store.similar(("t1", 2.6), layer=0, k=1)[0]
    assert (match.track_id, match.start) == ("t6", 2.5)
    match = store.similar(("t2", 3.75), layer=0, k=1)[0]  # as near to 2.5 as to 5
    assert (match.track_id, match.start) == ("t7", 5.0)
    with pytest.raises(SettingError, match=r"0 to 7\.5 s, not 9"):
        store.similar(("t2", 9.0), layer=0)
    assert len(store.similar("t1", layer=0, level="segments", k=99)) == 29 - 3


def test_a_store_that_changes_is_looked_at_again(store):
    assert store.similar("t1", layer=0, k=99)[0].track_id == "t6"
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("new", {"segments": segments(1)})
    assert store.similar("t1", layer=0, k=99)[0].track_id == "new"
    assert len(pickle.loads(pickle.dumps(store)).similar("t1", layer=0, k=99)) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": "t1"}, "`layer` is needed, one of 0, 1"),
        ({"query": "t1", "layer": 2}, "no layer 2"),
        ({"query": "t1", "layer": 1, "level": "raw"}, "aggregated or segments"),
        ({"query": "t1", "layer": 1, "metric": "l2"}, "cosine"),
        ({"query": "t1", "layer": 1, "k": 0}, "`k`"),
        ({"layer": 1}, "one of them"),
        ({"query": "t1", "audio": "x.wav", "layer": 1}, "one of them"),
        ({"audio": "x.wav", "layer": 1}, "no model of this library"),
    ],
)
def test_odd_questions(store, arguments, message):
    with pytest.raises(SettingError, match=message):
        store.similar(**arguments)


def test_an_unknown_track(store):
    with pytest.raises(TrackNotFoundError, match="did you mean"):
        store.similar("t11", layer=1)


def test_the_table_of_tracks(store):
    assert store.tracks[3] == {
        "track_id": "t3",
        "path": None,
        "seconds": None,
        "segments": 2,
        "sha256": None,
        "kinds": ["segments", "aggregated"],
        "warnings": ["quiet"] * 3,
    }
    assert store.tracks.to_pandas().loc["t4", "segments"] == 3


def test_tables_of_features(store):
    frame = store.aggregated(layer=1).to_pandas()
    assert frame.index.tolist() == store.track_ids
    np.testing.assert_array_equal(frame.to_numpy(), store.aggregated(layer=1)[:])
    assert store.aggregated().to_pandas()[1].equals(frame)
    rows = store.segments(layer=0).to_pandas()
    assert rows.index.names == ["track", "start"]
    np.testing.assert_array_equal(rows.loc["t2"].to_numpy(), store.segments("t2", layer=0)[:])
    assert store.segments("t2", layer=0).to_pandas().index.tolist() == [0, 2.5, 5, 7.5]


def labels(store):
    return {track_id: ["rock", "jazz"][int(track_id[1:]) % 2] for track_id in store.track_ids}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_of_tracks_of_different_lengths(store, workers):
    dataset = store.to_torch_dataset("segments", layer=1, labels=labels(store))
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=workers,
        collate_fn=collate_ragged,
        multiprocessing_context="fork" if workers else None,  # spawn: tests/store/test_other_processes.py
    )
    batches = list(loader)
    assert [name for batch in batches for name in batch["track_id"]] == store.track_ids
    for batch in batches:
        assert batch["mask"].sum(dim=1).tolist() == batch["lengths"].tolist()
        for name, block, length, label in zip(
            batch["track_id"], batch["features"], batch["lengths"], batch["label"], strict=True
        ):
            np.testing.assert_array_equal(block[:length].numpy(), store.segments(name, layer=1)[:])
            assert not block[length:].any()
            assert dataset.classes[label] == labels(store)[name]


def test_items_of_one_row(store):
    dataset = store.to_torch_dataset(layer=[0, 1], labels=dict.fromkeys(store.track_ids[:4], 0.5), missing="drop")
    assert len(dataset) == 4
    assert dataset[-1]["features"].shape == (2, 8)
    assert dataset[0]["label"] == 0.5
    assert "label" not in store.to_torch_dataset()[0]
    with pytest.raises(IndexError):
        dataset[4]
    with pytest.raises(SettingError, match="level"):
        store.to_torch_dataset("frames")


def test_splits_hold_groups_together(store):
    dataset = store.to_torch_dataset(layer=0, labels=labels(store))
    parts = dataset.split(0.5, 0.3, 0.2)
    assert [len(part) for part in parts] == [5, 3, 2]
    assert sorted(name for part in parts for name in part.track_ids) == store.track_ids
    assert all(part.classes == ["jazz", "rock"] for part in parts)
    groups = [name in ("t1", "t2", "t3", "t4") for name in dataset.track_ids]
    for seed in range(4):
        first, second = dataset.split(0.6, 0.4, by="group", groups=groups, seed=seed)
        assert {len(first), len(second)} == {6, 4}
    for wrong in ((1.0,), (0.5, 0.4), (1.5, -0.5)):
        with pytest.raises(SettingError, match="shares"):
            dataset.split(*wrong)
    with pytest.raises(SettingError, match="`by`"):
        dataset.split(0.5, 0.5, by="group")
    with pytest.raises(SettingError, match="3 groups for 10"):
        dataset.split(0.5, 0.5, by="group", groups=[1, 2, 3])
