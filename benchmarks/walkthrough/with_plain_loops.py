"""The tasks of the walkthrough with a loop over files that saves .npy, as people write it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import librosa
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from benchmarks.walkthrough.arrays import (
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

HELPERS = {"extract": [states, embed], "similar": [nearest]}


def extract(paths=None, out="feats", function=embed):
    for path in paths or sorted(Path("collection").rglob("*.wav")):
        target = Path(out, *path.parts[1:]).with_suffix(".npy")
        if target.exists():
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save("part.npy", function(path))
            os.replace("part.npy", target)
        except Exception as error:
            print(path, error)


def look():
    for path in sorted(Path("feats").rglob("*.npy")):
        seconds = librosa.get_duration(path=Path("collection", *path.parts[1:]).with_suffix(".wav"))
        print(path, seconds, len(np.load(path)))


def layer():
    return np.stack([np.load(path).mean(0)[3] for path in sorted(Path("feats").rglob("*.npy"))])


def table():
    ids = [str(Path(*path.parts[1:]).with_suffix("")) for path in sorted(Path("feats").rglob("*.npy"))]
    return pd.DataFrame(layer(), ids)


def loader():
    def collate(batch):
        arrays = [torch.from_numpy(np.load(f"feats/{track}.npy")[:, 3]) for track in batch]
        features = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True)
        mask = torch.arange(features.shape[1]) < torch.tensor([[len(x)] for x in arrays])
        return features, mask, torch.tensor([codes[track] for track in batch])

    labels = pd.read_csv("labels.csv", index_col="track_id").genre
    codes = labels.astype("category").cat.codes
    return next(iter(DataLoader(labels.index, batch_size=4, collate_fn=collate)))


def hdf5():
    with h5py.File("features.h5", "w") as file:
        for path in Path("feats").rglob("*.npy"):
            file[str(Path(*path.parts[1:]).with_suffix(""))] = np.load(path)


def subset():
    for path in Path("feats/jazz").rglob("*.npy"):
        Path("jazz").mkdir(exist_ok=True)
        np.save(Path("jazz", path.name), np.load(path)[:, [3]].astype(np.float16))


def before_merge():
    extract(sorted(Path("other").rglob("*.wav")), "other-feats")


def merge():
    shutil.copytree("feats", "merged")
    shutil.copytree("other-feats", "merged", dirs_exist_ok=True)


def take_over():
    """They are what this tool stores."""


def frames():
    extract(out="frames", function=states)


def follow():
    extract()
    for path in Path("feats").rglob("*.npy"):
        if not Path("collection", *path.parts[1:]).with_suffix(".wav").exists():
            path.unlink()


def left(task):
    """Which tracks a task has left behind; to check it."""
    folders = {
        "subset": "jazz",
        "merge": "merged",
        "resume": "killed",
        "exclude": "first-takes",
        "frames": "frames",
    }
    folder = folders.get(task, "feats")
    return {str(path.relative_to(folder).with_suffix("")) for path in Path(folder).rglob("*.npy")}
