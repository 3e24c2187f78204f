"""Readers see whole revisions, and no error, while others write; longer with FEATURESTORE_STRESS_SECONDS."""

import concurrent_load as load
import pytest

from featurestore import FeatureStore


@pytest.fixture
def busy(path):
    load.make(path)
    return path


@pytest.mark.slow
def test_readers_see_whole_tracks_while_others_replace_add_and_pack(busy, forked):
    seen = load.run(
        busy,
        [load.overwrite, load.append],
        [load.read_anew, load.read_held, load.read_held_of_many, load.verify_meanwhile],
        forked,
    )
    for reader in seen:
        assert set(reader) == {"ok"}
    assert FeatureStore(busy).verify(deep=True).ok


@pytest.mark.slow
def test_readers_see_whole_tracks_where_folders_cannot_be_exchanged(busy, forked):
    seen = load.run(
        busy,
        [load.overwrite_by_renaming, load.append_by_renaming],
        [load.read_anew, load.read_held, load.read_held_of_many, load.verify_meanwhile],
        forked,
    )
    for reader in seen:
        assert set(reader) == {"ok"}
    assert FeatureStore(busy).verify(deep=True).ok


@pytest.mark.slow
def test_readers_see_whole_tracks_while_others_seal_and_unseal_them(busy, forked):
    seen = load.run(
        busy,
        [load.overwrite, load.append, load.seal_and_unseal],
        [load.read_anew, load.read_held, load.read_held_of_many, load.verify_meanwhile],
        forked,
    )
    for reader in seen:
        assert set(reader) == {"ok"}
    assert FeatureStore(busy).verify(deep=True).ok


@pytest.mark.slow
def test_xarray_sees_the_whole_table_that_it_opened(busy, forked):
    """Through any number of packs that add tracks, and one that replaces some."""
    (seen,) = load.run(busy, [load.overwrite, load.append], [load.read_with_xarray], forked)
    assert set(seen) == {"ok"}


@pytest.mark.slow
def test_what_zarr_reads_is_whole_if_the_revision_is_the_same_before_and_after(busy, forked):
    """Metadata and numbers are opened one after the other, so a track may be replaced in between."""
    (seen,) = load.run(busy, [load.overwrite], [load.read_with_zarr], forked)
    assert seen["same revision before and after: whole"] > 0
    assert "same revision before and after: torn" not in seen
