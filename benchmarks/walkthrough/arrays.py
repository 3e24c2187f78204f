"""What remains to be written once a tool has given arrays: the same for plain loops, lhotse and datasets.

`states` is the model's part of an extraction; the line that loads the model is not counted for any tool.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import transformers
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore import load_model

MODEL = load_model("mini")


def states(path):
    """Hidden states of windows of 5 s with half overlap: [segment, layer, frame, feature]."""
    audio = torch.from_numpy(librosa.load(path, sr=24_000)[0])
    with torch.inference_mode():
        return MODEL.hidden_states(audio.unfold(0, 120_000, 60_000)).numpy()


def embed(path):
    """The means of the windows: [segment, layer, feature]."""
    return states(path).mean(2)


def check():
    print(torch.__version__, transformers.__version__, torch.cuda.is_available())


def nearest(table, row):
    rows = table - table.mean()
    row = row - table.mean()
    return (rows @ row / np.linalg.norm(rows, axis=1) / np.linalg.norm(row)).sort_values(ascending=False)


def similar(table):
    return nearest(table, table.loc["rock/iggy-1"]).drop("rock/iggy-1")


def query(table):
    return nearest(table, embed("query.wav").mean(0)[3])


def probe(layers):
    labels = pd.read_csv("labels.csv", index_col="track_id")
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 4, 5)))
    for layer, table in layers.items():
        y, groups = labels.genre[table.index], labels.artist[table.index]
        scores = cross_val_score(model, table, y, groups=groups, cv=GroupKFold(3), scoring="balanced_accuracy")
        print(layer, scores.mean(), scores.std())


def report(table):
    labels = pd.read_csv("labels.csv", index_col="track_id")
    table.T.describe().T.join(labels).to_html("report.html")
    for genre, rows in pd.DataFrame(PCA(2).fit_transform(table), table.index).groupby(labels.genre):
        plt.scatter(rows[0], rows[1], label=genre)
    plt.legend()
    plt.savefig("report.png")


def join(table):
    return pd.read_csv("labels.csv", index_col="track_id").join(table, how="inner")


def resume(extract):
    extract(out="killed")


def retry(extract):
    extract()


def exclude(extract):
    extract([x for x in Path("collection").rglob("*.wav") if not x.match("*-2.wav")], "first-takes")
