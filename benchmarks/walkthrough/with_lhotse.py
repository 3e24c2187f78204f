"""The tasks of the walkthrough with lhotse: a manifest of windows, and the arrays beside it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from lhotse import CutSet, NumpyFilesWriter, Recording, RecordingSet
from lhotse.dataset.collation import collate_matrices
from torch.utils.data import DataLoader

from benchmarks.walkthrough.arrays import (
    MODEL,
    check,
    embed,
    exclude,
    join,
    nearest,
    probe,
    query,
    report,
    resume,
    retry,
    similar,
    states,
)

__all__ = ["check", "exclude", "join", "probe", "query", "report", "resume", "retry", "similar"]


def cut_states(cut):
    with torch.inference_mode():
        return MODEL.hidden_states(torch.from_numpy(cut.load_audio().mean(0, keepdims=True)))[0].numpy()


def mean(cut):
    return cut_states(cut).mean(1)


HELPERS = {"extract": [cut_states, mean], "similar": [nearest], "query": [states, embed]}


def extract(paths=None, out="embeddings", function=mean):
    with NumpyFilesWriter(out) as arrays, CutSet.open_writer(f"{out}.jsonl", overwrite=False) as manifest:
        for path in paths or sorted(Path("collection").rglob("*.wav")):
            try:
                recording = Recording.from_file(path, recording_id=lambda x: "/".join(x.with_suffix("").parts[1:]))
                whole = CutSet.from_manifests(recordings=RecordingSet.from_recordings([recording])).resample(
                    24_000
                )
                for cut in whole.cut_into_windows(5, hop=2.5):
                    if not manifest.contains(cut.id):
                        cut.embedding = arrays.store_array(cut.id.replace("/", "-"), function(cut))
                        manifest.write(cut)
            except Exception as error:
                print(path, error)


def look():
    cuts = pd.DataFrame((cut.recording_id, cut.recording.duration) for cut in CutSet.from_file("embeddings.jsonl"))
    print(cuts.groupby(0)[1].agg(["first", "count"]))


def table(layer=3):
    cuts = CutSet.from_file("embeddings.jsonl")
    rows = pd.DataFrame([cut.load_embedding()[layer] for cut in cuts], [cut.recording_id for cut in cuts])
    return rows.groupby(level=0).mean()


def layer():
    return table().to_numpy()


def loader():
    def collate(batch):
        arrays = [torch.from_numpy(np.stack(windows[track])) for track in batch]
        features = collate_matrices(arrays)
        mask = torch.arange(features.shape[1]) < torch.tensor([[len(x)] for x in arrays])
        return features, mask, torch.tensor([codes[track] for track in batch])

    cuts = CutSet.from_file("embeddings.jsonl")
    windows = pd.Series([cut.load_embedding()[3] for cut in cuts], [cut.recording_id for cut in cuts])
    windows = windows.groupby(level=0).agg(list)
    codes = pd.read_csv("labels.csv", index_col="track_id").genre.astype("category").cat.codes
    return next(iter(DataLoader(windows.index, batch_size=4, collate_fn=collate)))


def hdf5():
    with h5py.File("features.h5", "w") as file:
        for cut in CutSet.from_file("embeddings.jsonl"):
            file[cut.id] = cut.load_embedding()


def subset():
    with NumpyFilesWriter("jazz") as arrays, CutSet.open_writer("jazz.jsonl") as manifest:
        for cut in CutSet.from_file("embeddings.jsonl").filter(lambda cut: cut.id.startswith("jazz/")):
            cut.embedding = arrays.store_array(
                cut.id.replace("/", "-"), cut.load_embedding()[[3]].astype(np.float16)
            )
            manifest.write(cut)


def before_merge():
    extract(sorted(Path("other").rglob("*.wav")), "other-embeddings")


def merge():
    (CutSet.from_file("embeddings.jsonl") + CutSet.from_file("other-embeddings.jsonl")).to_file("merged.jsonl")


def take_over():
    with NumpyFilesWriter("taken") as arrays, CutSet.open_writer("taken.jsonl") as manifest:
        for path in Path("tree/segments").rglob("*.npy"):
            track = "/".join(path.with_suffix("").parts[2:])
            recording = Recording.from_file(f"collection/{track}.wav", recording_id=track)
            whole = CutSet.from_manifests(recordings=RecordingSet.from_recordings([recording]))
            for cut, value in zip(whole.cut_into_windows(5, hop=2.5), np.load(path), strict=False):
                cut.embedding = arrays.store_array(cut.id.replace("/", "-"), value)
                manifest.write(cut)


def frames():
    extract(out="frames", function=cut_states)


def follow():
    extract()
    cuts = CutSet.from_file("embeddings.jsonl").to_eager()
    cuts.filter(lambda cut: Path(cut.recording.sources[0].source).exists()).to_file("embeddings.jsonl")


def left(task):
    """Which tracks a task has left behind; to check it."""
    files = {"subset": "jazz", "merge": "merged", "take_over": "taken", "resume": "killed"}
    files |= {"exclude": "first-takes", "frames": "frames"}
    return {cut.recording_id for cut in CutSet.from_file(f"{files.get(task, 'embeddings')}.jsonl")}
