"""Batches dealt to threads of one core each: the same features in the same order, errors included."""

import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.encode.batching import BatchEncoder
from featurestore.encode.threads import single_core_threads
from featurestore.errors import ExtractionError
from featurestore.models.kernels.engine import CpuEngine

CPU = torch.device("cpu")


def windows(count, samples=2_000):
    noise = np.random.default_rng(count).normal(size=(count, samples)).astype(np.float32)
    return [(7 * number, window) for number, window in enumerate(noise)]


def encoder(model, *, workers, batch_size=2, layers=(0, 2), **options):
    return BatchEncoder(model=model, device=CPU, batch_size=batch_size, layers=layers, workers=workers, **options)


def joined(batches):
    batches = list(batches)
    starts = [start for batch in batches for start in batch.starts]
    return starts, np.concatenate([x.segments for x in batches]), np.concatenate([x.raw for x in batches])


@pytest.fixture(scope="module")
def engine(model):
    return CpuEngine(model)


class Watched:
    """An engine that notes which threads compute how many windows, and does something before."""

    def __init__(self, engine, before=lambda wave: None):
        self.engine, self.before, self.calls = engine, before, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def states(self, wave, last=None):
        self.calls.append((threading.current_thread().name, torch.get_num_threads(), len(wave)))
        self.before(wave)
        yield from self.engine.states(wave, last)


@pytest.mark.slow
@settings(max_examples=30)
@given(count=st.integers(1, 23), workers=st.integers(1, 4), batch_size=st.integers(1, 4))
def test_features_and_order_are_those_of_one_thread(assert_states_close, engine, count, workers, batch_size):
    some = windows(count)
    # The first batches take longest, so that later ones are done before them.
    watched = Watched(engine, lambda wave: time.sleep(0.002 * (some[0][1][0] == wave[0, 0].item())))
    starts, segments, raw = joined(encoder(watched, workers=workers, batch_size=batch_size).encode(some, raw=True))
    assert starts == [start / engine.sample_rate for start, _ in some]
    _, wanted, wanted_raw = joined(encoder(engine, workers=1, batch_size=1).encode(some, raw=True))
    assert_states_close(segments, wanted)
    assert_states_close(raw, wanted_raw)
    sizes = [size for _, _, size in watched.calls]
    assert sum(sizes) == count
    assert max(sizes) <= batch_size


def test_each_worker_computes_on_one_core(engine):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        watched = Watched(engine)
        some = encoder(watched, workers=2, batch_size=4)
        assert len(list(some.encode(windows(8), raw=False))) == 4
        assert {(name[:20], cores) for name, cores, _ in watched.calls} == {("featurestore-encoder", 1)}
        assert torch.get_num_threads() == 3
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_all_workers_have_begun():
    pool = single_core_threads(3)
    meeting = threading.Barrier(3, timeout=10)
    assert sorted(pool.map(lambda _: meeting.wait(), range(3))) == [0, 1, 2]
    pool.shutdown()


def test_a_batch_is_shared_equally_by_the_workers(engine):
    watched = Watched(engine)
    list(encoder(watched, workers=2, batch_size=8).encode(windows(14), raw=False))
    assert sorted(size for _, _, size in watched.calls) == [3, 3, 4, 4]


def test_each_worker_has_a_window_however_small_the_batches(engine):
    watched = Watched(engine)
    list(encoder(watched, workers=3, batch_size=2).encode(windows(9), raw=False))
    assert [size for _, _, size in watched.calls] == [1] * 9


def test_a_track_of_few_windows_is_encoded_by_all_cores_together(engine):
    watched = Watched(engine)
    list(encoder(watched, workers=4).encode(windows(2), raw=False))
    assert watched.calls == [(threading.current_thread().name, torch.get_num_threads(), 2)]


def test_audio_is_read_no_further_than_the_workers_get(engine):
    drawn = []

    def source():
        for window in windows(40):
            drawn.append(window)
            yield window

    batches = encoder(engine, workers=2).encode(source(), raw=False)
    next(batches)
    assert len(drawn) <= 8
    batches.close()


def full(limit):
    def before(wave):
        if len(wave) > limit:
            raise torch.OutOfMemoryError("out of memory")

    return before


def test_full_memory_halves_batches_and_keeps_results(engine, assert_states_close):
    some = windows(17)
    small = encoder(Watched(engine, full(1)), workers=2, batch_size=4)
    starts, segments, _ = joined(small.encode(some, raw=True))
    assert starts == [start / engine.sample_rate for start, _ in some]
    assert_states_close(segments, joined(encoder(engine, workers=1).encode(some, raw=True))[1])
    assert small.batch_size == 1


def test_full_memory_without_recovery(engine):
    some = encoder(Watched(engine, full(1)), workers=2, batch_size=4, oom_recovery=False)
    with pytest.raises(ExtractionError, match="smaller `batch_size`"):
        list(some.encode(windows(8), raw=False))


def test_a_window_that_never_fits(engine):
    some = encoder(Watched(engine, full(0)), workers=2)
    with pytest.raises(ExtractionError, match="out of memory with 1 window"):
        list(some.encode(windows(8), raw=False))


def test_errors_of_the_model_and_of_the_audio_pass_through(engine):
    def fail(wave):
        raise ZeroDivisionError("in the model")

    with pytest.raises(ZeroDivisionError, match="in the model"):
        list(encoder(Watched(engine, fail), workers=2).encode(windows(8), raw=False))

    def damaged():
        yield from windows(5)
        raise OSError("in the audio")

    with pytest.raises(OSError, match="in the audio"):
        list(encoder(engine, workers=2).encode(damaged(), raw=False))


def test_it_goes_on_after_an_error(engine):
    failing = [True]

    def fail_once(wave):
        if failing:
            failing.clear()
            raise ZeroDivisionError

    some = encoder(Watched(engine, fail_once), workers=2, batch_size=4)
    with pytest.raises(ZeroDivisionError):
        list(some.encode(windows(8), raw=False))
    assert len(list(some.encode(windows(8), raw=False))) == 4


@pytest.mark.slow
def test_an_interrupt_ends_it_at_once(engine):
    def slow(wave):
        time.sleep(0.3)

    watched = Watched(engine, slow)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(encoder(watched, workers=2).encode(windows(200), raw=False))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    begun = len(watched.calls)
    time.sleep(0.5)
    assert len(watched.calls) <= begun + 1
