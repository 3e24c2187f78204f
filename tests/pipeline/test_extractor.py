"""FeatureExtractor: settings are checked first, features are those of a plain loop over the windows."""

import json
import os
import pickle

import numpy as np
import pytest
import soundfile
import torch

from featurestore import FeatureExtractor, FeatureStore, StoreWriter, build
from featurestore.audio import RESAMPLER, load_audio, segment_audio
from featurestore.errors import (
    AudioFormatError,
    AudioNotFoundError,
    AudioTooShortError,
    DeviceError,
    ExtractionError,
    ModelError,
    SettingError,
    SpecMismatchError,
    TrackLockedError,
)
from featurestore.models import load_model

RATE = 24_000


def tones(seconds, *, seed=0, gain=0.3):
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    sound = sum(np.sin(2 * np.pi * f * time * (1 + 0.02 * time)) for f in random.uniform(100, 4_000, 5))
    return (gain * sound / 5 + 0.01 * random.normal(size=len(time))).astype(np.float32)


def blocks_of(samples, length=50_000):
    return (samples[i : i + length] for i in range(0, len(samples), length))


def whole(batches):
    batches = list(batches)
    return (
        np.concatenate([batch.segments for batch in batches]),
        None if batches[0].raw is None else np.concatenate([batch.raw for batch in batches]),
        [start for batch in batches for start in batch.starts],
    )


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "piece.wav"
    soundfile.write(path, np.stack([tones(6.3), tones(6.3, seed=1)], axis=1), RATE, subtype="FLOAT")
    return path


@pytest.fixture
def extractor(model):
    return FeatureExtractor(model=model, segment_duration=2.0, batch_size=2)


class Counting:
    """Somebody's own encoder: another one that counts the windows it encodes."""

    def __init__(self, inner):
        self.inner, self.windows = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def states(self, wave, last=None):
        self.windows += len(wave)
        return self.inner.states(wave, last)

    def to(self, device):
        return self


@pytest.mark.slow
def test_features_are_those_of_a_plain_loop(extractor, model, wav, assert_states_close):
    features = extractor.extract_track_features(wav)
    samples = load_audio(wav, RATE)
    windows = segment_audio(samples, segment_duration=2.0, overlap_ratio=0.5, sample_rate=RATE)
    raw = np.stack([model.hidden_states(torch.from_numpy(window)[None])[0].numpy() for window in windows])
    assert list(features) == ["raw", "segments", "aggregated"]
    assert features["raw"].shape == (len(windows), 4, model.frames(2 * RATE), 64)
    assert_states_close(features["raw"], raw)
    assert_states_close(features["segments"], raw.mean(axis=2))
    assert_states_close(features["aggregated"][None], raw.mean(axis=(0, 2))[None])
    assert {array.dtype for array in features.values()} == {np.dtype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("segments", [False, True])
def test_kinds_as_asked_for(extractor, wav, raw, segments):
    features = extractor.extract_track_features(wav, include_raw=raw, include_segments=segments)
    assert list(features) == ["raw"] * raw + ["segments"] * segments + ["aggregated"]


@pytest.mark.slow
def test_the_size_of_batches_and_blocks_changes_only_rounding(model, assert_states_close):
    samples = tones(7.7)
    found = [
        whole(
            FeatureExtractor(model=model, segment_duration=2.0, batch_size=batch).encode(
                blocks_of(samples, block), raw=True
            )
        )
        for batch, block in ((1, 10**9), (3, 7_001), (8, 1_000))
    ]
    for segments, raw, starts in found[1:]:
        assert starts == found[0][2] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.7]
        assert_states_close(segments, found[0][0])
        assert_states_close(raw, found[0][1])


def test_a_short_track_is_one_window_of_its_own_length(extractor, model, assert_states_close):
    samples = tones(1.3)
    segments, raw, starts = whole(extractor.encode([samples], raw=True))
    assert starts == [0.0]
    wanted = model.hidden_states(torch.from_numpy(samples)[None]).numpy()
    assert_states_close(raw, wanted)
    assert_states_close(segments, wanted.mean(axis=2))


def test_chosen_layers_are_those_of_all(model):
    samples = tones(3.0)
    everything, _, _ = whole(FeatureExtractor(model=model, segment_duration=2.0).encode([samples], raw=False))
    some = FeatureExtractor(model=model, segment_duration=2.0, layers=np.array([2, 0]))
    assert some.layers == (0, 2)
    np.testing.assert_array_equal(whole(some.encode([samples], raw=False))[0], everything[:, [0, 2]])


@pytest.mark.parametrize("gain", [0.0, 1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_silence_offsets_and_quiet_audio_stay_finite(extractor, gain, offset):
    segments, raw, _ = whole(extractor.encode([offset + tones(2.0, gain=gain)], raw=True))
    assert np.isfinite(raw).all()
    assert np.isfinite(segments).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [99]}, "`layers` has 99, which does not exist; .* has layers 0 to 3"),
        ({"layers": [-1]}, "`layers` has -1, which does not exist"),
        ({"layers": [True]}, "`layers` has True"),
        ({"layers": []}, "`layers` is empty"),
        ({"layers": 2}, r"`layers` must be a sequence such as \[2\]"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"overlap": 1.0}, "overlap"),
        ({"segment_duration": 0}, "segment_duration"),
        ({"segment_duration": "5"}, "segment_duration"),
        ({"segment_duration": 0.01}, "240 samples; .* needs at least 400"),
        ({"revision": "main"}, "revision"),
    ],
)
def test_impossible_settings(model, settings, message):
    with pytest.raises(SettingError, match=message):
        FeatureExtractor(model=model, **settings)


def test_settings_are_refused_before_the_model_is_looked_for():
    for settings, error in (
        ({"batch_size": 0}, SettingError),
        ({"overlap": 1.0}, SettingError),
        ({"device": "gpu"}, DeviceError),
    ):
        with pytest.raises(error):
            FeatureExtractor(model="/no/such/folder", **settings)
    with pytest.raises(ModelError):
        FeatureExtractor(model="/no/such/folder")


def test_numbers_of_numpy_and_devices_of_torch_will_do(tiny):
    extractor = FeatureExtractor(
        model=tiny,
        device=torch.device("cpu"),
        batch_size=np.int64(3),
        overlap=np.float32(0.25),
        layers=np.arange(2),
    )
    assert (extractor.batch_size, extractor.layers, extractor.spec().overlap) == (3, (0, 1), 0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", None),
        ("name", ""),
        ("sample_rate", 24_000.0),
        ("dim", "64"),
        ("layers", True),
        ("do_normalize", 1),
    ],
)
def test_an_encoder_whose_attributes_cannot_be(model, name, value):
    own = Counting(model)
    setattr(own, name, value)
    with pytest.raises(ModelError, match=f"breaks the rule of `{name}`: it is"):
        FeatureExtractor(model=own)


def full_card():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmany more lines")


def full_context():
    raise RuntimeError("CUDA error: out of memory\nmany more lines")


def full_host():
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("fill", [full_card, full_context, full_host])
def test_a_device_without_room_for_the_model(model, fill):
    class Large(Counting):
        def to(self, device):
            fill()

    with pytest.raises(
        DeviceError, match=r"^cpu has too little free memory for .*tiny.* another `device`"
    ) as caught:
        FeatureExtractor(model=Large(model))
    assert "many more" not in str(caught.value)
    # As the process of one device of several reports it.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_other_errors_of_moving_a_model_pass_through(model):
    class Broken(Counting):
        def to(self, device):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        FeatureExtractor(model=Broken(model))


def test_defaults_of_the_cpu(tiny):
    extractor = FeatureExtractor(model=tiny, mixed_precision=True)
    assert (extractor.batch_size, extractor.precision, extractor.device.type) == (4, "fp32", "cpu")
    assert extractor.layers == (0, 1, 2, 3)


def test_the_spec_says_everything(tiny, model):
    extractor = FeatureExtractor(model=tiny, layers=[1, 3], segment_duration=2, overlap=0)
    spec = extractor.spec(dtype="float16")
    assert spec.to_dict() == {
        "layers": [1, 3],
        "dim": 64,
        "model": str(tiny),
        "revision": None,
        "weights_sha256": model.weights_sha256,
        "sample_rate": RATE,
        "do_normalize": True,
        "frame_rate": 75.0,
        "segment_duration": 2.0,
        "overlap": 0.0,
        "resampler": RESAMPLER,
        "precision": "fp32",
        "dtype": "float16",
        "codec": "none",
    }
    again = FeatureExtractor(model=model, layers=[3, 1], segment_duration=2.0, overlap=0.0, batch_size=1)
    assert again.spec(dtype="float16").fingerprint == spec.fingerprint


@pytest.mark.slow
def test_a_store_gets_the_features_and_gives_them_back(model, wav, tmp_path):
    counting = Counting(model)
    extractor = FeatureExtractor(model=counting, segment_duration=2.0)
    path = tmp_path / "store.zarr"
    features = extractor.extract_track_features(wav, store=path, dataset="smd")
    computed = counting.windows
    again = extractor.extract_track_features(wav, store=path, dataset="smd")
    assert counting.windows == computed
    assert list(again) == list(features)
    for kind, array in features.items():
        np.testing.assert_array_equal(again[kind], array)
        assert again[kind].dtype == np.float32
    store = FeatureStore(path)
    assert list(store.track_ids) == ["smd/piece"]
    provenance = store.provenance("smd/piece")
    assert (
        provenance["audio"].items()
        >= {
            "path": str(wav),
            "size": wav.stat().st_size,
            "mtime_ns": wav.stat().st_mtime_ns,
            "sample_rate": RATE,
            "channels": 2,
        }.items()
    )
    assert provenance["starts"] == [0.0, 1.0, 2.0, 3.0, 4.0, pytest.approx(4.3)]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["path", "writer"])
def test_a_track_gets_into_a_store_as_build_puts_it_there(model, wav, tmp_path, by):
    soundfile.write(wav, np.clip(9 * tones(6.3), -1, 1), RATE)  # loud enough for a warning
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    report = build(wav, tmp_path / "built.zarr", extractor=extractor, feature_level="all", dataset="smd")
    path = tmp_path / "one.zarr"
    with StoreWriter(path, spec=extractor.spec()) as writer:
        features = extractor.extract_track_features(wav, store=path if by == "path" else writer, dataset="smd")
    built, one = FeatureStore(tmp_path / "built.zarr"), FeatureStore(path)
    wanted, found = built.provenance("smd/piece"), one.provenance("smd/piece")
    assert found.pop("revision") != wanted.pop("revision")
    assert found.pop("checksums")["chunks"] == wanted.pop("checksums")["chunks"]
    assert found == wanted
    assert found["warnings"] == [warning.message for warning in report.warnings] != []
    assert found["levels"]["clipped"] > 0
    np.testing.assert_array_equal(features["raw"], built.raw("smd/piece").to_numpy())
    np.testing.assert_array_equal(features["aggregated"], built.aggregated().to_numpy()[0])


def test_a_track_that_another_writer_has_is_an_error(model, wav, tmp_path):
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    with StoreWriter(tmp_path / "s.zarr", spec=extractor.spec()) as other:
        holder = other.track("piece")
        holder.__enter__()
        with pytest.raises(TrackLockedError, match="'piece'"):
            extractor.extract_track_features(wav, store=tmp_path / "s.zarr")
        assert not holder.__exit__(RuntimeError, RuntimeError("died"), None)


@pytest.mark.slow
def test_what_is_there_is_computed_again_where_it_should_be(model, wav, tmp_path):
    counting = Counting(model)
    extractor = FeatureExtractor(model=counting, segment_duration=2.0)

    def windows(**options):
        before = counting.windows
        extractor.extract_track_features(wav, store=tmp_path / "store.zarr", **options)
        return counting.windows - before

    assert windows(include_raw=False) == 6
    assert windows(include_raw=False) == 0
    assert windows(include_raw=True) == 6  # a kind that was not there
    assert windows(skip_existing=False) == 6
    os.utime(wav)
    assert windows() == 0  # another time, the same content
    assert windows(track_id="other/name") == 6
    soundfile.write(wav, tones(4.0, seed=9), RATE)
    assert windows() == 3


@pytest.mark.slow
def test_a_store_of_other_settings_is_left_alone(model, wav, tmp_path):
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    path = tmp_path / "store.zarr"
    extractor.extract_track_features(wav, store=path)
    other = FeatureExtractor(model=model, segment_duration=3.0)
    with pytest.raises(SpecMismatchError) as caught:
        other.extract_track_features(wav, store=path)
    assert caught.value.differences == {"segment_duration": (2.0, 3.0)}
    with (
        StoreWriter(path, spec=extractor.spec()) as writer,
        pytest.raises(SpecMismatchError, match="segment_duration"),
    ):
        other.extract_track_features(wav, store=writer)


@pytest.mark.slow
def test_a_writer_of_half_precision_is_used_as_it_is(model, wav, tmp_path):
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    with StoreWriter(tmp_path / "store.zarr", spec=extractor.spec(dtype="float16")) as writer:
        features = extractor.extract_track_features(wav, store=writer)
        stored = extractor.extract_track_features(wav, store=writer)
    for kind, array in features.items():
        assert stored[kind].dtype == np.float32
        np.testing.assert_allclose(stored[kind], array, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"dtype": "float16"}, {"codec": "zstd"}])
@pytest.mark.parametrize("by", ["path", "writer"])
def test_a_store_keeps_the_dtype_and_codec_that_it_has(model, wav, tmp_path, setting, by):
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    path = tmp_path / "store.zarr"
    with StoreWriter(path, spec=extractor.spec(**setting)) as writer:
        extractor.extract_track_features(wav, store=writer if by == "writer" else str(path), track_id="x")
    store = FeatureStore(path)
    assert store.track_ids == ["x"]
    assert store.verify(deep=True).ok
    assert store.spec == extractor.spec(**setting)


@pytest.mark.slow
def test_a_file_that_is_gone_is_named_though_the_store_has_its_track(model, wav, tmp_path):
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    copy = tmp_path / "x.wav"
    copy.write_bytes(wav.read_bytes())
    extractor.extract_track_features(copy, store=tmp_path / "store.zarr")
    copy.unlink()
    features, error = extractor.extract_track_features_safe(copy, store=tmp_path / "store.zarr")
    assert features is None
    assert isinstance(error, AudioNotFoundError)
    assert "x.wav" in str(error)


def test_a_failure_publishes_nothing(model, tmp_path):
    path = tmp_path / "broken.wav"
    path.write_text("no audio")
    extractor = FeatureExtractor(model=model)
    with pytest.raises(AudioFormatError):
        extractor.extract_track_features(path, store=tmp_path / "store.zarr")
    assert list(FeatureStore(tmp_path / "store.zarr").track_ids) == []


def test_errors_are_raised_or_returned(extractor, wav, tmp_path):
    short = tmp_path / "short.wav"
    soundfile.write(short, tones(0.3), RATE)
    for path, kind in ((short, AudioTooShortError), (tmp_path / "gone.wav", AudioNotFoundError)):
        with pytest.raises(kind):
            extractor.extract_track_features(path)
        features, error = extractor.extract_track_features_safe(path, include_raw=False)
        assert features is None
        assert isinstance(error, kind)
        assert path.name in str(error)
    features, error = extractor.extract_track_features_safe(wav, include_raw=False)
    assert list(features) == ["segments", "aggregated"]
    assert error is None


def test_full_memory_names_the_file(model, wav):
    class Full(Counting):
        def states(self, wave, last=None):
            raise torch.OutOfMemoryError("full")

    _, error = FeatureExtractor(model=Full(model)).extract_track_features_safe(wav)
    assert isinstance(error, ExtractionError)
    assert str(wav) in str(error)
    assert "out of memory with 1 window" in str(error)


@pytest.mark.slow
def test_a_collection_in_the_old_words(model, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", tones(2.5, seed=number), RATE)
    (folder / "2.wav").write_text("no audio")
    soundfile.write(folder / "other.flac", tones(2.5), RATE)
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    path = tmp_path / "store.zarr"
    report = extractor.extract_dataset_features(folder, path, include_raw=False, dataset="d")
    counts = ("total_files", "processed", "cached", "skipped", "failed")
    assert [report[name] for name in counts] == [4, 3, 0, 0, 1]
    store = FeatureStore(path)
    assert sorted(store.track_ids) == ["d/0", "d/1", "d/other"]
    assert store.has("d/0", kinds=("segments", "aggregated"))
    assert not store.has("d/0", kinds=("raw",))
    report = extractor.extract_dataset_features(folder, path, include_raw=False, dataset="d", num_workers=2)
    assert [report[name] for name in counts] == [4, 0, 3, 0, 1]
    json.dumps(report)


@pytest.mark.slow
def test_the_older_keywords_of_a_store(model, wav, tmp_path):
    extractor = FeatureExtractor(model=model, segment_duration=2.0)
    older = {"output_dir": tmp_path / "a.zarr", "include_raw": False}
    with pytest.warns(DeprecationWarning, match="`output_dir` is called `store` now") as told:
        expected = extractor.extract_track_features(audio_path=wav, **older)
    assert told[0].filename == __file__
    assert list(FeatureStore(tmp_path / "a.zarr").track_ids) == ["piece"]
    found = extractor.extract_track_features(wav, tmp_path / "a.zarr", "piece", include_raw=False)
    np.testing.assert_array_equal(found["aggregated"], expected["aggregated"])
    found, error = extractor.extract_track_features_safe(wav, str(tmp_path / "b.zarr"), "other", include_raw=False)
    assert (list(FeatureStore(tmp_path / "b.zarr").track_ids), error) == (["other"], None)
    with pytest.warns(DeprecationWarning, match="`output_dir`"):
        found, error = extractor.extract_track_features_safe(audio_path=wav, output_dir=tmp_path / "b.zarr")
    assert (FeatureStore(tmp_path / "b.zarr").track_ids, error) == (["other", "piece"], None)
    with pytest.warns(DeprecationWarning, match="`output_dir`") as told:
        report = extractor.extract_dataset_features(wav.parent, output_dir=tmp_path / "c.zarr", include_raw=False)
    assert told[0].filename == __file__
    assert report["processed"] == 1
    twice = {"store": tmp_path / "a.zarr", "output_dir": tmp_path / "d.zarr"}
    for call in (extractor.extract_track_features, extractor.extract_dataset_features):
        with pytest.raises(SettingError, match="`store` and `output_dir` are two names of the same: give one"):
            call(wav, **twice)
    with pytest.raises(SettingError, match="`store` must be given"):
        extractor.extract_dataset_features(wav.parent)
    assert not (tmp_path / "d.zarr").exists()


def test_the_extractor_leaves_its_model_usable(tiny):
    model = load_model(tiny)
    list(FeatureExtractor(model=model, segment_duration=1.0).encode([tones(1.0)], raw=False))
    head = torch.nn.Linear(64, 2)
    head(model.hidden_states(torch.zeros(1, RATE))).sum().backward()
    assert head.weight.grad is not None
