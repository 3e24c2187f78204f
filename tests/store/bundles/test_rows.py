"""Rows of a bundle's features: whatever is asked for is what was written, and has passed its check."""

from contextlib import contextmanager
from unittest import mock

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import FeatureSpec
from featurestore.errors import CorruptTrackError
from featurestore.store.bundles import rows as room
from featurestore.store.bundles.layout import ShardLayout, Sizes
from featurestore.store.bundles.rows import RowReader, RowWriter, checksums_of_runs
from featurestore.store.paths import StorePaths

pytestmark = pytest.mark.slow

SPEC = FeatureSpec.for_arrays(layers=3, dim=4)
ROWS = np.random.default_rng(0).standard_normal((45, 3, 4), np.float32)
METADATA = Sizes(1, len(ROWS), SPEC, chunk_rows=2, shard_rows=16, attribute_rows=1).features("segments")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An array in shards of sixteen rows and chunks of two."""
    path = tmp_path_factory.mktemp("segments")
    writer = RowWriter(path, METADATA)
    for part in np.split(ROWS, [1, 2, 20]):
        writer.append(part)
    writer.close()
    return path


@contextmanager
def opened(folder, way):
    with (
        mock.patch.multiple(room, **WAYS[way]),
        StorePaths(folder).open() as files,
        RowReader(files, METADATA, "segments") as reader,
    ):
        yield reader


FEW = {"_BATCH": 3 * 36}  # chunks at once
THREADS = {**FEW, "_LARGE": 0, "THREADS": 2}
WAYS = {
    "alone": FEW,
    "threads that read many chunks": {**THREADS, "_SPARSE": 10**6},
    "a slow disk": {**THREADS, "_SPARSE": 0, "_MOMENT": -1},
    "what is in memory": {**THREADS, "_SPARSE": 0, "_MOMENT": 10**6},
}
by_all_ways = pytest.mark.parametrize("way", WAYS)


some_rows = st.lists(st.integers(0, len(ROWS) - 1), max_size=60)
ranges = st.tuples(st.integers(0, len(ROWS)), st.integers(0, len(ROWS))).map(lambda pair: list(range(*pair)))


@by_all_ways
@pytest.mark.parametrize("layers", [[1], [2, 0], [0, 1, 2]])
@given(rows=st.one_of(some_rows, ranges, st.tuples(ranges, ranges).map(lambda two: two[0] + two[1])))
def test_rows_are_read_in_any_order_from_any_layers(folder, way, layers, rows):
    with opened(folder, way) as reader:
        found = reader.read(np.array(rows, np.int64), layers)
    assert np.array_equal(found, ROWS[rows][:, layers])


@given(st.lists(st.binary(min_size=7, max_size=7), max_size=20))
def test_chunks_in_a_row_have_one_checksum(chunks):
    content = b"".join(x + int(google_crc32c.value(x)).to_bytes(4, "little") for x in chunks)
    assert google_crc32c.value(content) == checksums_of_runs(7, len(chunks))[-1]


@by_all_ways
@given(number=st.integers(0, 2), place=st.integers(0, 10**6), bit=st.integers(0, 7), times=st.integers(1, 3))
def test_whatever_is_damaged_is_found(folder, way, number, place, bit, times):
    """Even where the same happens to neighbouring chunks."""
    shard = ShardLayout(METADATA, number)
    size = shard.offset(shard.layers, 0)
    file = folder / shard.name
    sound = file.read_bytes()
    damaged = bytearray(sound)
    for at in range(place % size, size, 36)[:times]:
        damaged[at] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        with opened(folder, way) as reader, pytest.raises(CorruptTrackError, match="its checksum"):
            reader.read(np.arange(len(ROWS)), [0, 1, 2])
    finally:
        file.write_bytes(sound)
