import dataclasses

import numpy as np
import pytest
import soundfile
from threadpoolctl import threadpool_limits

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.windows import hop_samples, window_samples, window_starts

RATE = 24_000
SPEC = FeatureSpec(
    layers=(3, 7),
    dim=4,
    model="a-model",
    revision="1",
    sample_rate=RATE,
    frame_rate=75.0,
    segment_duration=1.0,
    overlap=0.5,
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    with threadpool_limits(1):
        yield


def frames_of(n_samples):
    return max(0, (n_samples - 400) // 320 + 1)


@pytest.fixture
def clip():
    """Writes a clip of noise, of so many samples at its own rate."""

    def write(path, n_samples=36_000, rate=RATE, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(n_samples).normal(0, 0.1, n_samples)
        soundfile.write(path, samples, rate, **options)
        return path

    return write


@pytest.fixture
def music(tmp_path, clip):
    """Ten clips of 1.3 to 2.7 s in two folders."""
    for number in range(10):
        clip(tmp_path / "music" / f"{'ab'[number % 2]}/{number}.wav", 31_200 + 3_611 * number)
    return tmp_path / "music"


@pytest.fixture
def store_of(tmp_path):
    """A store of the clips of a folder: around one of six centres per frame; layer 7 is layer 3 turned round."""

    def build(music, name="store.zarr", spec=SPEC, leave_out=(), kinds=("raw", "segments")):
        centres = np.random.default_rng(1).normal(0, 10, (6, 4))
        window = window_samples(spec.segment_duration, RATE)
        with StoreWriter(tmp_path / name, spec=spec) as writer:
            for path in sorted(music.rglob("*.wav")):
                track_id = path.relative_to(music).with_suffix("").as_posix()
                if track_id in leave_out:
                    continue
                info = soundfile.info(path)
                samples = round(info.frames * RATE / info.samplerate)
                starts = window_starts(samples, window, hop_samples(window, spec.overlap))
                random = np.random.default_rng(info.frames)
                shape = (len(starts), frames_of(min(window, samples)))
                raw = centres[random.integers(0, 6, shape)] + random.normal(0, 0.1, (*shape, 4))
                layers = {3: raw, 7: -raw}
                raw = np.stack([layers[x] for x in spec.layers], axis=1).astype(np.float32)
                audio = {"sample_rate": info.samplerate, "duration": info.frames / info.samplerate}
                with writer.track(track_id, kinds=(*kinds, "aggregated"), attributes={"audio": audio}) as track:
                    arrays = {"raw": raw, "segments": raw.mean(axis=2), "starts": starts / RATE}
                    track.append(**{name: arrays[name] for name in (*kinds, "starts")})
        return FeatureStore(tmp_path / name)

    return build


@pytest.fixture
def spec():
    return SPEC


@pytest.fixture
def other_spec():
    return dataclasses.replace(SPEC, revision="2")
