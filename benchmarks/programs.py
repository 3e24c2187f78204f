"""Whole programs beside a plain transformers loop: the parts of benchmarks/encoder.py that start processes.

start    from nothing to the features of the first window, beside transformers' from_pretrained of the same weights
build    wall time of `fs-extract build --feature-level segments`, and its CPU time outside the encoder
memory   its peak memory for files of some lengths
song     its peak memory at both levels for one window of minutes, for a checkpoint of --shape mert2-fs
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from featurestore import FeatureExtractor
from featurestore import build as build_store
from featurestore.models.kernels.engine import CpuEngine

OURS = """
import time; begin = time.perf_counter(), time.process_time()
import sys, numpy, torch
imported = time.perf_counter(), time.process_time()
from featurestore import FeatureExtractor
extractor = FeatureExtractor(model=sys.argv[1])
loaded = time.perf_counter(), time.process_time()
next(extractor.encode([numpy.zeros(5 * extractor.model.sample_rate, numpy.float32)], raw=False))
print(*(x - y for t in (imported, loaded, (time.perf_counter(), time.process_time())) for x, y in zip(t, begin)))
"""
THEIRS = """
import time; begin = time.perf_counter(), time.process_time()
import sys, numpy, torch
imported = time.perf_counter(), time.process_time()
from transformers import HubertModel
model = HubertModel.from_pretrained(sys.argv[1]).eval()
loaded = time.perf_counter(), time.process_time()
with torch.inference_mode():
    model(torch.zeros(1, 120_000), output_hidden_states=True)
print(*(x - y for t in (imported, loaded, (time.perf_counter(), time.process_time())) for x, y in zip(t, begin)))
"""
"""Each prints wall and CPU seconds since its beginning: torch is there, the model is there, the window is done."""


_MEASURE = """
import os, sys
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a program and prints its peak resident memory, KiB. Linux counts to it that of the process which starts it:
this small one, and not that of the benchmarks with its models."""


def in_turns(things: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each thing gives in each round, after one round that does not count."""
    results: dict[str, list[Any]] = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            result = thing()
            if number:
                results[name].append(result)
    return results


def start(folder: Path, rounds: int) -> dict[str, float]:
    """Fresh processes, files in the page cache; ratios are medians of those within a round."""
    with tempfile.TemporaryDirectory() as scratch:
        # transformers takes the weights of a HubertModel by the same names, but not the family's name.
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "hubert", "architectures": ["HubertModel"]}
        Path(scratch, "config.json").write_text(json.dumps(config))
        Path(scratch, "model.safetensors").symlink_to((folder / "model.safetensors").resolve())

        def run(program: str, model: Path) -> list[float]:
            command = [sys.executable, "-c", program, str(model)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            return [float(x) for x in result.stdout.split()]

        programs = {"ours": partial(run, OURS, folder), "theirs": partial(run, THEIRS, Path(scratch))}
        times = in_turns(programs, rounds)
    report = {}
    for clock, kind in enumerate(("wall", "CPU")):
        ours, theirs = ([t[clock::2] for t in times[name]] for name in ("ours", "theirs"))
        pairs = list(zip(ours, theirs, strict=True))
        report |= {
            f"{kind}: import torch, s": median(x[0] for x in ours),
            f"{kind}: import and load, s": median(x[1] for x in ours),
            f"{kind}: to the first window, s": median(x[2] for x in ours),
            f"{kind}: transformers to the first window, s": median(y[2] for y in theirs),
            f"{kind}: import and load, times faster": median(y[1] / x[1] for x, y in pairs),
            f"{kind}: the same after import torch": median((y[1] - y[0]) / (x[1] - x[0]) for x, y in pairs),
            f"{kind}: to the first window, times faster": median(y[2] / x[2] for x, y in pairs),
            f"{kind}: the most that import torch leaves": median(y[1] / x[0] for x, y in pairs),
        }
    return report


def build(folder: Path, rounds: int, audio: Path | None) -> dict[str, float]:
    """Wall time of whole programs, and where one of them spends its CPU time."""
    with tempfile.TemporaryDirectory() as scratch:
        if audio is None:
            audio = Path(scratch, "audio")
            audio.mkdir()
            for number in range(2):
                _write_noise(audio / f"{number}.wav", 60, seed=number)
        ours = [str(Path(sys.executable).with_name("fs-extract")), "build", str(audio)]
        options = ["--model", str(folder), "--feature-level", "segments"]
        out = iter(str(Path(scratch, f"out{number}")) for number in range(10_000))

        def run(name: str) -> float:
            if name == "plain":
                command = [sys.executable, "-m", "benchmarks.plain_loop", str(folder), str(audio), next(out)]
            else:
                command = [*ours, next(out), *options, *(["--layers", "7"] if name == "--layers 7" else [])]
            begin = time.perf_counter()
            _run(command)
            seconds = time.perf_counter() - begin
            print(f"  {name} {seconds:.1f} s", flush=True)
            return seconds

        times = in_turns({name: partial(run, name) for name in ("plain", "fs-extract", "--layers 7")}, rounds)
        share = outside(folder, audio, Path(next(out)))
    return {
        "fs-extract, times faster": median(
            x / y for x, y in zip(times["plain"], times["fs-extract"], strict=True)
        ),
        "--layers 7, times faster": median(
            x / y for x, y in zip(times["plain"], times["--layers 7"], strict=True)
        ),
        "CPU time outside the encoder": share,
    }


def outside(folder: Path, audio: Path, store: Path) -> float:
    """Share of a run's CPU time that no thread spends in the encoder; the model is loaded before."""
    extractor = FeatureExtractor(model=folder)
    states, inside = CpuEngine.states, []

    def timed(self: CpuEngine, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        source = states(self, wave, last)
        while True:
            begin = time.thread_time()
            state = next(source, None)
            inside.append(time.thread_time() - begin)
            if state is None:
                return
            yield state

    CpuEngine.states = timed  # type: ignore[method-assign]
    try:
        begin = time.process_time()
        build_store(audio, store, extractor=extractor, feature_level="segments")
        return 1 - sum(inside) / (time.process_time() - begin)
    finally:
        CpuEngine.states = states  # type: ignore[method-assign]


def memory(folder: Path, minutes: list[float]) -> dict[str, float]:
    """Peak resident memory of `fs-extract build --feature-level segments` with one file of each length, MB."""
    peaks = {}
    for length in minutes:
        with tempfile.TemporaryDirectory() as scratch:
            audio = Path(scratch, "audio.wav")
            _write_noise(audio, int(60 * length))
            command = [str(Path(sys.executable).with_name("fs-extract")), "build", str(audio), f"{scratch}/store"]
            peak = _run([*command, "--model", str(folder), "--feature-level", "segments"])
        peaks[f"{length:g} minutes, MB"] = peak
        print(f"  {length:g} minutes: {peak:.0f} MB", flush=True)
    return peaks


def song(folder: Path, minutes: float = 6) -> dict[str, float]:
    """Peak resident memory of `fs-extract build` with one window of a whole track, MB; bars in bytes."""
    weights = (folder / "model.safetensors").stat().st_size
    bars, found = {"all": 3e9, "segments": 2 * weights + 1.5e9}, {}
    for level, bar in bars.items():
        with tempfile.TemporaryDirectory() as scratch:
            audio = Path(scratch, "audio.wav")
            _write_noise(audio, int(60 * minutes))
            command = [str(Path(sys.executable).with_name("fs-extract")), "build", str(audio), f"{scratch}/store"]
            peak = _run([*command, "--model", str(folder), "--segment-duration", "full", "--feature-level", level])
        found[f"{level}, MB"] = peak
        found[f"{level}, bar, MB"] = bar / 2**20
    return found


def _run(command: list[str]) -> float:
    """Run a program to its end; its peak resident memory, MB."""
    result = subprocess.run([sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{shutil.which(command[0])} failed:\n{result.stderr}")
    return int(result.stdout) / 1024


def _write_noise(path: Path, seconds: int, seed: int = 0) -> None:
    """Stereo noise of 44.1 kHz, written in pieces: hours of it fit into no memory."""
    generator = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", 44_100, 2, subtype="PCM_16") as file:
        for _ in range(seconds):
            file.write(generator.normal(0, 0.1, (44_100, 2)))
