"""Which ids are named where one is unknown."""

import pytest

from featurestore.store.selection import close_ids


@pytest.mark.parametrize(
    ("wanted", "ids", "closest"),
    [
        ("rok/song", ["jazz/song", "rock/song"], ["rock/song", "jazz/song"]),
        ("song", ["a/very/long/path/of/folders/song", "a/very/long/path/of/folders/tune"], [0]),
        ("sonk", ["a/very/long/path/of/folders/song", "a/very/long/path/of/folders/tune"], [0]),
        ("pop/song", ["a/very/long/path/of/folders/song"], [0]),
        ("nothing", ["a/b", "c"], []),
    ],
)
def test_ids_that_are_meant(wanted, ids, closest):
    assert close_ids(wanted, ids) == [ids[x] if isinstance(x, int) else x for x in closest]
