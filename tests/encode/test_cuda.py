"""The CUDA path: half precision close to single, overlapped copies equal to plain ones, recovery for real."""

import numpy as np
import pytest
import soundfile
import torch

from featurestore import FeatureExtractor, FeatureStore, build
from featurestore.encode.batch_size import Window
from featurestore.encode.batching import BatchEncoder
from featurestore.encode.transfer import PinnedTransfer, Transfer
from featurestore.errors import ExtractionError
from featurestore.models import load_model
from featurestore.models.kernels.half import to_half

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RATE = 24_000


def noise(seconds, gain=0.1):
    return np.random.default_rng(0).normal(0, gain, round(seconds * RATE)).astype(np.float32)


def features(tiny, samples, **settings):
    extractor = FeatureExtractor(model=load_model(tiny), segment_duration=2.0, **settings)
    batches = list(extractor.encode([samples], raw=True))
    return np.concatenate([batch.raw for batch in batches]), np.concatenate([x.segments for x in batches])


def test_single_precision_is_that_of_the_cpu(tiny):
    samples = noise(30)
    for found, wanted in zip(
        features(tiny, samples, device="cuda", mixed_precision=False), features(tiny, samples), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("gain", [0.1, 1e-4])
def test_half_precision_is_close(tiny, gain):
    samples = noise(30, gain)
    for found, wanted in zip(features(tiny, samples, device="cuda"), features(tiny, samples), strict=True):
        cosine = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert cosine.min() > 0.999
        assert found.dtype == np.float32


@pytest.mark.parametrize("half", [None, torch.float16])
def test_overlapped_copies_are_plain_copies(tiny, half):
    device = torch.device("cuda:0")
    model = load_model(tiny).to(device)
    network = model if half is None else to_half(model, half)
    track = [(i, window) for i, window in enumerate(noise(100).reshape(50, -1))]
    found = [
        list(
            BatchEncoder(
                model=network, device=device, batch_size=7, layers=(1, 3), half=half, transfer=transfer
            ).encode(track, raw=True)
        )
        for transfer in (PinnedTransfer(device), Transfer(device))
    ]
    for one, other in zip(*found, strict=True):
        assert one.starts == other.starts
        np.testing.assert_array_equal(one.raw, other.raw)
        np.testing.assert_array_equal(one.segments, other.segments)


def test_tracks_share_batches_and_get_their_own(tiny):
    device = torch.device("cuda:0")
    encoder = BatchEncoder(model=load_model(tiny).to(device), device=device, batch_size=8, layers=(0, 3))
    samples = noise(100).reshape(50, -1)
    alone = np.concatenate([x.segments for x in encoder.encode(list(enumerate(samples)), raw=False)])
    stream = [Window(number // 3, number, window) for number, window in enumerate(samples)]
    for _, batch in encoder.encode_tracks(stream, raw=True):
        numbers = [round(start * RATE) for start in batch.starts]
        np.testing.assert_allclose(batch.segments, alone[numbers], atol=1e-4)
        np.testing.assert_allclose(batch.raw.mean(axis=2), batch.segments, atol=1e-4)


def test_full_memory_for_real(tiny):
    samples = noise(60)
    wanted, _ = features(tiny, samples, device="cuda", batch_size=1)
    extractor = FeatureExtractor(model=load_model(tiny), segment_duration=2.0, device="cuda", batch_size=64)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    list(extractor.encode([samples], raw=True))  # 59 windows, all of them in one batch
    needed = torch.cuda.max_memory_allocated() - held
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + needed / 3) / total)
    try:
        found = np.concatenate([batch.raw for batch in extractor.encode([samples], raw=True)])
        assert 1 <= extractor.batch_size < 64
        torch.cuda.set_per_process_memory_fraction(0.0)
        torch.cuda.empty_cache()
        with pytest.raises(ExtractionError, match="out of memory"):
            list(extractor.encode([samples], raw=True))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found, wanted, atol=2e-2)


def test_two_processes_share_a_card(tiny, tmp_path):
    (tmp_path / "music").mkdir()
    for number in range(6):
        soundfile.write(tmp_path / "music" / f"{number}.wav", noise(3 + number), RATE)
    settings = {"model": tiny, "segment_duration": 2.0}
    build(tmp_path / "music", tmp_path / "one.zarr", device="cuda", **settings)
    report = build(tmp_path / "music", tmp_path / "two.zarr", device="cuda:0,cuda:0", **settings)
    assert (report.processed, report.failed) == (6, 0)
    one, two = (FeatureStore(tmp_path / name).aggregated().to_numpy() for name in ("one.zarr", "two.zarr"))
    np.testing.assert_allclose(one, two, atol=2e-2)
