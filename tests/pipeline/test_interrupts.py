"""An interrupt ends the build within moments, with nothing half written, and the same call goes on from there."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore import FeatureStore, build
from featurestore.pipeline.interrupts import Interrupts

HERE = os.getpid()


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_raised_at_once(number):
    with Interrupts():
        with pytest.raises(KeyboardInterrupt):
            os.kill(HERE, number)
        os.kill(HERE, number)  # while cleaning up, a second one changes nothing


def test_an_interrupt_waits_until_it_is_not_deferred_any_more():
    steps = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with interrupts.deferred():
            os.kill(HERE, signal.SIGINT)
            steps.append("deferred")
        steps.append("never")
    assert steps == ["deferred"]


def test_an_interrupt_is_allowed_again_within_a_deferred_block():
    steps = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.deferred():  # noqa: PT012
        try:
            with interrupts.allowed():
                os.kill(HERE, signal.SIGINT)
                steps.append("never")
        finally:
            os.kill(HERE, signal.SIGINT)
            steps.append("cleaned up")
    assert steps == ["cleaned up"]


def test_an_interrupt_that_came_while_deferred_is_raised_when_allowed():
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.deferred():  # noqa: PT012
        os.kill(HERE, signal.SIGINT)
        with interrupts.allowed():
            pytest.fail("the interrupt was lost")


def test_deferred_blocks_may_be_nested():
    steps = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.deferred():  # noqa: PT012
        with interrupts.deferred():
            os.kill(HERE, signal.SIGINT)
        steps.append("still deferred")
    assert steps == ["still deferred"]


def test_an_error_is_not_replaced_by_an_interrupt():
    with Interrupts() as interrupts, pytest.raises(OSError, match="full"), interrupts.deferred():  # noqa: PT012
        os.kill(HERE, signal.SIGINT)
        raise OSError("full")


def test_handlers_of_the_program_stay():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("own"))
    try:
        with Interrupts():
            os.kill(HERE, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["own"]


@pytest.mark.slow
def test_it_works_outside_the_main_thread_too(music, tmp_path, extractor):
    with ThreadPoolExecutor() as pool:
        report = pool.submit(build, music, tmp_path / "s.zarr", extractor=extractor).result()
    assert report.processed == 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["looking for audio", "opening the model", "checking", "extracting", "packing"])
def test_at_every_stage_the_build_ends_and_can_go_on(music, tmp_path, extractor, staged, stage):
    asked = []

    def interrupt(now):
        if now.stage == stage and not asked and (stage != "extracting" or now.processed == 2):
            asked.append(time.monotonic())
            os.kill(HERE, signal.SIGINT)

    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", progress=interrupt)
    assert time.monotonic() - asked[0] < 10
    assert (report.interrupted, report.exit_code) == (True, 130)
    fewest, most = {"extracting": (2, 4), "packing": (4, 4)}.get(stage, (0, 0))  # what is on its way is published
    assert fewest <= report.processed <= most
    if report.processed:
        assert staged(tmp_path / "s.zarr") == []
        assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok
    else:
        assert not (tmp_path / "s.zarr").exists()
    rest = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert (rest.cached, rest.processed) == (report.processed, 4 - report.processed)
    assert FeatureStore(tmp_path / "s.zarr").info()["packed"] == 4


@pytest.mark.slow
def test_in_the_middle_of_a_track_nothing_of_it_stays(tmp_path, clip, extractor, staged):
    clip(tmp_path / "music" / "long.wav", 60, rate=8_000)
    store = tmp_path / "s.zarr"

    def interrupt(now):
        if now.audio_seconds > 5:
            assert list((store / ".featurestore" / "staging").glob("*/*/raw"))
            os.kill(HERE, signal.SIGINT)

    report = build(tmp_path / "music", store, extractor=extractor, feature_level="all", progress=interrupt)
    assert (report.interrupted, report.processed, report.failed) == (True, 0, 0)
    assert staged(store) == []
    assert len(FeatureStore(store)) == 0
