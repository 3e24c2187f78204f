"""The report on a store: what it finds, what it says, and what it lets nobody do."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from suspicious import LONG, SCRIPT

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.analysis.report import track_map
from featurestore.errors import MissingDependencyError, SettingError, TrackNotFoundError
from fs_extract.commands import run

pytestmark = pytest.mark.slow
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Elements and texts of a page, by the path of tags that leads to them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        assert all(name.isascii() for name, _ in attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag):
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def counts(suspicious_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    labels = {name: f"<u>{name[:4]}</u>" for name in suspicious_store.track_ids[:60]}
    return path, suspicious_store.report(path, labels=labels, tracks=["rock/02", SCRIPT])


@pytest.fixture(scope="module")
def page(counts):
    return Page(counts[0].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(page):
    return json.loads(page.text_of("script")[0])


def suspects(page_path):
    """What stands below each heading of the suspicious tracks."""
    text = page_path.read_text(encoding="utf-8")
    section = text[text.index('id="suspects"') : text.index('id="audio"')]
    parts = re.split(r"<h3>(.+?): \d+</h3>", section)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_what_is_wrong_is_named(counts):
    path, found = counts
    assert found == {"No features": 1, "Silent": 1, "Clipped": 1, "Duplicates": 2, "Outliers": 1}
    lists = suspects(path)
    assert re.search(r"bad/nan.*layers 1\b", lists["No features"])
    assert re.search(r"pop/silent.*1\.0e-07", lists["Silent"])
    assert re.search(r"pop/clipped.*25\.0%", lists["Clipped"])
    assert re.search(r"pop/(copy|original).*same file as pop/(copy|original)", lists["Duplicates"])
    assert re.search(r"(bad/twin|jazz/01).*same features as (bad/twin|jazz/01)", lists["Duplicates"])
    assert re.search(r"bad/far.*\+\d+\.\d in layer", lists["Outliers"])


def test_what_the_page_says_of_the_store(page, suspicious_store):
    facts = " ".join(page.text_of("bdi"))
    assert f"{len(suspicious_store)}, {len(suspicious_store)} of them packed" in facts
    assert suspicious_store.spec.fingerprint in facts
    assert "cpu (80)" in facts
    assert "it is silent" in facts
    assert "2026-01-02T03:04:05, one of 1" in facts
    assert {"fs-extract build <music>", "<b>gone</b>", "<i>no audio</i>"} <= set(page.text_of("bdi"))


def test_nothing_is_loaded_and_nothing_else_runs(page):
    policy = next(x["content"] for x in page.of("meta") if x.get("http-equiv") == "Content-Security-Policy")
    style, script = page.text_of("style")[0], page.text_of("script")[1]
    for name, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not {tag for tag, _ in page.elements} & {"img", "link", "iframe", "object", "b", "u", "i"}
    assert [x for _, x in page.elements if {"src", "style"} & x.keys()] == []
    assert [x for _, x in page.elements if any(name.startswith("on") for name in x)] == []
    assert {x["href"][0] for x in page.of("a")} == {"#"}
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_text(page, data):
    assert len(page.of("script")) == 2
    assert {SCRIPT, LONG, "{{ 7 * 7 }}"} <= set(data["ids"])
    assert "<" not in page.text_of("script")[0]
    assert SCRIPT in page.text_of("bdi")
    assert "<b onclick=x>warned</b>" in page.text_of("bdi")
    assert "Report on <i>s.zarr" in page.text_of("title")


def test_what_can_be_seen_can_be_read_aloud(page):
    labelled = [x for tag, x in page.elements if tag in ("svg", "canvas") or x.get("role") == "region"]
    assert labelled
    assert all(x.get("role") and x.get("aria-label") for x in labelled)
    ids = [x["id"] for _, x in page.elements if "id" in x]
    assert len(ids) == len(set(ids))
    for _, element in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(element.get(name, "").split()) <= set(ids)
        if element.get("href", "").startswith("#"):
            assert element["href"][1:] in ids
    assert page.of("html") == [{"lang": "en"}]
    assert all(x.get("scope") for x in page.of("th"))


def test_the_map_has_every_track_in_its_place(data, suspicious_store):
    assert data["ids"] == suspicious_store.track_ids
    assert data["layers"] == [0, 1, 2]
    assert data["layer"] == 1
    places = [np.frombuffer(base64.b64decode(x), "<u2").reshape(-1, 2) for x in data["positions"]]
    nowhere = [[data["ids"][n] for n in np.flatnonzero((x == 65535).any(axis=1))] for x in places]
    assert nowhere == [[], ["bad/nan"], []]
    normal = np.array([name not in ("bad/nan", "bad/far") for name in data["ids"]])
    assert places[2][normal].std() > 5000  # the far one does not press the others into a point


def test_colours_of_labels(data):
    names = [x["name"] for x in data["colours"]]
    assert names[0] == "label"
    assert {"first part of the id", "minutes", "loudness (dB)"} <= set(names)
    first = data["colours"][0]
    values = np.frombuffer(base64.b64decode(first["values"]), "<i2")
    expected = [f"<u>{name[:4]}</u>" if n < 60 else None for n, name in enumerate(data["ids"])]
    assert [first["names"][x] if x >= 0 else None for x in values] == expected


def test_many_tracks_are_sampled_and_the_page_says_so(suspicious_store, tmp_path, monkeypatch):
    monkeypatch.setattr(track_map, "POINTS", 20)
    suspicious_store.report(tmp_path / "r.html", layer=0)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "A sample of 20 of 80 tracks" in text
    shown = json.loads(Page(text).text_of("script")[0])["ids"]
    assert len(shown) == 20
    assert {"bad/nan", "pop/silent", "pop/clipped", "bad/far"} <= set(shown)


@pytest.mark.parametrize("tracks", [1, 2, 3, 4])
def test_small_stores(tmp_path, tracks):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=1, dim=2), durable=False) as writer:
        for number in range(tracks):
            writer.put(f"t{number}", {"aggregated": np.array([[number, 1.0]])})
    FeatureStore(tmp_path / "s.zarr").report(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"The levels of {tracks} tracks were not recorded" in text
    assert "no segments of any track" in text
    Page(text)


def test_what_cannot_be_reported(suspicious_store, tmp_path):
    path = tmp_path / "r.html"
    with pytest.raises(SettingError, match="`layer` must be one of 0, 1, 2, not 7"):
        suspicious_store.report(path, layer=7)
    with pytest.raises(TrackNotFoundError, match="rock/0"):
        suspicious_store.report(path, tracks=["rock/0"])
    with pytest.raises(SettingError, match="no column 'genre'"):
        suspicious_store.report(path, labels={"rock/02": 1}, label="genre")
    with StoreWriter(tmp_path / "e.zarr", spec=FeatureSpec.for_arrays(layers=1, dim=2)):
        pass
    with pytest.raises(SettingError, match="no tracks yet"):
        FeatureStore(tmp_path / "e.zarr").report(path)
    assert not path.exists()


def test_the_command(suspicious_store, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("id,genre\nrock/02,rock\njazz/01,jazz\n", encoding="utf-8")
    path = tmp_path / "out" / "r.html"
    arguments = ["report", str(suspicious_store.path), "-o", str(path)]
    labels = ["--labels", str(tmp_path / "labels.csv"), "--label", "genre", "--on", "id"]
    assert run([*arguments, *labels, "--track", "rock/02", "--layer", "2"]) == 0
    assert capsys.readouterr().out == f"{path}: no features 1, silent 1, clipped 1, duplicates 2, outliers 1\n"
    found = json.loads(Page(path.read_text(encoding="utf-8")).text_of("script")[0])
    assert (found["colours"][0]["names"], found["layer"], len(found["pictures"])) == (["jazz", "rock"], 2, 1)
    assert run([*arguments, "--label", "genre"]) == 2
    assert "--labels and --label go together" in capsys.readouterr().err


def test_without_jinja2_it_says_what_to_install(suspicious_store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"featurestore\[report\]"):
        suspicious_store.report(tmp_path / "r.html")


def test_a_file_of_hdf5_has_a_report_as_well(suspicious_store, tmp_path):
    file = suspicious_store.export(
        tmp_path / "s.h5", tracks=[x for x in suspicious_store.track_ids if x != "bad/nan"]
    )
    assert FeatureStore(file).report(tmp_path / "r.html")["Clipped"] == 1


@pytest.mark.parametrize(
    ("length", "overlap", "said"),
    [("full", 0.0, "full, overlap 0%"), (5.0, 0.0, "5 s, overlap 0%"), (5.0, None, "5 s<")],
)
def test_windows_of_any_kind_have_a_length(length, overlap, said, tmp_path):
    spec = FeatureSpec(layers=[0], dim=4, model="m", segment_duration=length, overlap=overlap)
    with StoreWriter(tmp_path / "s.zarr", spec=spec) as writer:
        for name in ("a", "b"):
            with writer.track(name, kinds=["segments"], attributes={"audio": {"duration": 17.0}}) as track:
                track.append(segments=np.random.default_rng(3).normal(size=(3, 1, 4)), starts=[0.0, 6.0, 12.0])
    store = FeatureStore(tmp_path / "s.zarr")
    store.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert said in text
    assert text.count("3 segments, 17 s;") == 2
    with pytest.raises(SettingError, match="have 0 to 17 s, not 18 s"):
        store.similar(("a", 18), layer=0)
