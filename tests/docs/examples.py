"""What the examples of docstrings may assume: names, and a working folder with music and a store."""

import wave
from pathlib import Path

import numpy as np

import featurestore
from featurestore import FeatureSpec, StoreWriter

TRACKS = ("folk/air", "jazz/blue", "rock/song")
SECONDS, RATE = 12, 24_000


def names():
    """The public names and numpy, as the API reference says."""
    return {name: getattr(featurestore, name) for name in featurestore.__all__} | {"np": np}


def prepare(folder):
    """Three pieces of music in `music`; their features in `features.zarr`; manifests and labels in `data`.

    The features are random: 13 states of 768 numbers, four windows for each piece.
    """
    time = np.arange(SECONDS * RATE) / RATE
    random = np.random.default_rng(0)
    with StoreWriter(folder / "features.zarr", spec=FeatureSpec.for_arrays(layers=13, dim=768)) as writer:
        for number, track in enumerate(TRACKS, start=1):
            path = Path(folder, "music", f"{track}.wav")
            path.parent.mkdir(parents=True)
            tones = sum(np.sin(2 * np.pi * 110 * number * step * time) / step for step in (1, 2, 3, 5))
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes((tones * 8_000).astype("<i2").tobytes())
            raw = random.normal(size=(4, 13, 6, 768)).astype(np.float32)
            with writer.track(track) as one:
                one.append(raw=raw, segments=raw.mean(axis=2), starts=[0.0, 2.5, 5.0, 7.0])
        writer.pack()
    data = folder / "data"
    data.mkdir()
    samples, frames = SECONDS * RATE, SECONDS * 75
    for split, tracks in (("train", TRACKS[:2]), ("valid", TRACKS[2:])):
        lines = ["../music", *(f"{track}.wav\t{samples}" for track in tracks)]
        (data / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        tokens = [" ".join(map(str, random.integers(0, 4, size=frames))) for _ in tracks]
        (data / f"{split}.km").write_text("\n".join(tokens) + "\n")
    (data / "dict.km.txt").write_text("".join(f"{token} 1\n" for token in range(4)))
