"""How fast a card extracts features, from a naive loop to what featurestore does: x real time, share of peak.

    python -m benchmarks.cuda [--shape 95m] [--batch 16] [--seconds 600] [--build-seconds 3600] [--rounds 3]
                              [--device cuda:0] [--json F]

naive     one window at a time, float32, pageable memory; all hidden states come back, and are averaged on the host
+batch    `--batch` windows at a time
+pool     averages on the card: 40 KB come back from a window instead of 15 MB
+pinned   through pinned memory
+overlap  the next batch is sent and begun before the results of the last one are waited for
+fp16     half weights, float32 norms and residual stream
host, segments, all
          `build` of `--build-seconds` of files (44.1 kHz stereo, four minutes each: WAV, FLAC, MP3 in turns) into
          a store of this level, with 1, 4, 8 and 16 workers; once, with the share of time in which the model
          waited for audio. What the host could deliver is `host`: segments, by a model that takes no time.

Weights are random, of the shape of MERT-v1-95M; windows are noise. The peak is what torch.mm reaches with large
matrices on the same card, in float32 without TF32 for the first rows and in float16 for the others. Every other
row is the best of `--rounds` after one that does not count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.encoder import flops
from benchmarks.host import NoTime, write_music
from featurestore import FeatureExtractor
from featurestore.encode import WindowEncoder
from featurestore.encode.batching import BatchEncoder
from featurestore.encode.card import exact_float32
from featurestore.encode.transfer import Transfer, transfer_for
from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.kernels.half import to_half
from featurestore.models.mert import MertEncoder
from featurestore.pipeline import build

WINDOW = 5.0
"""Seconds of a window."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    name : str
    seconds : float
        For all windows.
    x_real_time : float
        Seconds of audio, windows that overlap counted once, per second.
    of_peak : float
        Share of what torch.mm reaches in the same precision.
    waited : float
        Share of the time in which the model waited for audio.
    """

    name: str
    seconds: float
    x_real_time: float
    of_peak: float
    waited: float = 0.0


class OneAtATime(Transfer):
    """Pinned copies, each of which is waited for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._pinned: Transfer = transfer_for(device)
        self.send, self.empty_on_host = self._pinned.send, self._pinned.empty_on_host  # type: ignore[method-assign]
        self.receive, self.mark = self._pinned.receive, self._pinned.mark  # type: ignore[method-assign]


def settled(device: torch.device) -> None:
    """Wait for a card."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best(work: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Seconds of the quickest of some rounds, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        settled(device)
        begin = time.perf_counter()
        work()
        settled(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def peak(device: torch.device, dtype: torch.dtype, rounds: int, size: int) -> float:
    """Operations per second of torch.mm."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out, times = torch.empty_like(a), 10

    def multiply() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return 2 * times * size**3 / best(multiply, device, rounds)


@torch.inference_mode()
def naive(model: MertEncoder, device: torch.device, windows: np.ndarray, batch: int) -> list[np.ndarray]:
    """The loop that people write: everything comes back, and is averaged on the host."""
    with exact_float32():
        return [
            model.hidden_states(torch.from_numpy(windows[i : i + batch]).to(device)).cpu().numpy().mean(axis=2)
            for i in range(0, len(windows), batch)
        ]


def drain(encoder: BatchEncoder, windows: np.ndarray) -> list[np.ndarray]:
    """Features of all windows."""
    return [x.segments for x in encoder.encode(((0, window) for window in windows), raw=False)]


def link_music(folder: Path, seconds: float, length: float) -> float:
    """Fill a folder with files of WAV, FLAC and MP3 for so many seconds; how long they are together."""
    (folder / "music").mkdir(parents=True)
    (folder / "files").mkdir()
    files = list(write_music(folder / "files", length).values())
    count = -(-seconds // length)
    for number in range(int(count)):
        file = files[number % len(files)]
        (folder / "music" / f"{number}{file.suffix}").symlink_to(file)
    return count * length


def table(
    *,
    device: torch.device,
    shape: str,
    batch: int,
    seconds: float,
    rounds: int,
    build_seconds: float,
    track_seconds: float = 240.0,
    workers: Sequence[int] = (1, 4, 8, 16),
    matrix: int = 8192,
) -> Iterator[Row]:
    """Measure, row by row; features of all rows are compared with those of the first."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_random_checkpoint(Path(scratch, "model"), shape=shape)
        model = load_model(folder).to(device)
        assert isinstance(model, MertEncoder)
        samples = round(WINDOW * model.sample_rate)
        count = max(1, int(seconds / WINDOW * 2) - 1)
        windows = np.random.default_rng(0).normal(0, 0.1, (count, samples)).astype(np.float32)
        audio = WINDOW * (count + 1) / 2  # windows overlap by half
        work = count * sum(flops(model.config, samples).values())
        on_card = device.type == "cuda"
        single = peak(device, torch.float32, rounds, matrix)
        half = peak(device, torch.float16, rounds, matrix) if on_card else single
        layers = tuple(range(model.layers + 1))

        def row(name: str, thing: Callable[[], list[np.ndarray]], top: float, tolerance: float) -> Row:
            found: list[list[np.ndarray]] = []
            spent = best(lambda: found.append(thing()), device, rounds)
            features = np.concatenate(found[-1])
            if not wanted:
                wanted.append(features)
            error = np.abs(features - wanted[0]).max() / np.abs(wanted[0]).max()
            if not error <= tolerance:
                raise SystemExit(f"{name}: features differ from those of the first row by {error:.1e}")
            return Row(name, spent, audio / spent, work / spent / top)

        def encoder(
            network: Any, transfer: Transfer, dtype: torch.dtype | None = None
        ) -> Callable[[], list[np.ndarray]]:
            made = BatchEncoder(
                model=network, device=device, batch_size=batch, layers=layers, half=dtype, transfer=transfer
            )
            return partial(drain, made, windows)

        wanted: list[np.ndarray] = []
        yield row("naive", partial(naive, model, device, windows, 1), single, 0)
        yield row("+batch", partial(naive, model, device, windows, batch), single, 1e-3)
        yield row("+pool", encoder(model, Transfer(device)), single, 1e-3)
        yield row("+pinned", encoder(model, OneAtATime(device)), single, 1e-3)
        yield row("+overlap", encoder(model, transfer_for(device)), single, 1e-3)
        if on_card:
            network = to_half(model, torch.float16)
            yield row("+fp16", encoder(network, transfer_for(device), torch.float16), half, 0.05)
        length = link_music(Path(scratch, "audio"), build_seconds, track_seconds)
        ours = FeatureExtractor(model=folder, device=str(device), batch_size=batch)
        host = WindowEncoder(model=NoTime(), batch_size=batch)
        for level, many in product(("host", "segments", "all"), workers):
            is_host = level == "host"
            extractor, kinds = (host, "segments") if is_host else (ours, level)
            store = Path(scratch, "s.zarr")
            settled(device)
            begin = time.perf_counter()
            report = build(
                Path(scratch, "audio", "music"), store, extractor=extractor, feature_level=kinds, workers=many
            )
            spent = time.perf_counter() - begin
            if report.failed:
                raise SystemExit(f"building failed: {report.errors[0]}")
            shutil.rmtree(store)
            name = f"{level}, {many} workers"
            share = 0.0 if is_host else work * length / audio / spent / half
            yield Row(name, spent, length / spent, share, report.waited_for_audio)


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="95m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the audio")
    parser.add_argument("--build-seconds", type=float, default=3600.0, help="length of the files that are built")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.cuda needs a CUDA device, and torch finds none here", file=sys.stderr)
        return 1
    device = torch.device(chosen.device)
    card = torch.cuda.get_device_name(device)
    print(f"{card}, torch {torch.__version__}, {chosen.shape}, batches of {chosen.batch}")
    print(f"{'':20} {'seconds':>9} {'x real time':>12} {'of peak':>8} {'waited':>7}")
    rows = []
    for row in table(
        device=device,
        shape=chosen.shape,
        batch=chosen.batch,
        seconds=chosen.seconds,
        rounds=chosen.rounds,
        build_seconds=chosen.build_seconds,
    ):
        figures = f"{row.seconds:9.3f} {row.x_real_time:12.0f} {row.of_peak:8.1%} {row.waited:7.1%}"
        print(f"{row.name:20} {figures}", flush=True)
        rows.append(asdict(row))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
