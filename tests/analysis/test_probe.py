"""Linear probes: the layer that knows is found, groups are held apart, and shuffled labels score as chance."""

from xml.etree import ElementTree

import numpy as np
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.analysis.probe import probe_layers
from featurestore.errors import SettingError

pytestmark = pytest.mark.slow
GROUPS = np.repeat(np.arange(40), 8)
GENRES = np.array(["folk", "jazz", "rock"])[GROUPS % 3]


def layers(signal, *, artist=0.0):
    def reading(strength):
        def read():
            rng = np.random.default_rng(int(100 * strength))
            own = np.random.default_rng(1).normal(size=(40, 32))[GROUPS]
            genre = np.random.default_rng(2).normal(size=(3, 32))[GROUPS % 3]
            return (rng.normal(size=(320, 32)) + strength * genre + artist * own).astype(np.float32)

        return read

    return {str(number): reading(strength) for number, strength in enumerate(signal)}


def test_the_layer_that_knows_is_found_and_chance_is_told():
    report = probe_layers(layers([0.0, 0.3, 1.0]), GENRES, label="genre", groups=GROUPS)
    assert report.best == "2"
    assert report.ties == ["2"]
    assert (report.classes, report.groups, report.tracks) == (3, 40, 320)
    means = {row["layer"]: row["mean"] for row in report.rows()}
    assert means["2"] > 0.95
    assert abs(means["0"] - 1 / 3) < 0.06
    assert abs(report.shuffled - report.chance) < 0.06
    assert "genre: balanced accuracy, 320 tracks, 3 classes, 40 groups" in str(report)


def test_the_picture_has_what_the_table_has():
    report = probe_layers(layers([0.0, 0.3, 1.0]), GENRES, label="<genre>", groups=GROUPS)
    picture = ElementTree.fromstring(report.to_svg())
    name = "{http://www.w3.org/2000/svg}"
    bars = list(picture.iter(f"{name}rect"))
    assert [bar.get("class") for bar in bars] == ["bar", "bar", "bar tie"]
    heights = np.array([float(bar.get("height")) for bar in bars])
    means = np.array([row["mean"] for row in report.rows()])
    np.testing.assert_allclose(heights / heights[2], means / means[2], atol=0.01)
    said = [text.text for text in picture.iter(f"{name}text")]
    assert said[0].startswith("<genre>: balanced accuracy")
    assert said[-1] == f"dashed: chance {report.chance:.3f}; dotted: shuffled labels {report.shuffled:.3f}"


def test_layers_that_cannot_be_told_apart_are_named():
    report = probe_layers(layers([0.5, 0.501, 0.0]), GENRES, label="genre", groups=GROUPS)
    assert set(report.ties) == {"0", "1"}


def test_without_groups_artists_are_recognised():
    features = layers([0.0], artist=2.0)
    apart = probe_layers(features, GENRES, label="genre", groups=GROUPS).rows()[0]["mean"]
    mixed = probe_layers(features, GENRES, label="genre", groups=None).rows()[0]["mean"]
    assert mixed > apart + 0.3


def test_few_groups_are_enough_for_the_choice_within_a_fold():
    """Three artists of each class: two are left to train on, and one of these to choose by."""
    labels, artists = np.repeat(["jazz", "rock"], 6), np.repeat(np.arange(6), 2)
    x = np.random.default_rng(0).normal(size=(12, 4)) + 4 * (labels == "rock")[:, None]
    report = probe_layers({"0": lambda: x}, labels, label="genre", groups=artists)
    assert report.scores["0"].mean() > 0.9


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_numbers_are_predicted(groups):
    features = layers([0.0, 1.0])
    values = features["1"]()[:, 0] * 3.0 + 100
    report = probe_layers(features, values.astype(np.float64), label="bpm", groups=groups)
    assert (report.metric, report.best, report.chance) == ("R2", "1", 0.0)
    assert report.rows()[1]["mean"] > 0.9
    assert report.shuffled < 0.05


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["a"] * 320, GROUPS),
        (["a"] * 319 + ["b"], None),
        (GROUPS.astype(str), GROUPS),
        (np.arange(320.0), GROUPS * 0),
    ],
)
def test_too_few_are_refused(values, groups):
    with pytest.raises(SettingError, match="'genre' needs at least two"):
        probe_layers(layers([1.0]), np.array(values), label="genre", groups=groups)


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(SettingError, match="not finite"):
        probe_layers({"0": lambda: np.full((320, 4), np.nan)}, GENRES, label="genre", groups=GROUPS)


def test_a_baseline_is_a_store(tmp_path):
    random = np.random.default_rng(0)
    spec = FeatureSpec.for_arrays(layers=1, dim=4)
    for name in ("s.zarr", "spectra.zarr"):
        with StoreWriter(tmp_path / name, spec=spec) as writer:
            for number in range(8):
                writer.put(str(number), {"aggregated": random.normal(size=(1, 4))})
    labels = {str(number): "ab"[number % 2] for number in range(8)}
    store = FeatureStore(tmp_path / "s.zarr")
    report = store.probe(labels, no_groups=True, baseline=FeatureStore(tmp_path / "spectra.zarr"))
    assert list(report.scores) == ["0", "spectra.zarr:0"]
    for wrong in ("logmel", tmp_path / "spectra.zarr"):
        with pytest.raises(SettingError, match=r"^`baseline` is an open store of the same tracks, not .*model='"):
            store.probe(labels, no_groups=True, baseline=wrong)
