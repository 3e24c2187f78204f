"""The report in a real browser: clicks, keys, a phone, the dark, and paper."""

import base64
import json

import browser as browsers
import numpy as np
import pytest
from suspicious import LONG, SCRIPT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.PROGRAM is None, reason="there is no Chromium"),
]
DARK = {"name": "prefers-color-scheme", "value": "dark"}
LIGHT = {"name": "prefers-color-scheme", "value": "light"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def path(suspicious_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    labels = {name: f"<u>{name[:4]}</u>" for name in suspicious_store.track_ids[:60]}
    suspicious_store.report(path, labels=labels, tracks=["rock/02", SCRIPT])
    return path


def test_nothing_is_asked_for_and_nothing_complains(browser, path):
    browser.open(path)
    assert browser.do("document.title") == "Report on <i>s.zarr"
    assert browser.complaints == []
    assert browser.do("document.querySelectorAll('img, main b, main u, main i').length") == 0


def test_what_is_not_ours_may_not_run(browser, path, tmp_path):
    """The policy holds even if a name came through."""
    broken = tmp_path / "broken.html"
    harm = "<script>document.title='run'</script><img src='http://localhost:9/x' onerror=\"document.title='run'\">"
    broken.write_text(path.read_text(encoding="utf-8").replace("<main>", "<main>" + harm), encoding="utf-8")
    browser.open(broken)
    assert browser.do("document.title") == "Report on <i>s.zarr"
    assert len([x for x in browser.complaints if "Content Security Policy" in x]) >= 2


def test_a_click_on_a_suspicious_track_shows_it_on_the_map(browser, path):
    browser.open(path)
    browser.click_on("#suspects button.track")
    assert browser.text("#chosen").startswith("bad/nan")
    assert "loudness" in browser.text("#chosen")
    assert browser.do("document.activeElement.id") == "map"
    # It has no place in layer 1, but in the others.
    assert "no place on this map" in browser.text("#chosen")
    assert browser.do("tip.hidden")


def test_a_click_on_the_map_and_the_arrow_keys(browser, path):
    browser.open(path)
    browser.click(*browser.middle_of("#map"))
    browser.press("Escape")
    assert browser.text("#chosen") == ""
    assert browser.do("document.activeElement.id") == "map"
    browser.press("ArrowRight")
    first = browser.text("#chosen")
    assert first
    for key in ("ArrowRight", "ArrowUp"):
        browser.press(key)
    assert browser.text("#chosen") not in ("", first)
    assert browser.do("tip.getBoundingClientRect().width") > 0
    assert browser.text("#tip") == browser.text("#chosen")


def test_search(browser, path):
    browser.open(path)
    browser.click_on("#search")
    browser.type("ONERROR")
    assert browser.text("#matches").startswith("1 of 80 tracks found")
    browser.click_on("#found button")
    assert browser.text("#chosen").startswith(SCRIPT)
    assert browser.do("document.title") == "Report on <i>s.zarr"
    browser.do("search.value = ''")
    browser.click_on("#search")
    browser.type("folk/")
    assert browser.do("document.querySelectorAll('#found button').length") == 20
    assert "the first 20" in browser.text("#matches")


def test_colours_and_layers(browser, path):
    browser.open(path)
    assert browser.do("[...document.querySelectorAll('#legend button')].map(x => x.textContent)")[-1].startswith(
        "not known (20)"
    )
    before = browser.do("map.toDataURL()")
    browser.click_on("#legend button")
    assert browser.do("document.querySelector('#legend button').getAttribute('aria-pressed')") == "false"
    assert browser.do("map.toDataURL()") != before
    for control, value in (("layer", "2"), ("colour", "2"), ("colour", "-1")):
        before = browser.do("map.toDataURL()")
        browser.do(f"{control}.value = '{value}'; {control}.dispatchEvent(new Event('change'))")
        assert browser.do("map.toDataURL()") != before
    assert browser.do("legend.children.length") == 0
    assert browser.complaints == []


def test_tracks_over_time_are_drawn(browser, path):
    browser.open(path)
    diagonal = (
        "[...document.querySelectorAll('canvas.picture')].map(c => "
        "[...Array(c.width).keys()].map(n => [...c.getContext('2d').getImageData(n, n, 1, 1).data]))"
    )
    for picture in browser.do(diagonal):
        assert np.array(picture).tolist() == [[150, 20, 30, 255]] * len(picture)


@pytest.mark.parametrize("width", [390, 320])
def test_on_a_phone_nothing_sticks_out(browser, path, width):
    browser.open(path, width=width, height=844, mobile=True)
    browser.do("document.querySelector('details').open = true; search.value = 'x'")
    browser.do("search.dispatchEvent(new Event('input'))")
    assert browser.do("found.textContent").count(LONG) == 1
    browser.do("document.querySelector('#found button').click()")
    assert browser.do("document.documentElement.scrollWidth") <= width
    inside = f"""[...document.querySelectorAll('body *')].filter(e => !e.closest('.table, svg') &&
        e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.do(inside) == []


def brightness(browser, what, selector="body"):
    colour = browser.do(f"getComputedStyle(document.querySelector('{selector}')).{what}")
    red, green, blue = (int(x) for x in colour.strip("rgba()").split(",")[:3])
    channels = np.array([red, green, blue]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_texts_can_be_read_in_the_light_and_in_the_dark(browser, path, theme):
    """Contrast of 4.5 at least: WCAG 2.2, success criterion 1.4.3."""
    browser.open(path, media=[theme])
    ground = brightness(browser, "backgroundColor")
    assert (ground < 0.2) == (theme is DARK)
    for selector in ("body", ".soft", "a", "button.track", "dt", "summary"):
        ink = brightness(browser, "color", selector)
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, selector


def test_on_paper_it_is_light_without_controls(browser, path):
    browser.open(path, media=[DARK])
    browser.send("Emulation.setEmulatedMedia", media="print", features=[DARK])
    assert brightness(browser, "backgroundColor") == pytest.approx(1)
    assert browser.do("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert browser.do("map.clientHeight") > 100
    assert len(browser.send("Page.printToPDF")["data"]) > 10_000


def test_what_assistive_technology_is_told(browser, path):
    browser.open(path)
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    named = {(x["role"]["value"], x.get("name", {}).get("value", "")) for x in nodes if not x.get("ignored")}
    assert {("combobox", "Layer"), ("combobox", "Colour"), ("searchbox", "Search ids")} <= named
    assert ("application", "Map of tracks") in named
    assert any(role == "heading" and name == "Suspicious tracks" for role, name in named)
    unnamed = [role for role, name in named if role in ("button", "link", "image", "combobox") and not name]
    assert unnamed == []


def test_a_map_of_twenty_thousand_points_is_there_in_two_seconds(browser, path, tmp_path):
    head, _, rest = path.read_text(encoding="utf-8").partition('id="data">')
    text, _, tail = rest.partition("</script>")
    data = json.loads(text)
    data["ids"] = [f"{name} {number}" for number in range(250) for name in data["ids"]]
    data["positions"] = [repeated(x) for x in data["positions"]]
    for colour in data["colours"]:
        colour["values"] = repeated(colour["values"])
    larger = tmp_path / "larger.html"
    text = json.dumps(data).replace("<", "\\u003c")
    larger.write_text(f'{head}id="data">{text}</script>{tail}', encoding="utf-8")
    assert browser.open(larger) < 2
    assert browser.complaints == []
    browser.click_on("#search")
    browser.type("silent 249")
    assert browser.text("#matches") == "1 of 20000 tracks found"


def repeated(text):
    return base64.b64encode(base64.b64decode(text) * 250).decode()
