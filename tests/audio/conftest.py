"""Real files of sound, made here."""

from pathlib import Path

import numpy as np
import pytest
import soundfile


def tone(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Chords with a little noise, [frames, channels] within [-1, 1]; loud and quiet in turn."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate))[:, None] / rate
    pitch = 220.0 * (1 + np.arange(channels))
    loudness = np.where(np.sin(2 * np.pi * t / 3) < 0, 0.05, 0.5)
    return loudness * np.sin(2 * np.pi * pitch * t) + 0.05 * rng.uniform(-1, 1, (len(t), channels))


@pytest.fixture
def write(tmp_path):
    """Writes an audio file below tmp_path and returns its path; by default 1.5 s of mono at 8 kHz."""

    def write_file(name="a.wav", signal=None, *, rate=8_000, seconds=1.5, channels=1, **keywords) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            if "format" not in keywords:
                keywords["format"] = {"wav": "WAV", "mp3": "MP3", "opus": "OGG"}.get(
                    path.suffix[1:].lower(), path.suffix[1:].upper()
                )
            samples = tone(seconds, rate, channels) if signal is None else signal
            soundfile.write(file, samples, rate, **keywords)
        return path

    return write_file
