import json
import logging
import os
import signal
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featurestore import FeatureSpec, StoreWriter
from fs_extract.commands import run as run_command

MODEL = Path(__file__).parent.parent / "data" / "golden" / "base_v1"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def logging_as_before():
    loggers = [logging.getLogger("featurestore"), logging.getLogger("py.warnings")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    show = warnings.showwarning
    yield
    warnings.showwarning = show
    logging.captureWarnings(False)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in list(os.environ):
        if name.startswith("FEATURESTORE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def run(capfd):
    """Runs the command line in this process."""

    def call(*arguments):
        capfd.readouterr()
        code = run_command([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture
def start(preloaded):
    """Starts the command line in a process of its own; ends what a test has left running."""
    processes = []

    def begin(*arguments, **environment):
        process = preloaded.start(
            ["-m", "fs_extract", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def clip():
    """Writes a clip of noise and a tone, the same for the same arguments."""

    def write(path, seconds=1.2, *, rate=24_000, seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        time = np.arange(round(seconds * rate)) / rate
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time) + random.normal(0, 0.05, len(time)), rate)
        return path

    return write


@pytest.fixture
def music(tmp_path, clip):
    """Three clips."""
    for number, name in enumerate(("a/one.wav", "a/two.flac", "b/three.ogg")):
        clip(tmp_path / "music" / name, seed=number)
    return tmp_path / "music"


@pytest.fixture
def model_folder():
    return MODEL


@pytest.fixture
def small_store(tmp_path):
    """A store of three tracks that no model has made; one of the ids would ring a terminal's bell."""
    path = tmp_path / "small.zarr"
    random = np.random.default_rng(0)
    with StoreWriter(path, spec=FeatureSpec.for_arrays(layers=3, dim=8)) as writer:
        for track_id in ("a/one", "a/two", "bell\x07\nhere"):
            writer.put(track_id, {"segments": random.normal(size=(5, 3, 8))})
    return path
