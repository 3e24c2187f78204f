"""Names that a writer does not take: of tracks, and of attributes."""

import pytest
from samples import features

from featurestore import FeatureStore
from featurestore.errors import SettingError


@pytest.mark.parametrize("track_id", [5, None, b"a", ("a",)])
def test_an_id_that_is_no_text_is_refused(writer, track_id):
    for do in (
        lambda: writer.put(track_id, features()),
        lambda: writer.remove(track_id),
        lambda: writer.existing(track_id),
    ):
        with pytest.raises(SettingError, match="a track id is text"):
            do()


@pytest.mark.parametrize("name", ["track_id", "revision", "kinds", "fingerprint", "layers", "starts", "checksums"])
def test_attributes_do_not_take_the_names_of_the_store(writer, path, name):
    with pytest.raises(SettingError, match=f"named {name}"):
        writer.put("a", features(), attributes={"note": 1, name: "mine"})
    with (
        pytest.raises(SettingError, match=f"named {name}"),
        writer.track("a", kinds=["aggregated"], attributes={name: "mine"}) as track,
    ):
        track.set_aggregated(features()["aggregated"])
    assert "a" not in FeatureStore(path)
