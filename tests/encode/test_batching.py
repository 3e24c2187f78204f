"""Batches keep windows in order, compute no more than is asked for, and shrink where memory ends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import (
    CPU,
    DIM,
    LAYERS,
    SAMPLES,
    Overlapping,
    Toy,
    encoder,
    expected,
    out_of_context,
    out_of_cuda,
    out_of_host,
    out_of_numpy,
    windows,
)

from featurestore.encode.batch_size import GROW_AFTER, Window
from featurestore.encode.batching import EncodedState
from featurestore.encode.transfer import Transfer
from featurestore.errors import AudioTooShortError, ExtractionError, ModelError


def check(batches, given_windows, layers=range(LAYERS + 1)):
    starts = [start for batch in batches for start in batch.starts]
    assert starts == [start / Toy.sample_rate for start, _ in given_windows]
    raw = np.concatenate([batch.raw for batch in batches])
    np.testing.assert_array_equal(raw, expected(given_windows, layers))
    segments = np.concatenate([batch.segments for batch in batches])
    np.testing.assert_allclose(segments, raw.mean(axis=2), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@settings(deadline=None)
@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    fits=st.integers(1, 12),
    layers=st.sets(st.integers(0, LAYERS), min_size=1).map(sorted),
    fail_at=st.integers(0, LAYERS),
    transfer=st.none() | st.builds(Overlapping, st.integers(1, 12)),
)
def test_order_and_values_whatever_fits(count, batch_size, fits, layers, fail_at, transfer):
    model = Toy(fits, fail_at=min(fail_at, layers[-1]))
    engine = encoder(model, batch_size=batch_size, layers=layers, transfer=transfer)
    track = windows(count)
    check(list(engine.encode(track, raw=True)), track, layers)
    assert engine.batch_size <= batch_size
    assert engine.batch_size <= max(fits, 1) or count <= fits
    assert max(model.computed) == layers[-1]


@pytest.mark.parametrize("fail", [out_of_cuda, out_of_context, out_of_host, out_of_numpy])
def test_only_the_batch_that_fails_is_halved(fail):
    model = Toy(fits=3, fail=fail, fail_at=2)
    engine = encoder(model, batch_size=8)
    track = windows(20)
    batches = list(engine.encode(track, raw=True))
    check(batches, track)
    assert model.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert engine.batch_size == 2


def test_what_succeeded_is_kept_and_the_size_is_remembered():
    model = Toy()
    engine = encoder(model, batch_size=4)
    track = windows(12)
    batches = engine.encode(track, raw=True)
    first = next(batches)
    model.fits = 2
    check([first, *batches], track)
    assert model.sizes == [4, 4, 2, 2, 2, 2]
    model.fits = 10**9
    list(engine.encode(track, raw=False))
    assert model.sizes[6:] == [2] * 6


def test_one_window_that_does_not_fit_fails_its_track_only():
    model = Toy(fits=0)
    engine = encoder(model, batch_size=4)
    with pytest.raises(ExtractionError, match=r"segment_duration.*Tried to allocate 1 GiB") as caught:
        list(engine.encode(windows(4), raw=False))
    assert model.sizes == [4, 2, 1]
    # Neither cause nor context: their tracebacks would keep the memory that is missing.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    model.fits = 1
    track = windows(3)
    check(list(engine.encode(track, raw=True)), track)


def test_without_recovery_it_fails_at_once():
    model = Toy(fits=2)
    engine = encoder(model, oom_recovery=False)
    with pytest.raises(ExtractionError, match="batch_size"):
        list(engine.encode(windows(4), raw=False))
    assert model.sizes == [4]
    assert engine.batch_size == 4


def other_failure(size):
    raise RuntimeError("the model is broken")


def interrupt(size):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fail", "error"), [(other_failure, RuntimeError), (interrupt, KeyboardInterrupt)])
def test_other_errors_and_interrupts_pass_through(fail, error):
    model = Toy(fits=0, fail=fail)
    with pytest.raises(error):
        list(encoder(model).encode(windows(4), raw=False))
    assert model.sizes == [4]


def test_an_error_of_the_audio_comes_after_what_was_before_it():
    def broken():
        yield from windows(5)
        raise OSError("the disk is gone")

    engine = encoder(Toy(), batch_size=2)
    batches = engine.encode(broken(), raw=False)
    assert [next(batches).starts, next(batches).starts] == [[0.0, 0.7], [1.4, 2.1]]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_nothing_beyond_the_last_layer_is_computed():
    model = Toy()
    (batch,) = encoder(model, layers=[1]).encode(windows(4), raw=False)
    assert model.computed == [0, 1]
    assert batch.segments.shape == (4, 1, DIM)
    assert batch.raw is None


def test_windows_are_drawn_as_they_are_needed():
    drawn = []

    def source():
        for start, window in windows(12):
            drawn.append(start)
            yield start, window

    batches = encoder(Toy(), batch_size=3).encode(source(), raw=False)
    assert drawn == []
    for number in range(1, 5):
        next(batches)
        assert len(drawn) == 3 * number


def test_the_next_windows_are_sent_while_a_device_computes():
    events = []

    class Watched(Overlapping):
        def send(self, windows):
            events.append(f"send {len(windows)}")
            return super().send(windows)

        def mark(self):
            events.append("computing")
            return lambda: events.append("arrived")

    engine = encoder(Toy(), batch_size=2, transfer=Watched(2))
    track = windows(5)
    check(list(engine.encode(track, raw=True)), track)
    first, second = ["send 2", "computing"], ["send 2", "computing", "arrived"]
    assert events == [*first, *second, "send 1", "computing", "arrived", "arrived"]


def test_features_are_ordinary_arrays():
    (batch,) = encoder(Toy()).encode(windows(4), raw=True)
    for array in (batch.raw[0, 0], batch.segments):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_a_window_without_a_frame():
    with pytest.raises(AudioTooShortError, match="4 samples at 10 Hz are too short for toy"):
        list(encoder(Toy()).encode(windows(1, samples=DIM - 1), raw=False))


def test_features_that_are_not_finite_are_an_error():
    track = windows(4)
    track[2][1][3] = np.inf
    with pytest.raises(ExtractionError, match="not finite"):
        list(encoder(Toy()).encode(track, raw=False))


class Short(Toy):
    def states(self, wave, last=None):
        yield from super().states(wave, last=1)


class Altered(Toy):
    """Gives states that are no longer what it promises."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def states(self, wave, last=None):
        for layer, state in enumerate(super().states(wave, last)):
            yield self.change(state) if layer == 2 else state


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :5], r"`frames`: state 2 of 40 samples has shape \(2, 5, 5\), not \(2, 8, 5\)"),
        (lambda x: torch.cat([x, x]), r"`states`: .* shape \(4, 8, 5\), not \(2, 8, 5\)"),
        (lambda x: x[:1], r"`states`: .* shape \(1, 8, 5\), not"),
        (lambda x: x[:, 0], r"`frames`: .* shape \(2, 5\), not"),
        (lambda x: x[..., None], r"`states`: .* shape \(2, 8, 5, 1\), not"),
        (lambda x: x[..., :4], r"`dim`: .* shape \(2, 8, 4\), not"),
        (lambda x: torch.complex(x, x), r"`states`: state 2 is torch\.complex64, not a Tensor of floating point"),
        (lambda x: x.long(), r"`states`: state 2 is torch\.int64, not a Tensor of floating point"),
        (lambda x: x.numpy(), r"`states`: state 2 is ndarray, not a Tensor"),
        (lambda x: x.tolist(), "`states`: state 2 is list, not a Tensor"),
    ],
)
def test_states_that_are_not_as_promised(change, message, raw):
    with pytest.raises(ModelError, match=f"^toy breaks the rule of {message}"):
        list(encoder(Altered(change)).encode(windows(2), raw=raw))
    check(list(encoder(Altered(change), layers=[0, 1]).encode(windows(2), raw=True)), windows(2), [0, 1])


def test_states_may_be_of_any_floating_point():
    check(list(encoder(Altered(torch.Tensor.double)).encode(windows(2), raw=True)), windows(2))


def test_a_model_that_breaks_its_promise():
    with pytest.raises(ModelError, match="fewer hidden states"):
        list(encoder(Short(), layers=[0, 3]).encode(windows(2), raw=False))


class Tireless(Toy):
    def states(self, wave, last=None):
        yield from super().states(wave, last=None)


def test_a_model_that_ignores_where_to_stop_is_stopped():
    model = Tireless()
    track = windows(2)
    check(list(encoder(model, layers=[0, 1]).encode(track, raw=True)), track, [0, 1])
    assert model.computed == [0, 1]


def many_tracks(counts, samples=SAMPLES):
    """Windows of several tracks, and those of each by owner."""
    by_owner = {f"track {n}": windows(count, samples, seed=n) for n, count in enumerate(counts)}
    return by_owner, [Window(owner, *window) for owner, track in by_owner.items() for window in track]


def by_owner(results):
    found = {}
    for owner, result in results:
        found.setdefault(owner, []).append(result)
    return found


@pytest.mark.slow
@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    batch_size=st.integers(1, 6),
    fits=st.integers(1, 6),
    transfer=st.none() | st.builds(Overlapping, st.integers(1, 6)),
)
def test_results_are_dealt_back_to_their_tracks_in_order(counts, batch_size, fits, transfer):
    tracks, stream = many_tracks(counts)
    engine = encoder(Toy(fits), batch_size=batch_size, transfer=transfer)
    found = by_owner(engine.encode_tracks(stream, raw=True))
    assert found.keys() == tracks.keys()
    for owner, track in tracks.items():
        check(found[owner], track)


def test_batches_are_full_across_tracks():
    model = Toy()
    _, stream = many_tracks([1, 5, 2, 3, 1])
    list(encoder(model, batch_size=4).encode_tracks(stream, raw=False))
    assert model.sizes == [4, 4, 4]


def test_tracks_shorter_than_a_window_are_batches_of_their_own_lengths():
    model = Toy()
    _, stream = many_tracks([3, 3])
    short = [Window(f"short {n}", *windows(1, length)[0]) for n, length in enumerate((20, 25, 20))]
    found = by_owner(encoder(model, batch_size=4).encode_tracks([*stream[:2], *short, *stream[2:]], raw=True))
    assert sorted(model.sizes) == [1, 2, 2, 4]
    assert {owner: sum(len(x.starts) for x in results) for owner, results in found.items()} == {
        "track 0": 3,
        "track 1": 3,
        "short 0": 1,
        "short 1": 1,
        "short 2": 1,
    }
    np.testing.assert_array_equal(found["short 1"][0].raw, expected(windows(1, 25)))


def test_features_that_are_not_finite_fail_their_track_only():
    tracks, stream = many_tracks([2, 2, 2])
    tracks["track 1"][1][1][3] = np.nan
    found = by_owner(encoder(Toy(), batch_size=6).encode_tracks(stream, raw=True))
    check(found["track 0"], tracks["track 0"])
    check(found["track 2"], tracks["track 2"])
    (error,) = found["track 1"]
    assert isinstance(error, ExtractionError)
    assert "not finite" in str(error)


class Picky(Toy):
    """A model that breaks down over one window, whatever else is in the batch."""

    def states(self, wave, last=None):
        if (wave[:, 0] == 99).any():
            self.sizes.append(len(wave))
            raise ZeroDivisionError("99")
        yield from super().states(wave, last)


@pytest.mark.parametrize("transfer", [None, Overlapping(10)])
def test_a_model_that_fails_on_one_track_fails_no_other(transfer):
    tracks, stream = many_tracks([2, 2, 2])
    tracks["track 1"][1][1][0] = 99
    model = Picky()
    found = by_owner(encoder(model, batch_size=6, transfer=transfer).encode_tracks(stream, raw=True))
    check(found["track 0"], tracks["track 0"])
    check(found["track 2"], tracks["track 2"])
    assert [type(error) for error in found["track 1"]] == [ZeroDivisionError]
    assert model.sizes == [6, 2, 2, 2]


def test_a_window_that_never_fits_fails_its_track_only():
    tracks, stream = many_tracks([1, 1, 1])
    tracks["track 1"][0][1][0] = 99

    class Greedy(Toy):
        def states(self, wave, last=None):
            if (wave[:, 0] == 99).any():
                out_of_cuda(len(wave))
            yield from super().states(wave, last)

    found = by_owner(encoder(Greedy(), batch_size=3).encode_tracks(stream, raw=True))
    check(found["track 0"], tracks["track 0"])
    check(found["track 2"], tracks["track 2"])
    (error,) = found["track 1"]
    assert "out of memory with 1 window" in str(error)


def test_without_recovery_all_tracks_of_the_batch_fail_and_the_next_goes_on():
    model = Toy(fits=0)
    tracks, stream = many_tracks([2, 2, 4])
    results = encoder(model, batch_size=4, oom_recovery=False).encode_tracks(stream, raw=True)
    failed = [next(results), next(results)]
    assert [owner for owner, _ in failed] == ["track 0", "track 1"]
    assert all("oom_recovery" in str(error) for _, error in failed)
    model.fits = 4
    check(by_owner(results)["track 2"], tracks["track 2"])


def test_a_source_that_waits_for_results_gets_them():
    tracks, stream = many_tracks([1, 1, 1, 1])
    done = []

    def source():
        for window in stream:
            while done != [other.owner for other in stream[: stream.index(window)]]:
                yield None
            yield window

    found = {}
    for owner, result in encoder(Toy(), transfer=Overlapping(9)).encode_tracks(source(), raw=True):
        done.append(owner)
        found[owner] = [result]
    for owner, track in tracks.items():
        check(found[owner], track)


def test_a_device_has_two_batches_at_most():
    under_way = [0]

    class Counting(Overlapping):
        def send(self, windows):
            under_way.append(under_way[-1] + 1)
            return super().send(windows)

        def mark(self):
            return lambda: under_way.append(under_way[-1] - 1)

    list(encoder(Toy(), batch_size=2, transfer=Counting(2)).encode(windows(20), raw=False))
    assert max(under_way) == 2


def test_a_size_that_was_reduced_is_tried_again_later():
    model = Toy(fits=2)
    engine = encoder(model, batch_size=4)
    list(engine.encode(windows(4), raw=False))
    model.fits = 4
    track = windows(2 * GROW_AFTER + 8)
    check(list(engine.encode(track, raw=True)), track)
    assert engine.batch_size == 4
    assert model.sizes[-1] == 4


def test_interrupts_pass_through_a_device_that_is_ahead():
    def source():
        yield from windows(3)
        raise KeyboardInterrupt

    results = encoder(Toy(), batch_size=2, transfer=Overlapping(2)).encode(source(), raw=False)
    with pytest.raises(KeyboardInterrupt):
        list(results)


class Late(Transfer):
    """Copies that arrive only when they are waited for, as a busy device's would."""

    overlaps = True

    def __init__(self):
        super().__init__(CPU)
        self.under_way = []

    def empty_on_host(self, *shape, dtype=torch.float32):
        return torch.full(shape, torch.nan, dtype=dtype)

    def receive(self, result, into):
        self.under_way.append((result.clone(), into))

    def mark(self):
        copies, self.under_way = self.under_way, []

        def arrive():
            with torch.inference_mode():
                for result, into in copies:
                    into.copy_(result)

        return arrive


@pytest.mark.parametrize("fits", [9, 2])
def test_nothing_is_looked_at_before_it_has_arrived(fits):
    tracks, stream = many_tracks([3, 1, 6, 2])
    found = by_owner(encoder(Toy(fits), transfer=Late()).encode_tracks(stream, raw=True))
    for owner, track in tracks.items():
        check(found[owner], track)


@pytest.mark.parametrize("bound", [1 << 28, 0], ids=["batches", "streamed"])
def test_frames_for_a_store_of_float16_are_cast_by_the_device(monkeypatch, bound):
    class Noted(Late):
        def receive(self, result, into):
            types.append((result.dtype, into.dtype))
            super().receive(result, into)

    types = []
    monkeypatch.setattr("featurestore.encode.batching.STREAM_BYTES", bound)
    exact, half = (
        [
            result.frames if isinstance(result, EncodedState) else result.raw
            for _, result in encoder(Toy(), transfer=Noted()).encode_tracks(
                many_tracks([5, 3])[1], raw=True, stream=True, dtype=dtype
            )
        ]
        for dtype in ("float32", "float16")
    )
    assert len(exact) == len(half) > 1
    for a, b in zip(exact, half, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert b.dtype == np.float16
            np.testing.assert_array_equal(b, a.astype(np.float16))
    if bound:  # the frames of each layer, and the means, which stay exact
        assert {x for x, y in types} == {torch.float32, torch.float16}
        assert all(x == y for x, y in types)
