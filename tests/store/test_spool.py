"""Rows that wait in memory or in a file come back the same, by layer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.store.track_writer import RowSpool


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    limit=st.sampled_from([0, 50, 10**9]),
    layers=st.integers(1, 4),
    dtype=st.sampled_from(["<f4", "<f2"]),
)
def test_rows_come_back_by_layer(tmp_path_factory, counts, limit, layers, dtype):
    path = tmp_path_factory.mktemp("spool") / "rows"
    rows = np.arange(sum(counts) * layers * 3).reshape(-1, layers, 3).astype(dtype)
    spool = RowSpool(path, limit)
    for part in np.split(rows, np.cumsum(counts)[:-1]):
        spool.append(part)
    columns = list(spool.columns())
    assert path.exists() == (rows.nbytes > limit)
    spool.close()
    assert not path.exists()
    assert len(columns) == layers
    for layer, column in enumerate(columns):
        assert column.flags.c_contiguous
        assert np.array_equal(column, rows[:, layer : layer + 1])


def test_memory_is_bounded_by_the_limit(tmp_path):
    spool = RowSpool(tmp_path / "rows", limit=1_000)
    for _ in range(100):
        spool.append(np.zeros((1, 1, 100), "<f4"))
        assert sum(part.nbytes for part in spool._parts) <= 1_400
    spool.close()


def test_a_file_that_is_in_the_way_is_not_written_over(tmp_path):
    (tmp_path / "rows").write_text("mine")
    spool = RowSpool(tmp_path / "rows", limit=0)
    with pytest.raises(FileExistsError):
        spool.append(np.zeros((1, 1, 1), "<f4"))
    assert (tmp_path / "rows").read_text() == "mine"
