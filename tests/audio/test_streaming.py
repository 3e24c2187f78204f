"""Long files take no more memory than short ones, and threads do not disturb each other."""

import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.audio import load_audio, resample

MEASURE = """
import resource, sys
from featurestore.audio import decode

def run(path):
    samples = sum(len(block) for block in decode(path, 8_000))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(samples, peak if sys.platform == "darwin" else peak * 1024)

for path in sys.argv[1:]:
    run(path)
"""


def silent_wav(path, seconds, rate, channels):
    """A file of zeros that takes no room on disk."""
    size = seconds * rate * channels * 2
    header = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", size))
        file.truncate(len(header) + 8 + size)
    return path


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_a_minute(tmp_path):
    short = silent_wav(tmp_path / "short.wav", 60, 11_025, 2)
    long = silent_wav(tmp_path / "long.wav", 3_600, 11_025, 2)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(short), str(long)], capture_output=True, text=True, check=True
    )
    (n_short, peak_short), (n_long, peak_long) = (map(int, line.split()) for line in result.stdout.splitlines())
    assert (n_short, n_long) == (60 * 8_000, 3_600 * 8_000)
    assert peak_long - peak_short < 8e6


@pytest.mark.slow
def test_threads_decode_at_once_and_give_the_same(write):
    paths = [
        write(f"{i}.{suffix}", rate=rate, seconds=4 + i % 3, channels=1 + i % 2, **keywords)
        for i, (suffix, rate, keywords) in enumerate(
            [
                ("wav", 44_100, {"subtype": "PCM_16"}),
                ("flac", 48_000, {"subtype": "PCM_16"}),
                ("mp3", 44_100, {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE"}),
                ("ogg", 22_050, {"subtype": "VORBIS"}),
                ("opus", 48_000, {"subtype": "OPUS"}),
                ("wav", 44_101, {"subtype": "FLOAT"}),
            ]
        )
    ]
    expected = [load_audio(path).tobytes() for path in paths]
    resample._kernel.cache_clear()  # let the threads make the kernels, too
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: load_audio(paths[i % len(paths)]).tobytes(), range(60)))
    assert all(audio == expected[i % len(paths)] for i, audio in enumerate(found))


IMPORTED_AT_ONCE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from featurestore.audio import load_audio

assert not {"torch", "torchaudio", "av"} & set(sys.modules)
with ThreadPoolExecutor(8) as pool:
    print(sum(len(x) for x in pool.map(load_audio, [sys.argv[1]] * 8)))
"""


@pytest.mark.slow
def test_threads_may_be_the_first_to_import_anything(write):
    path = write(rate=44_100, seconds=2)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTED_AT_ONCE, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == (str(8 * 48_000), "")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["featurestore.audio", "featurestore.windows"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print(*{{x.split('.')[0] for x in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchaudio", "av", "zarr"} & set(result.stdout.split())
