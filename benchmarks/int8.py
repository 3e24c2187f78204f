"""How fast int8 is beside the float32 engine and the plain loop, and how near to float32 on music.

    python -m benchmarks.int8 CHECKPOINT [--parts products thread accuracy build] [--rounds 3] [--audio FOLDER]

products  one thread: torch.mm in float32 and oneDNN in int8 on the shapes of the 95M model
thread    CPU time of one thread for a window
accuracy  centred cosines with float32 on music: of all frames, and of windows pooled over frames
build     wall time of `fs-extract build --feature-level segments`, beside benchmarks/plain_loop.py

CHECKPOINT is made of random weights of the shape of MERT-v1-95M if it does not exist; without --audio, accuracy
hears the pieces of benchmarks/music.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.encoder import BATCH, SECONDS, in_turns, plain, pooled, ratio
from benchmarks.music import write_pieces
from benchmarks.plain_loop import load_peer
from featurestore.audio import discover, load_audio
from featurestore.models import MertEncoder, load_model, save_random_checkpoint
from featurestore.models.convolutions import Room
from featurestore.models.engine import CpuEngine
from featurestore.models.fidelity import fidelity
from featurestore.models.int8 import Int8Engine, Int8Linear

_PARTS = ["products", "thread", "accuracy", "build"]
SHAPES = {"qkv": (374, 768, 2304), "out": (374, 768, 768), "up": (374, 768, 3072), "down": (374, 3072, 768)}
SHAPES["conv"] = (1024, 1536, 512)


def native(folder: Path) -> MertEncoder:
    model = load_model(folder)
    assert isinstance(model, MertEncoder)
    return model


def products(rounds: int) -> None:
    torch.set_num_threads(1)
    for name, (rows, inputs, outputs) in SHAPES.items():
        x, weight, out = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.empty(rows, outputs)
        dense, room = Int8Linear(weight, None, after_gelu=name in ("down", "conv")), Room()
        things = {"float32": lambda: [torch.mm(x, weight.T, out=out) for _ in range(5)]}  # noqa: B023
        things["int8"] = lambda: [dense(x, room) for _ in range(5)]  # noqa: B023
        times = in_turns(things, 5 * rounds, time.thread_time, False)
        count = 10 * rows * inputs * outputs / 1e9
        rates = (f"{key} {count / min(values):.0f}" for key, values in times.items())
        print(f"  {name}: G operations/s, quantising included:", *rates, flush=True)


def thread(folder: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    peer, _ = load_peer(folder)
    model = native(folder)
    wave = torch.randn(BATCH, SECONDS * model.sample_rate)
    things = {
        "plain": partial(plain, peer, wave),
        "engine": partial(pooled, CpuEngine(model), wave),
        "int8": partial(pooled, Int8Engine(model), wave),
    }
    times = in_turns(things, rounds, time.thread_time)
    for slow in ("plain", "engine"):
        print(f"  int8, times faster than {slow}: {ratio(times, slow, 'int8'):.2f}")


def accuracy(folder: Path, audio: Path) -> None:
    model = native(folder)
    samples = SECONDS * model.sample_rate
    tracks = [torch.as_tensor(load_audio(track.path, model.sample_rate)) for track in discover(audio)]
    waves = torch.stack([track[:samples] for track in tracks if len(track) >= samples])
    engine, exact = Int8Engine(model), CpuEngine(model)
    frames = fidelity(engine, exact, waves)
    found, wanted = (torch.from_numpy(pooled(encoder, waves)) for encoder in (engine, exact))
    mean = wanted.mean(dim=0)
    a, b = ((states - mean).transpose(0, 1).flatten(1) for states in (found, wanted))
    windows = torch.cosine_similarity(a, b)
    print(f"  {len(waves)} windows")
    for layer, (cosine, error) in enumerate(zip(frames.cosines, frames.errors, strict=True)):
        print(f"  layer {layer}: frames {cosine:.5f}, windows {windows[layer]:.5f}, largest error {error:.4f}")


def build(folder: Path, rounds: int, audio: Path) -> None:
    command = str(Path(sys.executable).with_name("fs-extract"))
    options = ["--model", folder, "--feature-level", "segments"]
    programs = {
        "plain": ([sys.executable, "-m", "benchmarks.plain_loop", folder, audio], []),
        "fp32": ([command, "build", audio], options),
        "int8": ([command, "build", audio], [*options, "--precision", "int8"]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        number = iter(range(10_000))

        def run(name: str) -> None:
            before, after = programs[name]
            words = map(str, [*before, Path(scratch, f"out{next(number)}"), *after])
            subprocess.run(list(words), capture_output=True, check=True)

        times = in_turns({name: partial(run, name) for name in programs}, rounds, time.perf_counter)
    for slow in ("plain", "fp32"):
        print(f"  int8, times faster than {slow}: {ratio(times, slow, 'int8'):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS[:3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--audio", type=Path)
    arguments = parser.parse_args()
    if not arguments.checkpoint.is_dir():
        save_random_checkpoint(arguments.checkpoint, shape="95m")
    cores = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        audio = arguments.audio
        if audio is None:
            audio = Path(scratch)
            write_pieces(audio)
        for part in arguments.parts:
            torch.set_num_threads(cores)
            print(part, flush=True)
            folder, rounds = arguments.checkpoint, arguments.rounds
            if part == "products":
                products(rounds)
            elif part == "thread":
                thread(folder, rounds)
            elif part == "accuracy":
                accuracy(folder, audio)
            else:
                build(folder, rounds, audio)


if __name__ == "__main__":
    main()
