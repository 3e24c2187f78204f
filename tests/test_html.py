"""Tables for notebooks: what is in them is text, whatever it looks like."""

from html.parser import HTMLParser

import numpy as np
import pytest

from featurestore import BuildReport, FeatureSpec, FeatureStore, StoreWriter
from featurestore._html import html_table
from featurestore.pipeline import Failure

HOSTILE = "<script>alert(1)</script>\"' onload=x & </td>\x1b[2J\u202e"


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert {name for name, _ in attributes} <= {"style"}
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "<b>bold.zarr"
    with StoreWriter(path, spec=FeatureSpec.for_arrays(layers=2, dim=4)) as writer:
        writer.put(HOSTILE, {"segments": np.ones((3, 2, 4))})
    return FeatureStore(path)


def read(shown):
    found = Reader(shown._repr_html_())
    assert set(found.tags) == {"table", "caption", "tr", "th", "td"}
    assert all(text.isprintable() for text in found.texts)
    return found.texts


def test_values_are_text():
    found = Reader(html_table(HOSTILE, {HOSTILE: HOSTILE, "none": None, "list": [1, 2]}))
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert found.texts == [shown, shown, shown, "list", "1, 2"]


def test_a_store(store):
    texts = read(store)
    assert texts[0] == f"FeatureStore {store.path}"
    assert texts[1:5] == ["tracks", "1", "layers", "0, 1"]


def test_views(store):
    assert read(store.aggregated(layer=1))[1:5] == ["track", "1", "feature", "4"]
    assert read(store.segments(HOSTILE))[1:7] == ["segment", "3", "layer", "2", "feature", "4"]
    assert "96 bytes" in read(store.segments())


def test_a_spec():
    texts = read(FeatureSpec(layers=(4,), dim=2, model=HOSTILE))
    assert texts[texts.index("layers") + 1] == "4"


def test_a_report():
    failures = tuple(Failure(track_id=f"{n}{HOSTILE}", path="p", error="E", message=HOSTILE) for n in range(12))
    report = BuildReport(total_files=20, processed=8, failed=12, errors=failures, elapsed_time=61.0)
    texts = read(report)
    assert texts[texts.index("processed") + 1] == "8"
    assert texts[texts.index("time") + 1] == "0:01:01"
    assert sum(text.startswith("failed: ") for text in texts) == 10
    assert texts[-1] == "2 more failed"
