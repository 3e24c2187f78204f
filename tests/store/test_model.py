"""Whatever writers and readers do, and whenever writers die, a store holds what a plain dict would hold."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from samples import assert_same, features, read_all

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import StoreError, TrackExistsError, TrackLockedError, TrackNotFoundError
from featurestore.spec import CODECS, KINDS
from featurestore.store import filesystem
from featurestore.store.commit.locks import stripe_of
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import shard_name
from featurestore.store.table.layout import chunk_name

pytestmark = pytest.mark.slow

IDS = ["a", "B/ü", "x" * 220, "c", "..", "zarr.json"]
assert len({stripe_of(encode_key(track_id)) for track_id in IDS}) == len(IDS)

SPECS = [
    FeatureSpec.for_arrays(layers=3, dim=4, dtype=dtype, codec=codec)
    for codec in CODECS
    for dtype in ("float32", "float16")
    if (dtype, codec) != ("float16", "bitround")
]
# Where it does not take long to make sure that something is on the disk.
MEMORY = Path(os.environ.get("FEATURESTORE_FAULTS_ON", "/dev/shm"))

tracks = st.sampled_from(IDS)
writers = st.integers(0, 1)
contents = st.builds(
    features,
    st.integers(0, 2**20),
    segments=st.integers(1, 4),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1),
)
STEPS = {"default": (25, 20), "ci": (100, 40), "nightly": (2_000, 60)}
EXAMPLES, LENGTH = STEPS[os.environ.get("HYPOTHESIS_PROFILE", "default")]


class Exits:
    """Ends the process at the n-th step by which a store changes."""

    def __init__(self, step):
        self.left = step

    def __call__(self, function):
        def call(*args, **options):
            self.left -= 1
            if self.left < 0:
                os._exit(0)
            return function(*args, **options)

        return call


def rounded(values):
    """Values with ten bits of mantissa behind the first."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 2**11), exponent - 11).astype(values.dtype)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="model-", dir=MEMORY if MEMORY.is_dir() else None))
        self.path = self.folder / "store.zarr"
        self.patches = contextlib.ExitStack()
        # A table of a few chunks, without thousands of tracks.
        self.patches.enter_context(
            mock.patch.multiple("featurestore.store.table.layout", SMALL_ROWS=2, first_layout=lambda: 0)
        )
        self.patches.enter_context(
            mock.patch.multiple("featurestore.store.bundles.layout", CHUNK_BYTES=32, SHARD_BYTES=192)
        )
        self.patches.enter_context(mock.patch("featurestore.store.sealing.seal.MOST_TRACKS", 2))
        self.writers = []
        self.model = {}
        self.packed = []  # ids in the order of the table
        self.begun = {}  # track in progress -> (stack, writer of the track, batches so far)
        self.held = []  # (view, ids, layers) of aggregated

    def open(self):
        return StoreWriter(self.path, spec=self.spec, durable=self.durable)

    def teardown(self):
        for stack, _, _ in self.begun.values():
            with contextlib.suppress(StoreError):
                stack.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        for writer in self.writers:
            writer.close()
        self.open().close()  # sweeps away what the dead left
        for name in ("staging", "journal", "trash"):
            assert list((self.path / ".featurestore" / name).iterdir()) == []
        self.patches.close()
        shutil.rmtree(self.folder)

    def expected_order(self):
        kept = [track_id for track_id in self.packed if track_id in self.model]
        return kept + sorted(set(self.model).difference(kept))

    def stored(self, arrays):
        """What a store holds of arrays that were put: aggregated always."""
        if "aggregated" not in arrays:
            pooled = arrays["segments"] if "segments" in arrays else arrays["raw"].mean(axis=2, dtype=np.float64)
            arrays = {**arrays, "aggregated": pooled.mean(axis=0, dtype=np.float64)}
        typed = {kind: values.astype(self.spec.dtype) for kind, values in arrays.items()}
        return {kind: rounded(v) if self.spec.codec == "bitround" else v for kind, v in typed.items()}

    def rows(self, ids):
        rows = [self.model[track_id]["aggregated"] for track_id in ids]
        return np.array(rows, self.spec.dtype).reshape(-1, len(self.spec.layers), self.spec.dim)

    @initialize(
        spec=st.sampled_from(SPECS),
        durable=st.booleans(),
        number=st.integers(1, len(IDS)),
        pack=st.booleans(),
        by_log=st.booleans(),
    )
    def begin_with_some_tracks(self, spec, durable, number, pack, by_log):
        self.spec, self.durable = spec, durable
        if by_log:  # as in a store of many tracks
            self.patches.enter_context(mock.patch("featurestore.store.table.index._MANY_TRACKS", 0))
        self.writers = [self.open(), self.open()]
        self.readers = [FeatureStore(self.path)]
        for seed, track_id in enumerate(IDS[-number:]):
            self.put(0, track_id, features(seed), overwrite=False)
        if pack:
            self.pack(0)

    @rule(writer=writers, track_id=tracks, arrays=contents, overwrite=st.booleans())
    def put(self, writer, track_id, arrays, overwrite):
        try:
            self.writers[writer].put(track_id, arrays, overwrite=overwrite)
        except TrackLockedError:
            assert track_id in self.begun
        except TrackExistsError:
            assert track_id in self.model
            assert not overwrite
        else:
            assert track_id not in self.begun
            assert overwrite or track_id not in self.model
            self.model[track_id] = self.stored(arrays)

    @rule(writer=writers, track_id=tracks)
    def remove(self, writer, track_id):
        try:
            self.writers[writer].remove(track_id)
        except TrackLockedError:
            assert track_id in self.begun
        except TrackNotFoundError:
            assert track_id not in self.model
        else:
            del self.model[track_id]

    @rule(writer=writers)
    def pack(self, writer):
        self.packed = self.expected_order()
        assert self.writers[writer].pack()

    @precondition(lambda self: self.spec.codec == "none")
    @rule(writer=writers, back=st.booleans())
    def seal(self, writer, back):
        """Move all tracks into bundles, or back into folders, but for those that are being written."""
        self.packed = self.expected_order()
        with contextlib.suppress(TrackLockedError):
            assert self.writers[writer].pack(seal=not back)

    @rule(writer=writers, track_id=tracks, kinds=st.sets(st.sampled_from(KINDS)))
    def begin_a_track(self, writer, track_id, kinds):
        stack = contextlib.ExitStack()
        try:
            track = stack.enter_context(self.writers[writer].track(track_id, kinds=tuple(kinds), overwrite=True))
        except TrackLockedError:
            assert track_id in self.begun
        else:
            self.begun[track_id] = (stack, track, {"kinds": kinds, "raw": []})

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), seed=st.integers(0, 2**20), segments=st.integers(1, 3))
    def append(self, data, seed, segments):
        _, track, state = self.begun[data.draw(st.sampled_from(sorted(self.begun)))]
        block = features(seed, segments=segments)["raw"]
        track.append(raw=block)
        state["raw"].append(block)

    @precondition(lambda self: any(state["raw"] for _, _, state in self.begun.values()))
    @rule(data=st.data())
    def finish_a_track(self, data):
        ready = sorted(track_id for track_id, (_, _, state) in self.begun.items() if state["raw"])
        track_id = data.draw(st.sampled_from(ready))
        stack, _, state = self.begun.pop(track_id)
        stack.close()
        raw = np.concatenate(state["raw"])
        pooled = raw.mean(axis=2, dtype=np.float64)
        arrays = {"raw": raw, "segments": pooled, "aggregated": pooled.mean(axis=0)}
        self.model[track_id] = self.stored({kind: arrays[kind] for kind in {*state["kinds"], "aggregated"}})

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def give_up_a_track(self, data):
        stack, _, _ = self.begun.pop(data.draw(st.sampled_from(sorted(self.begun))))
        with contextlib.suppress(KeyboardInterrupt), stack:
            raise KeyboardInterrupt

    @rule(track_id=tracks, arrays=contents, appended=st.booleans())
    def die_in_the_middle_of_a_track(self, track_id, arrays, appended):
        self.in_child(lambda writer: self.abandon(writer, track_id, arrays if appended else {}))

    def abandon(self, writer, track_id, arrays):
        with writer.track(track_id, kinds=["segments"], overwrite=True) as track:
            if "segments" in arrays:
                track.append(segments=arrays["segments"])
            os._exit(0)

    @rule(
        track_id=tracks,
        arrays=contents,
        change=st.sampled_from(["put", "remove", "pack", "seal", "unseal"]),
        step=st.integers(0, 60),
    )
    def die_in_the_middle_of_a_change(self, track_id, arrays, change, step):
        if track_id in self.begun or (change.endswith("seal") and self.spec.codec != "none"):
            return

        def work(writer):
            steps = Exits(step)
            for name in ("make_dir", "rename", "unlink", "write_file", "exchange", "link_or_copy", "touch"):
                setattr(filesystem, name, steps(getattr(filesystem, name)))
            with contextlib.suppress(TrackNotFoundError):
                if change == "put":
                    writer.put(track_id, arrays, overwrite=True)
                elif change == "remove":
                    writer.remove(track_id)
                else:
                    with contextlib.suppress(TrackLockedError):
                        writer.pack(seal={"pack": None, "seal": True, "unseal": False}[change])

        self.in_child(work)
        self.open().close()  # repairs
        store = FeatureStore(self.path)
        if change not in ("put", "remove"):
            table = store._source.index.snapshot().table
            found = [] if table is None else table.track_ids
            assert found in (self.packed, self.expected_order())
            self.packed = found
        elif track_id not in store:
            assert change == "remove" or track_id not in self.model
            self.model.pop(track_id, None)
        else:
            found = read_all(store, track_id)
            candidates = [self.model.get(track_id), self.stored(arrays) if change == "put" else None]
            same = [c for c in candidates if c is not None and set(c) == set(found)]
            same = [c for c in same if all(np.array_equal(c[kind], found[kind]) for kind in c)]
            assert same, "neither the old revision nor the new one"
            self.model[track_id] = same[-1]

    def in_child(self, work):
        pid = os.fork()
        if not pid:
            try:
                work(self.open())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    @rule(writer=writers, deep=st.booleans())
    def repair_what_is_sound(self, writer, deep):
        report, moved = self.writers[writer].repair(deep=deep)
        assert report.ok
        assert moved == []

    def in_folders(self):
        """Tracks, with a kind, that nobody writes and that are in folders."""
        free = self.model.keys() - self.begun.keys()
        found = [(track_id, kind) for track_id in sorted(free) for kind in sorted(self.model[track_id])]
        return [(x, kind) for x, kind in found if (self.path / kind / encode_key(x)).exists()]

    @precondition(lambda self: self.in_folders())
    @rule(writer=writers, data=st.data())
    def repair_a_damaged_track(self, writer, data):
        track_id, kind = data.draw(st.sampled_from(self.in_folders()))
        array, key = self.model.pop(track_id)[kind], encode_key(track_id)
        flip_a_bit(self.path / kind / key / shard_name(array.ndim))
        report, moved = self.writers[writer].repair()
        assert {problem.key for problem in report.problems if problem.what == "track"} == {key}
        assert len(moved) == 1
        self.packed_again(anew="packed" in {problem.what for problem in report.problems})

    @precondition(lambda self: self.model.keys() & set(self.packed))
    @rule(writer=writers, data=st.data())
    def repair_a_damaged_table(self, writer, data):
        table = FeatureStore(self.path)._source.index.snapshot().table
        # Nobody looks at rows of tracks that were removed.
        track_id = data.draw(st.sampled_from(sorted(self.model.keys() & set(self.packed))))
        name = chunk_name(table.encoding, table.rows[track_id] // table.rows_per_chunk, 0, 0)
        flip_a_bit(self.path / "packed" / "features" / name)
        report, moved = self.writers[writer].repair()
        assert {problem.what for problem in report.problems} == {"packed"}
        assert moved == []
        self.packed_again(anew=True)

    def packed_again(self, *, anew):
        self.packed = sorted(self.model) if anew else self.expected_order()

    @rule(writer=writers)
    def open_a_writer_anew(self, writer):
        if not self.begun:
            self.writers[writer].close()
            self.writers[writer] = self.open()

    @rule()
    def open_a_reader(self):
        self.readers = [*self.readers[-2:], FeatureStore(self.path)]

    @rule(data=st.data(), layer=st.sampled_from([None, 1, [2, 0]]))
    def hold_a_view(self, data, layer):
        store = data.draw(st.sampled_from(self.readers))
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=8)) if self.model else []
        self.held = [*self.held[-3:], (store.aggregated(layer=layer, tracks=ids), ids, layer)]

    @invariant()
    def views_that_are_held_answer_with_what_is_there_now(self):
        for view, ids, layer in self.held:
            if set(ids) <= set(self.model):
                rows = self.rows(ids)
                assert np.array_equal(view, rows if layer is None else rows[:, layer])
            else:
                with contextlib.suppress(TrackNotFoundError):
                    np.asarray(view)
                    raise AssertionError("a track that was removed was read")

    @invariant()
    def every_reader_sees_what_the_dict_holds(self):
        order = self.expected_order()
        for store in self.readers:
            assert store.track_ids == order
            assert len(store) == len(order)
        store = self.readers[0]
        for track_id in IDS:
            assert (track_id in store) == (track_id in self.model)
        for track_id, arrays in self.model.items():
            assert_same(read_all(store, track_id), arrays)
        assert np.array_equal(store.aggregated(), self.rows(order))
        ragged = [track_id for track_id in order if "segments" in self.model[track_id]]
        if ragged:
            rows = np.concatenate([self.model[track_id]["segments"] for track_id in ragged])
            assert np.array_equal(store.segments(tracks=ragged), rows)
        report = store.verify(deep=True)
        assert report.problems == ()
        assert report.tracks == len(self.model)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=EXAMPLES, stateful_step_count=LENGTH)
