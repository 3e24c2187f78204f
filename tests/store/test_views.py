"""Views: lazy arrays that answer every index as the array that they stand for."""

import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import SPEC, features, write_store

from featurestore import FeatureSpec, StoreWriter
from featurestore.errors import SettingError, TrackNotFoundError
from featurestore.store import lazy_array
from featurestore.store.table import index, layout
from featurestore.store.table.table import PackedTable
from featurestore.store.track_reader import TrackReader

TRACKS = {track_id: features(seed, segments=2 + seed) for seed, track_id in enumerate(["c", "a", "b/x", "d"])}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "store.zarr"
    some = {track_id: TRACKS[track_id] for track_id in ["a", "c"]}
    write_store(path, some, pack=True)
    return write_store(path, {k: v for k, v in TRACKS.items() if k not in some})


@pytest.fixture(scope="module")
def views(store):
    return {
        "aggregated": store.aggregated(),
        "aggregated, one layer": store.aggregated(layer=1),
        "aggregated, layers": store.aggregated(layer=[2, 0], tracks=["d", "a", "d"]),
        "segments": store.segments("c"),
        "segments, one layer": store.segments("a", layer=2),
        "raw": store.raw("d"),
        "raw, one layer": store.raw("d", layer=0),
        "raw, layers": store.raw("a", layer=[1]),
        "ragged": store.segments(),
        "ragged, one layer": store.segments(layer=1),
        "nothing": store.aggregated(tracks=[]),
    }


NAMES = [
    *("aggregated", "aggregated, one layer", "aggregated, layers", "segments", "segments, one layer", "raw"),
    *("raw, one layer", "raw, layers", "ragged", "ragged, one layer", "nothing"),
]


@st.composite
def indices(draw, shape):
    """Whatever numpy takes: integers, slices, an ellipsis, new axes, lists and masks."""
    kind = draw(st.sampled_from(["basic", "basic", "basic", "list", "mask", "whole mask", "integers"]))
    if kind == "basic":
        return draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    if kind == "whole mask":
        return draw(hnp.arrays(bool, shape))
    if kind == "integers":
        return draw(hnp.integer_array_indices(shape)) if all(shape) else ()
    axis = draw(st.integers(0, len(shape) - 1))
    length = shape[axis]
    if kind == "mask":
        item = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        item = np.array(item, dtype=bool) if draw(st.booleans()) else item
    else:
        item = draw(st.lists(st.integers(-length, length - 1), max_size=4)) if length else []
        item = np.array(item, dtype=draw(st.sampled_from([np.int64, np.int8]))) if draw(st.booleans()) else item
    before = [draw(st.slices(n)) for n in shape[:axis]]
    after = draw(hnp.basic_indices(shape[axis + 1 :], min_dims=0)) if axis + 1 < len(shape) else ()
    index = (*before, item, *(after if isinstance(after, tuple) else (after,)))
    return index[0] if len(index) == 1 and draw(st.booleans()) else index


@pytest.mark.slow
@given(name=st.sampled_from(NAMES), data=st.data())
def test_any_index_gives_what_the_array_gives(views, name, data):
    view = views[name]
    array = np.asarray(view)
    index = data.draw(indices(array.shape))
    expected = array[index]
    found = view[index]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


COMMON = [
    *(0, -1, slice(None, None, -1), slice(5, 2), ..., (..., 0), None, (0, ...), (slice(None), 0), (0, 0), ()),
    *([], [0, -1], np.array([], dtype=int), (..., [0, 2]), (0, [1]), ([0, 1], 0), ([0], [1]), (None, 0, 0)),
    *(np.int64(0), np.array(0), np.True_),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", COMMON, ids=repr)
def test_common_indices(views, name, index):
    view = views[name]
    array = np.asarray(view)
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises(IndexError):
            view[index]
    else:
        assert np.array_equal(view[index], expected)
        assert view[index].shape == expected.shape


@pytest.mark.parametrize(
    "index",
    [99, -99, (0, 0, 0, 0, 0), (..., ...), "x", 1.5, [0.5], (0, 99), [99], np.ones(99, bool), {"a": 1}],
    ids=repr,
)
@pytest.mark.parametrize("name", NAMES)
def test_impossible_indices_are_refused_as_numpy_refuses_them(views, name, index):
    with pytest.raises(IndexError):
        np.asarray(views[name])[index]
    with pytest.raises(IndexError):
        views[name][index]


def test_views_hold_what_was_stored(store, views):
    assert store.track_ids == ["a", "c", "b/x", "d"]
    rows = np.stack([TRACKS[t]["aggregated"] for t in store.track_ids])
    assert np.array_equal(views["aggregated"], rows)
    assert np.array_equal(views["aggregated, one layer"], rows[:, 1])
    assert np.array_equal(views["aggregated, layers"], rows[[3, 0, 3]][:, [2, 0]])
    assert np.array_equal(views["segments"], TRACKS["c"]["segments"])
    assert np.array_equal(views["segments, one layer"], TRACKS["a"]["segments"][:, 2])
    assert np.array_equal(views["raw"], TRACKS["d"]["raw"])
    assert np.array_equal(views["raw, one layer"], TRACKS["d"]["raw"][:, 0])
    assert np.array_equal(views["raw, layers"], TRACKS["a"]["raw"][:, [1]])
    assert np.array_equal(views["ragged"], np.concatenate([TRACKS[t]["segments"] for t in store.track_ids]))


def test_dimensions_have_names_and_labels(store, views):
    assert views["aggregated"].dims == ("track", "layer", "feature")
    assert views["aggregated, one layer"].dims == ("track", "feature")
    assert views["segments"].dims == ("segment", "layer", "feature")
    assert views["raw"].dims == ("segment", "layer", "frame", "feature")
    assert views["raw, one layer"].dims == ("segment", "frame", "feature")
    assert views["ragged, one layer"].dims == ("row", "feature")
    assert views["aggregated, layers"].coords["layer"].tolist() == [2, 0]
    assert views["aggregated, layers"].coords["track"].tolist() == ["d", "a", "d"]
    assert views["aggregated, layers"].track_ids == ["d", "a", "d"]
    assert "layer" not in views["raw, one layer"].coords


def test_rows_of_the_ragged_view_know_their_track(store, views):
    view = views["ragged, one layer"]
    counts = [len(TRACKS[t]["segments"]) for t in store.track_ids]
    assert view.row_tracks.tolist() == [t for t, n in zip(store.track_ids, counts, strict=True) for _ in range(n)]
    assert np.isnan(view.row_starts).all()
    assert view.shape == (sum(counts), SPEC.dim)
    some = store.segments(layer=1, tracks=["d", "a"])
    assert some.row_tracks.tolist() == ["d"] * 5 + ["a"] * 3
    assert np.array_equal(some, np.concatenate([TRACKS[t]["segments"][:, 1] for t in "da"]))
    nothing = store.segments(tracks=[])
    assert np.asarray(nothing).shape == (0, 3, 4)
    assert nothing.row_starts.shape == nothing.row_tracks.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_views_are_pickled_and_described(views, name):
    view = views[name]
    copy = pickle.loads(pickle.dumps(view))
    assert (copy.shape, copy.dims, copy.dtype) == (view.shape, view.dims, view.dtype)
    assert np.array_equal(copy, view)
    assert type(view).__name__ in repr(view)
    assert str(view.shape[0]) in repr(view)
    assert len(view) == view.shape[0]
    assert view.ndim == len(view.shape) == len(view.dims)
    assert view.nbytes == np.asarray(view).nbytes
    assert view.size == np.asarray(view).size


@pytest.mark.parametrize("name", NAMES)
def test_views_become_arrays_of_any_type(views, name):
    view = views[name]
    assert np.asarray(view).dtype == view.dtype == np.float32
    assert np.asarray(view, dtype=np.float64).dtype == np.float64
    assert np.array(view, dtype="float16", copy=True).dtype == np.float16
    assert np.array_equal(view.to_numpy(), np.asarray(view))
    assert np.asarray(view).flags.writeable
    with pytest.raises(ValueError, match="copy"):
        np.asarray(view, copy=False)


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    store = write_store(tmp_path / "store.zarr", {"a": features()}, pack=True)
    views = [store.aggregated(layer=1), store.segments("a"), store.raw("a", layer=0), store.segments(layer=2)]
    for file in (tmp_path / "store.zarr").glob("*/*/c.*"):
        file.unlink()
    for view in views[:1]:
        assert view.shape == (1, 4)


@pytest.mark.parametrize("layer", [3, -1, [0, 3], 99])
def test_a_layer_that_is_not_stored_is_refused(store, layer):
    for make in (store.aggregated, store.segments, lambda layer: store.raw("a", layer=layer)):
        with pytest.raises(SettingError, match="it has 0, 1, 2"):
            make(layer=layer)


@pytest.mark.parametrize(
    "layer", ["1", "12", 1.0, [1.5], [[0]], {"a": 1}, [None], True, [False] * 2 + [True], [True, 1]]
)
def test_what_is_no_layer_is_refused(store, layer):
    with pytest.raises(SettingError, match="layer"):
        store.aggregated(layer=layer)


def test_masks_are_no_layers(store):
    for mask in ([np.True_, np.False_, np.True_], np.array([True, False, True])):
        with pytest.raises(SettingError, match="layer"):
            store.aggregated(layer=mask)


@pytest.mark.parametrize("layer", [(0, 2), np.array([0, 2]), range(0, 3, 2), [0, np.int64(2)]])
def test_any_sequence_of_layers_is_taken(store, layer):
    assert store.aggregated(layer=layer).layers == (0, 2)
    assert store.aggregated(layer=np.int32(2)).layers == (2,)
    assert store.aggregated(layer=[]).shape == (4, 0, 4)
    assert np.asarray(store.aggregated(layer=[])).shape == (4, 0, 4)


def test_layers_are_called_by_their_number_not_their_place(tmp_path):
    spec = FeatureSpec.for_arrays(layers=[4, 7], dim=4)
    arrays = features(0, spec=spec)
    store = write_store(tmp_path / "store.zarr", {"a": arrays}, spec=spec)
    assert np.array_equal(store.aggregated(layer=7), arrays["aggregated"][None, 1])
    assert np.array_equal(store.raw("a", layer=[7, 4]), arrays["raw"][:, ::-1])
    with pytest.raises(SettingError, match="it has 4, 7"):
        store.aggregated(layer=1)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "float16"]), layers=st.integers(1, 4))
@example(seed=0, dtype="float16", layers=1)
def test_float16_stays_float16(tmp_path_factory, seed, dtype, layers):
    spec = FeatureSpec.for_arrays(layers=layers, dim=3, dtype=dtype)
    arrays = features(seed, spec=spec, segments=1 + seed % 3)
    store = write_store(tmp_path_factory.mktemp("v") / "store.zarr", {"a": arrays}, spec=spec, pack=bool(seed % 2))
    for view, kind in [
        (store.aggregated(), "aggregated"),
        (store.segments("a"), "segments"),
        (store.raw("a"), "raw"),
    ]:
        assert view.dtype == np.asarray(view).dtype == arrays[kind].dtype
        assert np.asarray(view).tobytes() == arrays[kind].tobytes()


MANY = {
    f"{n:03}": {"segments": np.full((1, 3, 4), n, "f4"), "aggregated": np.full((3, 4), n, "f4")}
    for n in range(200)
}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # chunks of 128 rows, not of a random number: reads are counted
        patch.setattr(layout, "first_layout", lambda: 0)
        return write_store(tmp_path_factory.mktemp("many") / "store.zarr", MANY, pack=True)


@pytest.fixture
def reads(monkeypatch):
    """How often something was read."""
    found = []
    for owner, name in ((TrackReader, "read_rows"), (PackedTable, "read")):
        original = getattr(owner, name)

        def counted(self, *args, original=original):
            found.append(original.__name__)
            return original(self, *args)

        monkeypatch.setattr(owner, name, counted)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 1])
def test_a_view_is_read_as_a_whole_wherever_an_array_is_taken(many, reads, layer):
    import torch

    view = many.aggregated(layer=layer)
    expected = np.stack([MANY[t]["aggregated"] for t in many.track_ids])[
        :, slice(None) if layer is None else layer
    ]
    taken = {
        "torch.tensor": lambda: torch.tensor(view).numpy(),
        "torch.as_tensor": lambda: torch.as_tensor(view).numpy(),
        "numpy.from_dlpack": lambda: np.from_dlpack(view),
        "numpy.array": lambda: np.array(view),
        "list": lambda: np.stack(list(view)),
    }
    for name, take in taken.items():
        reads.clear()
        assert np.array_equal(take(), expected), name
        assert reads == ["read"], name


def test_a_view_is_a_data_frame(many, reads):
    import pandas

    view = many.aggregated(layer=1)
    frame = pandas.DataFrame(view, index=view.track_ids)
    assert frame.loc["007"].tolist() == MANY["007"]["aggregated"][1].tolist()
    assert reads == ["read"]


@pytest.mark.slow
def test_iterating_reads_many_rows_at_once(many, reads, monkeypatch):
    monkeypatch.setattr(lazy_array, "_CHUNK_BYTES", 50 * 3 * 4 * 4)
    assert np.array_equal(np.stack(list(many.aggregated())), many.aggregated())
    assert len(reads) == 4 + 1
    segments = many.segments(layer=2)
    assert np.array_equal(np.stack(list(segments)), segments)


@pytest.mark.parametrize("pack", [False, True])
def test_tracks_that_were_removed_meanwhile_are_left_out_of_all(path, pack):
    store = write_store(path, TRACKS, pack=True)
    read = {
        "aggregated": lambda view: view.to_numpy(),
        "a layer": lambda view: np.asarray(view),
        "segments": lambda view: view[:],
        "described": lambda view: np.empty(view.shape),
    }
    held = {
        "aggregated": store.aggregated(),
        "a layer": store.aggregated(layer=1),
        "segments": store.segments(),
        "described": store.segments(),
    }
    seen, some = store.aggregated(), store.aggregated(tracks=["c", "d"])
    assert len(seen) == 4
    store.remove("c")
    if pack:
        store.pack()
    for name, view in held.items():
        assert len(read[name](view)) == len(view), name
        assert view.track_ids == ["a", "b/x", "d"]
    assert np.array_equal(held["aggregated"], [TRACKS[t]["aggregated"] for t in ("a", "b/x", "d")])
    assert np.array_equal(held["segments"], np.concatenate([TRACKS[t]["segments"] for t in ("a", "b/x", "d")]))
    for view in (seen, some):  # whose rows were told, or chosen
        with pytest.raises(TrackNotFoundError):
            view.to_numpy()


def test_queries_of_a_few_tracks_look_at_no_others(path, monkeypatch):
    store = write_store(path, TRACKS, pack=True)
    view, ragged = store.aggregated(layer=1), store.segments(layer=1)
    assert len(ragged) == sum(len(arrays["segments"]) for arrays in TRACKS.values())
    with StoreWriter(path, spec=SPEC, durable=False) as writer:  # so that nothing that is known is new
        writer.put("new", features(9))

    def refused(*_):
        raise AssertionError("the store was listed")

    monkeypatch.setattr(index, "compare_keys", refused)
    monkeypatch.setattr(index.PackedTable, "open", refused)
    assert np.array_equal(view[1], TRACKS["b/x"]["aggregated"][1])
    assert np.array_equal(
        store.aggregated(layer=1, tracks=["d", "new"])[:, 0],
        [TRACKS["d"]["aggregated"][1, 0], features(9)["aggregated"][1, 0]],
    )
    assert np.array_equal(store.segments("new", layer=1), features(9)["segments"][:, 1])
    assert np.array_equal(ragged[0], TRACKS["a"]["segments"][0, 1])
    assert "new" in store


def test_a_row_of_the_ragged_view_opens_one_track(many, monkeypatch):
    view = many.segments(layer=1)
    assert len(view) == 200
    opened = []
    original = TrackReader.open
    monkeypatch.setattr(TrackReader, "open", lambda self, *a: opened.append(a) or original(self, *a))
    for row in (0, 7, -1, 199):
        opened.clear()
        assert view[row].tolist() == [float(row % 200)] * 4
        assert len(opened) == 1
