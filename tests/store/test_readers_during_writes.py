"""Readers see whole revisions, and no error, while others write; longer with FEATURESTORE_STRESS_SECONDS."""

import pytest
import traffic

from featurestore import FeatureStore


@pytest.fixture
def busy(path):
    traffic.make(path)
    return path


def test_readers_see_whole_tracks_while_others_replace_add_and_pack(busy):
    seen = traffic.run(
        busy,
        [traffic.overwrite, traffic.append],
        [traffic.read_anew, traffic.read_held, traffic.verify_meanwhile],
    )
    for reader in seen:
        assert reader["ok"] > 0
        assert set(reader) == {"ok"}
    assert FeatureStore(busy).verify(deep=True).ok
