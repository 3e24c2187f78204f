"""Benchmarks that need a card measure what they say: run here small, and on the CPU. Some import much."""

import pytest
import torch

pytestmark = pytest.mark.slow


def test_the_rows_of_the_table_for_cards():
    from benchmarks import cuda

    small = {"shape": "tiny", "batch": 2, "seconds": 15, "rounds": 1, "matrix": 64}
    files = {"build_seconds": 18, "track_seconds": 6, "workers": (1, 2)}
    rows = list(cuda.table(device=torch.device("cpu"), **small, **files))
    builds = [f"{level}, {workers} workers" for level in ("host", "segments", "all") for workers in (1, 2)]
    assert [row.name for row in rows] == ["naive", "+batch", "+pool", "+pinned", "+overlap", *builds]
    for row in rows[:-6]:
        assert row.x_real_time == pytest.approx(15 / row.seconds)
    assert all((row.of_peak > 0) != row.name.startswith("host") for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_so(capsys):
    from benchmarks import cuda

    assert cuda.main([]) == 1
    assert "needs a CUDA device" in capsys.readouterr().err


def test_what_the_host_delivers():
    from benchmarks import host

    found = host.measure(seconds=12, tracks=2, rounds=1)
    workers = [f"{what} to 1, {kind}" for kind in ("flac", "mp3") for what in ("2 workers", "limit of 2")]
    assert list(found) == ["wav", "flac", "mp3", *workers, "main thread"]
    assert all(value > 0 for value in found.values())


def test_the_precisions_of_a_processor(tiny, capsys):
    from benchmarks import encoder

    found = encoder.bf16(tiny, rounds=1)
    assert all(value > 0 for value in found.values())
    assert 0.99 < found["least pooled centred cosine of a state"] < 1
    assert ("bars of AMX" in capsys.readouterr().out) == (encoder.bf16_products() != "amx_bf16")


def test_questions_to_a_store(tmp_path):
    from benchmarks import questions

    rows = [
        *questions.hdf5(tmp_path, 1, tracks=3, layers=2, dim=8),
        *questions.similar(tmp_path, 1, rows=500, dim=8),
        *questions.probe(tmp_path, 1, tracks=400, layers=2, dim=8),
    ]
    assert all(value >= 0 for _, value, _ in rows)
    found = {what: value for what, value, _ in rows}
    assert found["queries of 5 whose ten tracks are those of brute force"] == 5
    assert len(found) == 11
