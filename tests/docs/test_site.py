"""The documentation builds without a warning and without a network, and leaves nothing out."""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from pages import ROOT

DOCS = ROOT / "docs"
PUBLIC = ("featurestore", "featurestore.models", "featurestore.training.labels", "featurestore.training.pretrain")


def load_decision_index():
    """The module of Sphinx's own that makes the table of decisions."""
    spec = importlib.util.spec_from_file_location("decision_index", ROOT / "docs/_ext/decision_index.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, made in a process that cannot open a socket."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "generated"))
    code = "import socket; socket.getaddrinfo = socket.socket.connect = None\n"
    code += "from sphinx.cmd.build import main; raise SystemExit(main())"
    options = [
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(folder / "doctrees"),
        str(folder / "docs"),
        str(folder / "html"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_every_page_of_the_site_is_made(site):
    pages = [page.relative_to(DOCS) for page in DOCS.rglob("*.[mi]*") if page.suffix in (".md", ".ipynb")]
    pages = [page for page in pages if "_build" not in page.parts]
    missing = [page for page in pages if not (site / page.with_suffix(".html")).is_file()]
    assert pages
    assert not missing


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    loaded = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="([^"]+)"')
    for page in site.rglob("*.html"):
        elsewhere = [
            x for x in loaded.findall(page.read_text(encoding="utf-8")) if urllib.parse.urlsplit(x).netloc
        ]
        assert not elsewhere, page


@pytest.mark.slow
@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_page(site, module):
    names = [x for x in importlib.import_module(module).__all__ if not x.startswith("__") and not x.isupper()]
    anchors = "".join(page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html"))
    missing = [x for x in names if f'id="{module}.{x}"' not in anchors and f'id="featurestore.{x}"' not in anchors]
    assert names
    assert not missing


def test_every_decision_has_a_status_and_a_date_and_names_decisions_that_exist():
    decisions = load_decision_index().read_decisions(DOCS / "decisions")
    numbers = [x.number for x in decisions]
    assert len(set(numbers)) == len(numbers) > 50
    for decision in decisions:
        for target in re.findall(r"\]\(([^)]+)\)", decision.status):
            assert (DOCS / "decisions" / target).is_file(), decision
        assert re.match(r"(accepted|superseded|withdrawn|proposed)\b", decision.status), decision


def test_a_decision_without_a_status_is_named(tmp_path):
    path = tmp_path / "001-a.md"
    path.write_text("# 001: a\n\nBecause.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"001-a\.md must begin with"):
        load_decision_index().read_decision(path)


def test_relative_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = [link for link in links if not (ROOT / Path(link)).exists()]
    assert not missing


def test_the_map_of_changes_names_files_and_what_is_in_them():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = re.findall(r"`((?:featurestore|cli)/[\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", text)
    assert len(places) >= 14
    for path, names in places:
        source = (ROOT / path).read_text(encoding="utf-8")
        missing = [name for name in re.findall(r"\w+", names) if not re.search(rf"\b{name}\b", source)]
        assert not missing, path


def test_every_fragment_of_the_changelog_has_a_name_that_towncrier_takes():
    types = "added|changed|deprecated|removed|fixed|security"
    for path in (ROOT / "changelog.d").iterdir():
        assert path.name == "README.md" or re.fullmatch(rf"(\+[a-z0-9-]+|\d+)\.({types})\.md", path.name), path
