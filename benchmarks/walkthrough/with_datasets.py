"""The tasks of the walkthrough with Hugging Face's datasets."""

from __future__ import annotations

from pathlib import Path

import h5py
import librosa
import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch.utils.data import DataLoader

from benchmarks.walkthrough.arrays import check, embed, join, nearest, probe, query, report, similar, states

__all__ = ["check", "join", "probe", "query", "report", "similar"]


def row(path, function=embed):
    try:
        seconds, segments, error = librosa.get_duration(path=path), function(path), None
    except Exception as failure:
        seconds, segments, error = None, None, str(failure)
    return {"path": path, "seconds": seconds, "segments": segments, "error": error}


def names(folder="collection"):
    return Dataset.from_dict({"path": [str(path) for path in sorted(Path(folder).rglob("*.wav"))]})


def extract():
    names().map(row, input_columns="path").save_to_disk("dataset")


def load(folder="dataset"):
    return load_from_disk(folder).filter(lambda error: error is None, input_columns="error")


HELPERS = {"extract": [states, embed, row, names], "look": [load], "similar": [nearest]}


def look():
    for found in load():
        print(found["path"], found["seconds"], len(found["segments"]))


def layer():
    return np.stack([np.mean(segments, 0)[3] for segments in load()["segments"]])


def table():
    return pd.DataFrame(
        layer(), [str(Path(path).relative_to("collection").with_suffix("")) for path in load()["path"]]
    )


def loader():
    def collate(batch):
        arrays = [torch.tensor(found["segments"])[:, 3] for found in batch]
        features = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True)
        mask = torch.arange(features.shape[1]) < torch.tensor([[len(x)] for x in arrays])
        return features, mask, torch.tensor([found["genre"] for found in batch])

    genres = pd.read_csv("labels.csv", index_col="track_id").genre[table().index]
    labelled = load().add_column("genre", genres.to_list()).class_encode_column("genre")
    return next(iter(DataLoader(labelled, batch_size=4, collate_fn=collate)))


def hdf5():
    with h5py.File("features.h5", "w") as file:
        for found in load():
            file[found["path"]] = np.array(found["segments"])


def subset():
    jazz = load().filter(lambda path: "/jazz/" in path, input_columns="path")
    jazz = jazz.map(
        lambda segments: {"segments": np.array(segments, np.float16)[:, [3]]}, input_columns="segments"
    )
    jazz.save_to_disk("jazz")


def before_merge():
    names("other").map(row, input_columns="path").save_to_disk("other-dataset")


def merge():
    concatenate_datasets([load(), load("other-dataset")]).save_to_disk("merged")


def take_over():
    paths = sorted(Path("tree").rglob("*.npy"))
    Dataset.from_list([{"path": str(path), "segments": np.load(path)} for path in paths]).save_to_disk("taken")


def resume():
    for path in names()["path"]:
        part = Path("killed", path.replace("/", "_"))
        if not (part / "state.json").exists():
            Dataset.from_list([row(path)]).save_to_disk(part)
    parts = concatenate_datasets([load_from_disk(part) for part in Path("killed").iterdir()])
    parts.save_to_disk("resumed")


def retry():
    there = load()
    failed = load_from_disk("dataset").filter(lambda error: error is not None, input_columns="error")
    tried = failed.map(row, input_columns="path", load_from_cache_file=False, features=there.features)
    concatenate_datasets([there, tried]).save_to_disk("retried")


def exclude():
    first = names().filter(lambda path: not path.endswith("-2.wav"), input_columns="path")
    first.map(row, input_columns="path").save_to_disk("first-takes")


def frames():
    names().map(row, input_columns="path", fn_kwargs={"function": states}).save_to_disk("frames")


def follow():
    there = load("retried").filter(lambda path: Path(path).exists(), input_columns="path")
    known = set(there["path"])
    new = names().filter(lambda path: path not in known, input_columns="path")
    concatenate_datasets([there, new.map(row, input_columns="path")]).save_to_disk("followed")


def left(task):
    """Which tracks a task has left behind; to check it."""
    folders = {"subset": "jazz", "merge": "merged", "take_over": "taken", "resume": "resumed", "retry": "retried"}
    folders |= {"exclude": "first-takes", "frames": "frames", "follow": "followed"}
    return {str(Path(path).with_suffix("")) for path in load_from_disk(folders[task])["path"]}
