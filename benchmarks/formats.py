"""Files of 42 kinds that FFmpeg's command makes, decoded and compared with the samples that went into them.

Needs the command `ffmpeg` (Debian's, Homebrew's), which is another build and version than the one that decodes
here. Lossless kinds have to come back bit for bit, lossy ones without a sample missing, and in time up to the
codec's delay.

    python -m benchmarks.formats --files 1000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.audio import Found, decode, read_header
from featurestore.errors import AudioError

RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes
    ----------
    name : str
        Suffix of its files.
    options : str
        Of the command.
    bits : int
        Of integer samples that come back as they were; 0 for lossy kinds.
    padding : int
        Samples that a lossy codec adds at most, at its start and end together.
    rates : tuple of int
        That the codec has.
    channels : tuple of int
    """

    name: str
    options: str = ""
    bits: int = 16
    padding: int = 0
    rates: tuple[int, ...] = RATES
    channels: tuple[int, ...] = (1, 2)


_MPEG = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
KINDS = [
    Kind("wav"), Kind("wav", "-c:a pcm_s24le", 24), Kind("wav", "-c:a pcm_f32le", 24),
    Kind("wav", "-c:a pcm_f64le", 24), Kind("wav", "-rf64 always"),
    Kind("wav", "-c:a pcm_s32le", 24, channels=(1, 2, 6)), Kind("w64", padding=8),
    Kind("w64", "-c:a pcm_s24le", 24, padding=8), Kind("aiff"), Kind("aiff", "-c:a pcm_s24be", 24),
    Kind("aifc", "-f aiff -c:a pcm_f32be", 24), Kind("au"), Kind("au", "-c:a pcm_s24be", 24), Kind("caf"),
    Kind("caf", "-c:a pcm_s24le", 24), Kind("caf", "-c:a alac"), Kind("voc"), Kind("flac"),
    Kind("flac", "-c:a flac -sample_fmt s32", 24), Kind("oga", "-c:a flac"), Kind("mka", "-c:a flac"),
    Kind("m4a", "-c:a alac"), Kind("m4a", "-c:a alac -movflags faststart"), Kind("wv"), Kind("tta"),
    Kind("mov", "-c:a pcm_s16be"), Kind("mka", "-c:a pcm_s16le"),
    Kind("mp3", "", 0, 2_400, _MPEG), Kind("mp3", "-q:a 5", 0, 2_400, _MPEG),
    Kind("mp3", "-write_xing 0", 0, 3_600, _MPEG),
    Kind("ogg", "-c:a libvorbis", 0, 0), Kind("opus", "-c:a libopus", 0, 0, (48_000,)),
    Kind("m4a", "-c:a aac", 0, 3_100), Kind("m4a", "-c:a aac -movflags frag_keyframe+empty_moov", 0, 3_100),
    Kind("aac", "-c:a aac", 0, 3_100), Kind("mka", "-c:a aac", 0, 3_100),
    Kind("webm", "-c:a libopus", 0, 960, (48_000,)),
    Kind("webm", "-c:a libvorbis", 0, 2_100), Kind("ac3", "", 0, 2_100, (32_000, 44_100, 48_000)),
    Kind("wma", "-c:a wmav2", 0, 4_200, (16_000, 22_050, 32_000, 44_100, 48_000)),
    Kind("wav", "-c:a adpcm_ms", 0, 4_200), Kind("wav", "-c:a adpcm_ima_wav", 0, 4_200),
]  # fmt: skip


def music(random: np.random.Generator, frames: int, channels: int, rate: int) -> npt.NDArray[np.float64]:
    """A chirp and noise [frame, channel]: any shift in time shows."""
    t = np.arange(frames) / rate
    sweep = np.sin(2 * np.pi * (200 + 0.04 * rate * t / t[-1]) * t)
    noise = random.normal(0, 0.05, (frames, channels))
    envelope = 0.3 + 0.2 * np.sign(np.sin(2 * np.pi * 1.7 * t))
    return (envelope * sweep)[:, None] * random.uniform(0.5, 1, channels) + noise


def try_kind(kind: Kind, folder: Path, random: np.random.Generator) -> str:
    """Make a file and decode it; what is wrong with it, or nothing."""
    rate = int(random.choice(kind.rates))
    channels = int(random.choice(kind.channels))
    frames = int(random.integers(int(1.1 * rate), 6 * rate))
    full = 1 << ((kind.bits or 16) - 1)
    whole = np.clip(np.round(music(random, frames, channels, rate) * full), -full, full - 1).astype(np.int64)
    path = folder / f"x.{kind.name}"
    raw = (whole << (32 - (kind.bits or 16))).astype("<i4").tobytes()
    source = ["-f", "s32le", "-ar", str(rate), "-ac", str(channels), "-i", "-"]
    made = subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *source, *kind.options.split(), str(path)],
        input=raw,
        capture_output=True,
        check=False,
    )
    what = f"{kind.name} {kind.options} {rate} Hz {channels} ch {frames:,} samples"
    if made.returncode:
        return f"{what}: not made: {made.stderr.decode(errors='replace').strip()[-200:]}"
    wanted = (whole / full).astype(np.float32).mean(axis=1, dtype=np.float64).astype(np.float32)
    told = Found()
    try:
        rate_found = read_header(path).sample_rate
        found = np.concatenate(list(decode(path, rate_found, found=told)))
    except AudioError as error:
        return f"{what}: {error}"
    if rate_found != rate:
        return f"{what}: decoded at {rate_found} Hz"
    if told.warnings:
        return f"{what}: {told.warnings}"
    if kind.bits:
        if not 0 <= len(found) - frames <= kind.padding:
            return f"{what}: {len(found) - frames:+,} samples"
        return "" if np.array_equal(found[:frames], wanted) else f"{what}: other samples"
    lag, shared = delay(found, wanted, kind.padding)
    left_out = _NOT_ENCODED.get(kind.name, 0) or (rate / 1000 if kind.name == "m4a" else 0)
    if len(found) - lag < frames - left_out:
        return f"{what}: {len(found) - frames:+,} samples, {lag:+,} late: its end is missing"
    if shared < 0.5 or abs(lag) > kind.padding or len(found) - frames > kind.padding + 2_400:
        return f"{what}: {len(found) - frames:+,} samples, {lag:+,} late, correlation {shared:.3f}"
    return ""


_NOT_ENCODED = {"wma": 4_096, "ac3": 256}
"""Samples that encoders of FFmpeg leave out at the end, as every decoder of their files shows.

The end of MP4 files is stated in ms, rounded down."""


def delay(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], most: int) -> tuple[int, float]:
    """Samples by which `found` is late, and the correlation there."""
    middle = len(wanted) // 2
    piece = wanted[middle - 2_000 : middle + 2_000].astype(np.float64)
    first = max(0, middle - 2_000 - most - 50)
    area = found[first : middle + 2_000 + most + 50].astype(np.float64)
    products = np.correlate(area, piece, "valid")
    power = np.convolve(area**2, np.ones(len(piece)), "valid")
    likeness = products / np.sqrt(power * (piece @ piece) + 1e-12)
    best = int(np.argmax(likeness))
    return first + best - (middle - 2_000), float(likeness[best])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.files):
            found = try_kind(KINDS[number % len(KINDS)], Path(folder), random)
            if found:
                wrong.append(found)
                print(found, flush=True)
    print(f"{arguments.files} files of {len(KINDS)} kinds, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
